"""The report on a GPU: its exit codes, and what it does with a section that fails. The pretended sections pass."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.commands import Ended
from helpers.packages import script

CI = Path(__file__).parents[1] / "ci"
Script = Callable[..., Ended]
"""Runs ``ci/gpu.py`` with arguments."""


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """The script in this process and in an empty directory; what it changes for its sections is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(CI), *sys.path])
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
        code = script("gpu").main()
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def planted(gpu: Script, monkeypatch: pytest.MonkeyPatch) -> Script:
    """The script with sections of which one misses and one raises."""
    catalogue, section = (importlib.import_module(f"gpu_sections.{name}") for name in ("catalogue", "section"))

    def right(place: object) -> Iterator[object]:
        yield "as it should be"

    def wrong(place: object) -> Iterator[object]:
        yield section.Miss("expected 1, found 2")

    def broken(place: object) -> Iterator[object]:
        yield "so far, so good"
        raise ZeroDivisionError("by 0")

    found = {"right": right, "wrong": wrong, "broken": broken, "last": right}
    sections = tuple(section.Section(name, "Planted?", find, 60) for name, find in found.items())
    monkeypatch.setattr(catalogue, "SECTIONS", sections)
    return gpu


def test_a_section_that_does_not_end_is_ended_and_what_it_found_is_told(
    planted: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, section = (importlib.import_module(f"gpu_sections.{name}") for name in ("catalogue", "section"))

    def endless(place: object) -> Iterator[object]:
        yield "so far, so good"
        while True:
            time.sleep(0.01)

    (right, *_) = catalogue.SECTIONS
    monkeypatch.setattr(catalogue, "SECTIONS", (section.Section("endless", "Planted?", endless, 0), right))
    monkeypatch.setattr("gpu_sections.report.GRACE", 0.2)
    done = planted("--pretend")
    assert done.code == 1
    assert "so far, so good\n\n**Missed**: it did not end within 0 s" in done.out
    assert "as it should be" in done.out


@pytest.mark.slow
def test_pretended_sections_miss_nothing(tmp_path: Path) -> None:
    """In a process of its own, as it is called."""
    done = subprocess.run(
        [sys.executable, str(CI / "gpu.py"), "--pretend", "device", "steps", "projections", "memory", "logits"],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / "gpu" / "pretend.md").read_text(encoding="utf-8")
    assert report.startswith("# pretend\n")
    assert "Nothing missed." in report
    titles = [line.removeprefix("## ") for line in report.splitlines() if line.startswith("## ")]
    assert titles == ["device", "logits", "memory", "steps", "projections"]  # in their own order
    for title in titles:
        assert f"## {title}\n" in done.stdout
    assert "needs a GPU" in report


def test_a_miss_and_an_error_end_with_1_and_the_sections_after_them_run(planted: Script) -> None:
    done = planted("--pretend", "--out", "there")
    assert done.code == 1, done.err
    report = Path("there", "pretend.md").read_text(encoding="utf-8")
    assert "Missed: wrong, broken." in report
    assert "**Missed**: expected 1, found 2" in report
    assert "so far, so good" in report
    assert "ZeroDivisionError: by 0" in report
    assert report.index("## broken") < report.index("## last")
    assert planted("--pretend", "right").code == 0


def test_without_time_sections_are_left_out(planted: Script) -> None:
    done = planted("--pretend", "--minutes", "0")
    assert done.code == 0
    assert done.out.count("Left out: all of it, as the time is up.") == 4


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--pretend", "coffee"], "unknown section coffee; known: device, phi, steering"),
        (["--pretend", "--images", "nowhere.npz"], "--images: no file nowhere.npz"),
        (["--bundle", "nowhere"], "--bundle: no folder nowhere; python ci/gpu_bundle.py --out nowhere makes it"),
    ],
)
def test_what_cannot_be_done_ends_with_2_and_says_why(gpu: Script, arguments: list[str], why: str) -> None:
    done = gpu(*arguments)
    assert done.code == 2
    assert why in done.err
    assert not Path("gpu").exists()


def test_a_bundle_that_is_too_large_names_its_largest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CI))
    bundle = script("gpu_bundle")
    (tmp_path / "weights.pt").write_bytes(bytes(2_000_000))
    (tmp_path / "small.py").write_text("")
    assert bundle.checked_size(tmp_path) == 2_000_000
    monkeypatch.setattr(bundle, "LARGEST", 1_000_000)
    with pytest.raises(bundle.Undone, match=r"has 2\.0 MB, more than 1; the largest files: weights\.pt 2\.0 MB, small"):
        bundle.checked_size(tmp_path)
