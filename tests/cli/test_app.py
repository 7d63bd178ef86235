"""The command line as a user meets it: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import tiny
from helpers.commands import Command, Run, untimed
from helpers.tiny import mapping

import harness
from harness.api import registry

ROOT = Path(__file__).parents[2]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)


IMPORTED = """
import sys
from harness.cli.app import main
sys.argv = ["ct-harness", *{arguments}]
try:
    main()
except SystemExit as end:
    code = end.code
heavy = {{"torch", "numpy", "pandas", "scipy.stats", "sklearn", "torchvision", "robustbench", "pyautoattack",
          "loky", "timm"}}
print("|", code or 0, *sorted(heavy & sys.modules.keys()))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["list"], ["schema"]])
def test_help_is_quick_since_nothing_heavy_is_imported(arguments: list[str]) -> None:
    ended = python("-c", IMPORTED.format(arguments=arguments))
    code, *heavy = ended.stdout.rpartition("|")[2].split()
    allowed = {"numpy"} if arguments in (["list"], ["schema"]) else set()
    assert (code, set(heavy) - allowed) == ("0", set()), ended.stdout + ended.stderr


def test_a_board_is_shown_without_torch() -> None:
    ended = python("-c", IMPORTED.format(arguments=["show", str(ROOT / "leaderboards" / "digits_linf.csv")]))
    code, *heavy = ended.stdout.rpartition("|")[2].split()
    assert (code, set(heavy) & {"torch", "torchvision", "robustbench", "timm"}) == ("0", set()), ended.stderr
    assert "digits_robust" in ended.stdout


def test_it_runs_as_a_module_and_says_its_version() -> None:
    ended = python("-m", "harness", "--version")
    assert (ended.returncode, ended.stdout) == (0, f"ct-harness {harness.__version__}\n")


def test_help_names_every_command(command: Command) -> None:
    ended = command("--help")
    assert ended.code == 0
    for name in ("run", "show", "doctor", "coverage", "list", "schema"):
        assert f" {name} " in ended.out


@pytest.mark.usefixtures("installed")
def test_list_names_every_kind(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ended = command("list")
    assert ended.code == 0
    kinds = {"models": "demo robustbench torchvision timm checkpoint training",
             "datasets": "digits arrays cifar10 cifar100 imagenet image_folder normalised",
             "threats": "Linf L2 L1 corruptions corruptions_3d dim", "executors": "local ray slurm inline"}  # fmt: skip
    for group, names in kinds.items():
        assert set(names.split()) <= set(registry.registered(group))
        alone = command("list", group)
        assert alone.code == 0
        for name in names.split():
            assert f" {name} " in ended.out
            assert f" {name} " in alone.out
    assert "eps, attack?" in ended.out
    assert "A network left in training mode. [thirdparty]" in ended.out
    assert "digits" not in command("list", "threats").out


def test_schema_is_a_json_schema(command: Command) -> None:
    ended = command("schema")
    assert ended.code == 0
    schema = json.loads(ended.out)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(mapping(), schema)


def test_a_command_that_there_is_not(command: Command) -> None:
    assert command("rnu").code == 2
    assert command("list", "attacks").code == 2


# --- run and show ---


def test_run_writes_the_board_and_shows_it(here: Path, run: Run, command: Command, computed: Path) -> None:
    ended = run(mapping())
    assert ended.code == 0
    csv = (here / "leaderboards" / "tiny.csv").read_text()
    assert untimed(csv) == untimed((computed / "first.csv").read_text())
    shown = command("show", "leaderboards/tiny.csv")
    assert (shown.code, shown.out) == (0, ended.out)
    for word in ("leaderboards/tiny.csv", "mixed", "baseline", "1/1", "0.9", "0.5"):
        assert word in shown.out
    for robust in pd.read_csv("leaderboards/tiny.csv")["robust"]:
        assert f" {100 * robust:.1f} " in shown.out


def test_a_rerun_gives_the_same_bytes_and_another_runs_folder_all_but_the_seconds(here: Path, run: Run) -> None:
    boards = []
    for runs in ("runs", "runs", "other"):
        run(mapping(), "--runs", runs, "--out", "board.csv")
        boards.append((here / "board.csv").read_bytes())
    assert boards[0] == boards[1]
    assert untimed(boards[0].decode()) == untimed(boards[2].decode())


@pytest.mark.parametrize("eps", [0.04, 0.1])
def test_a_linear_network_scores_its_closed_form(run: Run, eps: float) -> None:
    """`tiny_networks:quadrants` loses an image as soon as 2 ε exceeds what its quadrant is brighter by."""
    x, y = tiny.images()
    means = x.reshape(24, 2, 4, 2, 4).mean((2, 4)).reshape(24, 4)
    own = means[np.arange(24), y]
    others = np.where(np.eye(4, dtype=bool)[y], -1, means).max(1)
    expected = float((own - others > 2 * eps).mean())
    assert 0 < expected < 1
    model = {"kind": "checkpoint", "builder": "tiny_networks:quadrants"}
    attack = {"stages": ["apgd-ce"], "iterations": 20}
    assert run(mapping(models=[model], threat={"kind": "Linf", "eps": eps, "attack": attack})).code == 0
    table = pd.read_csv("leaderboards/tiny.csv")
    (baseline,) = table[(table["beta"] == 1) & (table["status"] == "ok")].itertuples()
    assert baseline.clean == 1.0
    assert baseline.robust == pytest.approx(expected, abs=1e-6)
    assert (baseline.sites, baseline.steered, baseline.n) == (1, 1, 24)


def test_a_threat_without_eps_is_run_like_any(run: Run) -> None:
    assert run(mapping(threat={"kind": "dim"})).code == 0
    table = pd.read_csv("leaderboards/tiny.csv", keep_default_na=False)
    assert set(table["threat"]) == {"dim"}
    assert set(table["eps"]) == {""}


def test_show_of_what_is_no_board(here: Path, command: Command) -> None:
    (here / "x.csv").write_text("a,b\n1,2\n")
    ended = command("show", "x.csv")
    assert ended.code == 2
    assert ended.err.startswith("error: x.csv: not a leaderboard")
    assert command("show", "nowhere.csv").err.startswith("error: nowhere.csv: cannot be read")


def test_an_error_is_one_message_and_exit_code_2(here: Path) -> None:
    (here / "bad.yaml").write_text(yaml.safe_dump({"models": []}))
    ended = python("-m", "harness", "run", "bad.yaml")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: bad.yaml: ")
    assert "Traceback" not in ended.stderr


def test_debug_shows_the_traceback(here: Path) -> None:
    # Once: _debug() asks click for its context, but typer brings a click of its own (typer._click): always None.
    (here / "bad.yaml").write_text(yaml.safe_dump({"models": []}))
    ended = python("-m", "harness", "--debug", "run", "bad.yaml")
    assert ended.returncode != 0
    assert "Traceback" in ended.stderr
    assert "SpecError" in ended.stderr


def test_a_terminal_without_greek_still_works(computed: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "harness", "show", str(computed / "first.csv")],
        env={"PYTHONIOENCODING": "ascii", "PATH": ""}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert b"mixed" in ended.stdout
