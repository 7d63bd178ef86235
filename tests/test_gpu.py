"""The report on a GPU: its exit codes, and what it does with a section that fails. The pretended sections pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.packages import python_path, script

CI = Path(__file__).parents[1] / "ci"
PLANTED = """
import sys
import gpu
from gpu_sections import catalogue
from gpu_sections.section import Miss, Section

def right(place):
    yield "as it should be"

def wrong(place):
    yield Miss("expected 1, found 2")

def broken(place):
    yield "so far, so good"
    raise ZeroDivisionError("by 0")

catalogue.SECTIONS = [Section(find.__name__, "Planted?", find, 60) for find in (right, wrong, broken, right)]
catalogue.SECTIONS[-1] = Section("last", "Planted?", right, 60)
sys.exit(gpu.main())
"""
"""Runs the script with sections of which one misses and one raises."""


def ended(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in ``folder``, where the scripts can be imported."""
    environment = os.environ | {"PYTHONPATH": python_path(CI, CI.parent / "tests"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_pretended_sections_miss_nothing(tmp_path: Path) -> None:
    done = ended(tmp_path, str(CI / "gpu.py"), "--pretend", "device", "steps", "projections", "memory", "logits")
    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / "gpu" / "pretend.md").read_text(encoding="utf-8")
    assert report.startswith("# pretend\n")
    assert "Nothing missed." in report
    titles = [line.removeprefix("## ") for line in report.splitlines() if line.startswith("## ")]
    assert titles == ["device", "logits", "memory", "steps", "projections"]  # in their own order
    for title in titles:
        assert f"## {title}\n" in done.stdout
    assert "needs a GPU" in report


@pytest.mark.slow
def test_a_miss_and_an_error_end_with_1_and_the_sections_after_them_run(tmp_path: Path) -> None:
    done = ended(tmp_path, "-c", PLANTED, "--pretend", "--out", "there")
    assert done.returncode == 1, done.stderr
    report = (tmp_path / "there" / "pretend.md").read_text(encoding="utf-8")
    assert "Missed: wrong, broken." in report
    assert "**Missed**: expected 1, found 2" in report
    assert "so far, so good" in report
    assert "ZeroDivisionError: by 0" in report
    assert report.index("## broken") < report.index("## last")
    assert ended(tmp_path, "-c", PLANTED, "--pretend", "right").returncode == 0


@pytest.mark.slow
def test_without_time_sections_are_left_out(tmp_path: Path) -> None:
    done = ended(tmp_path, "-c", PLANTED, "--pretend", "--minutes", "0")
    assert done.returncode == 0
    assert done.stdout.count("Left out: all of it, as the time is up.") == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--pretend", "coffee"], "unknown section coffee; known: device, phi, steering"),
        (["--pretend", "--images", "nowhere.npz"], "--images: no file nowhere.npz"),
        (["--bundle", "nowhere"], "--bundle: no folder nowhere; python ci/gpu_bundle.py --out nowhere makes it"),
    ],
)
def test_what_cannot_be_done_ends_with_2_and_says_why(tmp_path: Path, arguments: list[str], why: str) -> None:
    done = ended(tmp_path, str(CI / "gpu.py"), *arguments)
    assert done.returncode == 2
    assert why in done.stderr
    assert not (tmp_path / "gpu").exists()


def test_a_bundle_that_is_too_large_names_its_largest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CI))
    bundle = script("gpu_bundle")
    (tmp_path / "weights.pt").write_bytes(bytes(2_000_000))
    (tmp_path / "small.py").write_text("")
    assert bundle.checked_size(tmp_path) == 2_000_000
    monkeypatch.setattr(bundle, "LARGEST", 1_000_000)
    with pytest.raises(bundle.Undone, match=r"has 2\.0 MB, more than 1; the largest files: weights\.pt 2\.0 MB, small"):
        bundle.checked_size(tmp_path)
