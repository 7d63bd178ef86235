"""The nightly gate: planted regressions fail, noise does not, nor does a rise pass for good news."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from helpers.gate import BITS, COMMITTED, GRID, SHARED, N, board, entry, flip
from helpers.packages import script
from safetensors.torch import load_file, save_file
from scipy.stats import binom
from typer.testing import CliRunner

from harness.api.records import BASELINE, Steering
from harness.cli.app import app
from harness.errors import LeaderboardError
from harness.leaderboard import board_files, csv_file, flags, outcomes, regression
from harness.leaderboard.regression import Board, GateVerdict
from harness.leaderboard.scores import ModelEntry
from harness.report import ci_summary

BETAS = [BASELINE, *(Steering(round(0.95 - 0.05 * k, 2)) for k in range(9))]


def verdicts(fresh: Board, max_drop: float | None = None, accept_gains: bool = False) -> dict[str, GateVerdict]:
    return {row.name: row.verdict for row in regression.check(fresh, COMMITTED, max_drop, accept_gains)}


def test_an_equal_board_holds() -> None:
    assert verdicts(board(entry(GRID))) == {"m β=1": "held", "m β=0.9": "held"}


@pytest.mark.parametrize(("lose", "gain"), [(1, 0), (0, 1), (2, 2), (5, 0), (0, 5)])
def test_a_few_flips_move_a_row_and_pass(lose: int, gain: int) -> None:
    rows = regression.check(board(entry(GRID | {Steering(0.9): flip(GRID[Steering(0.9)], lose, gain)})), COMMITTED)
    assert {row.name: row.verdict for row in rows} == {"m β=1": "held", "m β=0.9": "moved"}
    assert next(row.flipped for row in rows if row.name == "m β=0.9") == lose + gain
    assert not regression.failed(rows)


def test_a_change_beyond_chance_fails_in_either_direction() -> None:
    """Eight images one way and none the other: 2 · 2⁻⁸ is below 1 %, as both signs count; seven are not enough."""
    for many in (8, 7):
        for lose, gain, verdict in ((many, 0, "regressed"), (0, many, "risen")):
            rows = regression.check(board(entry(GRID | {BASELINE: flip(BITS, lose, gain)})), COMMITTED)
            assert {row.name: row.verdict for row in rows} == {
                "m β=1": verdict if many == 8 else "moved",
                "m β=0.9": "held",
            }
            assert regression.failed(rows) == (many == 8)


def test_a_fall_of_clean_accuracy_fails() -> None:
    clean = flip(np.ones(N, np.float32), 12)
    assert set(verdicts(board(entry(GRID, clean=clean))).values()) == {"regressed"}


def test_an_attack_under_which_everything_survives_fails_unless_gains_are_accepted() -> None:
    survived = board(entry(dict.fromkeys(GRID, np.ones(N, np.float32))))
    assert verdicts(survived) == {"m β=1": "risen", "m β=0.9": "risen"}
    assert set(verdicts(survived, accept_gains=True).values()) == {"accepted"}
    assert not regression.failed(regression.check(survived, COMMITTED, accept_gains=True))


def test_a_fall_fails_where_gains_are_accepted() -> None:
    fresh = board(entry({BASELINE: flip(BITS, 0, 20), Steering(0.9): flip(GRID[Steering(0.9)], 20)}))
    assert verdicts(fresh, accept_gains=True) == {"m β=1": "accepted", "m β=0.9": "regressed"}


def test_a_fall_of_all_rows_together_fails_though_one_has_risen() -> None:
    before = dict.fromkeys(BETAS, BITS)
    after = lost_apart(before) | {BETAS[0]: flip(BITS, 0, 12)}
    rows = regression.check(board(entry(after)), board(entry(before)), accept_gains=True)
    assert [row.name for row in rows if row.verdict == "regressed"] == ["all rows together"]
    assert [row.name for row in rows if row.verdict == "accepted"] == ["m β=1"]


def lost_apart(before: Mapping[Steering, np.ndarray]) -> dict[Steering, np.ndarray]:
    """Return the board on which each row has lost four images of its own."""
    lost = {steering: np.flatnonzero(BITS)[4 * k : 4 * k + 4] for k, steering in enumerate(before)}
    return {steering: np.where(np.isin(np.arange(N), lost[steering]), 0, bits) for steering, bits in before.items()}


def test_a_loss_that_no_row_shows_alone_is_seen_in_all_rows_together() -> None:
    """Each row loses four images of its own: 2 · 2⁻⁴ alone, 2 · 2⁻⁴⁰ together."""
    before = dict.fromkeys(BETAS, BITS)
    rows = regression.check(board(entry(lost_apart(before))), board(entry(before)))
    assert [row.verdict for row in rows] == ["moved"] * len(BETAS) + ["regressed"]
    assert rows[-1].name == "all rows together"
    assert rows[-1].robust_pp == pytest.approx(-2.0)
    assert rows[-1].flipped == 40
    assert regression.failed(rows)


def test_that_all_rows_flip_the_same_few_images_is_one_change() -> None:
    """Three images are lost in ten rows: as likely as in one, 2 · 2⁻³."""
    after = dict.fromkeys(BETAS, flip(BITS, 3))
    rows = regression.check(board(entry(after)), board(entry(dict.fromkeys(BETAS, BITS))))
    assert [row.verdict for row in rows] == ["moved"] * len(BETAS)


def of_flags(raised: set[str], own: np.ndarray = BITS, robust: np.ndarray = BITS) -> Board:
    """Return a board of one row with these flags, its robust score being lower than against its own attack."""
    made = entry({BASELINE: robust})
    stages = {"clean": made.scores[0].clean, "apgd-ce": own}
    score = replace(made.scores[0], flags=frozenset(raised), stages=stages, own=own)
    return board(replace(made, scores=[score]))


@pytest.mark.parametrize("flag", sorted(flags.MASKING))
def test_a_newly_raised_flag_of_masking_fails(flag: str) -> None:
    (row,) = regression.check(of_flags({flag, "partial"}), of_flags({"partial"}))
    assert (row.verdict, row.why) == ("regressed", f"newly raised: {flag}")
    assert [row.verdict for row in regression.check(of_flags({flag}), of_flags({flag}))] == ["held"]


def test_another_newly_raised_flag_is_noted() -> None:
    (row,) = regression.check(of_flags({"nondeterministic"}), of_flags(set()))
    assert (row.verdict, row.why) == ("moved", "newly raised: nondeterministic")


def test_an_attack_that_misses_what_the_replay_finds_fails() -> None:
    """Robust accuracy is as before, since the adversarial images of other β take what the own attack misses now."""
    for more, verdict in ((8, "regressed"), (7, "moved")):
        (row,) = regression.check(of_flags(set(), flip(BITS, 0, more)), of_flags(set()))
        assert (row.verdict, row.robust_pp, row.flipped) == (verdict, 0.0, more)
    (less,) = regression.check(of_flags(set()), of_flags(set(), flip(BITS, 0, 20)))
    assert less.verdict == "moved"


def pruned(bits: np.ndarray, decided: int, baseline: np.ndarray = BITS) -> Board:
    """Return a board whose β = 0.9 was pruned when so many images were decided; the others count as robust."""
    made = entry({BASELINE: baseline, Steering(0.9): bits})
    bounds = np.where(np.arange(N) < decided, bits, 1)
    score = replace(made.scores[1], robust=bounds, complete=False, own=None)
    stages = {"clean": score.clean, "apgd-ce": np.where(bounds > 0, np.nan, 0)}
    return board(replace(made, scores=[made.scores[0], replace(score, stages=stages)]))


def test_of_a_pruned_row_a_fall_is_a_fall_and_a_rise_is_not_known() -> None:
    committed = board(entry({BASELINE: BITS, Steering(0.9): BITS}))
    rows = regression.check(pruned(BITS, N // 4, flip(BITS, 0, 1)), committed)
    assert {row.name: row.verdict for row in rows} == {"m β=1": "moved", "m β=0.9": "moved"}
    (row,) = (row for row in rows if row.name == "m β=0.9")
    assert row.why.startswith("pruned at ≤ ")
    assert row.robust_pp is None
    rows = regression.check(pruned(flip(BITS, 40), N), committed)
    assert {row.name: row.verdict for row in rows} == {"m β=1": "held", "m β=0.9": "regressed"}


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    return script("simulate")


def test_chance_seldom_shuts_the_gate(simulation: ModuleType) -> None:
    """In at most 1 % of the nights, within the binomial 99 % bound."""
    shut, _ = simulation.gate(100, *simulation.NIGHTS["100, noise"], 0, "one row", 0)
    assert shut <= binom.ppf(0.99, 100, 0.01)


@pytest.mark.parametrize(("kind", "lost"), [("each row, images of its own", 6), ("each row, mostly the same", 10)])
def test_the_gate_sees_a_loss_of_every_row_that_no_row_shows(simulation: ModuleType, kind: str, lost: int) -> None:
    by_gate, by_row = simulation.gate(20, *simulation.NIGHTS["100, noise"], lost, kind, 0)
    assert by_gate >= 18
    assert by_row <= 16


def test_max_drop_is_a_limit_of_its_own() -> None:
    fresh = board(entry(GRID | {Steering(0.9): flip(GRID[Steering(0.9)], 5)}))
    assert verdicts(fresh)["m β=0.9"] == "moved"
    assert verdicts(fresh, max_drop=2.4)["m β=0.9"] == "regressed"
    assert verdicts(fresh, max_drop=2.5)["m β=0.9"] == "moved"


def test_what_vanished_fails() -> None:
    assert verdicts(board(entry({BASELINE: BITS}))) == {"m β=1": "held", "m β=0.9": "regressed"}
    failed = board(ModelEntry(SHARED, failure="no weights"))
    rows = regression.check(failed, COMMITTED)
    assert {row.why for row in rows} == {"failed: no weights"}
    with pytest.raises(LeaderboardError, match=r"^eps: .*0\.1.*0\.2.*--update"):
        regression.check(board(entry(GRID, SHARED | {"eps": "0.2"})), COMMITTED)


@pytest.mark.parametrize(("column", "what"), [("weights_sha256", "weights"), ("data_sha256", "data")])
def test_other_weights_or_data_fail(column: str, what: str) -> None:
    rows = regression.check(board(entry(GRID, SHARED | {column: "x" * 64})), COMMITTED)
    assert all(row.verdict == "regressed" and what in row.why for row in rows)


def test_of_what_was_fitted_here_what_it_was_fitted_from_must_agree() -> None:
    """A fit has other last bits on another machine; its backbone and its training images have not."""
    shared = SHARED | {"fitted_from": "f" * 64}
    committed = board(entry(GRID, shared))
    again = board(entry(GRID, shared | {"weights_sha256": "x" * 64}))
    assert {row.verdict for row in regression.check(again, committed)} == {"held"}
    other = regression.check(board(entry(GRID, shared | {"fitted_from": "y" * 64})), committed)
    assert all(row.verdict == "regressed" and "backbone or the training images" in row.why for row in other)


def test_of_graded_answers_noise_is_no_change_and_a_fall_is_one() -> None:
    errors = -np.random.default_rng(1).random(N).astype(np.float32)
    worse = errors - np.float32(1e-6)
    committed = board(entry({BASELINE: errors}, clean=errors, target="values"))
    (row,) = regression.check(board(entry({BASELINE: worse}, clean=worse, target="values")), committed)
    assert (row.verdict, row.flipped) == ("held", 0)
    worse = errors - np.where(np.arange(N) < 30, np.float32(0.5), 0)
    (row,) = regression.check(board(entry({BASELINE: worse}, clean=worse, target="values")), committed)
    assert (row.verdict, row.flipped) == ("regressed", 30)
    assert row.clean_pp == pytest.approx(-100 * 0.5 * 30 / N, abs=1e-3)


def test_new_rows_are_not_judged() -> None:
    assert verdicts(board(entry(GRID | {Steering(0.5): BITS}))) == {"m β=1": "held", "m β=0.9": "held"}


def test_the_summaries_say_the_same() -> None:
    rows = regression.check(board(entry(GRID | {Steering(0.9): flip(BITS, 40)}, SHARED)), COMMITTED)
    text = ci_summary.markdown("a|board", rows)
    assert "FAILED (1 regressed, 1 held)" in text
    lines = [line for line in text.splitlines() if line.startswith("| m ")]
    assert [line.split(" | ")[1] for line in lines] == ["regressed", "held"]
    suites = ElementTree.fromstring(ci_summary.junit("a<b", rows))
    (suite,) = suites
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["m β=0.9"]


def test_a_rise_ends_with_1_and_what_to_do_about_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b.yaml").write_text(BENCHMARK)
    board_files.write(COMMITTED, Path("b.csv"), "")
    risen = board(entry(GRID | {Steering(0.9): flip(BITS, 0, 40)}))
    monkeypatch.setattr("harness.cli.run._fresh", lambda *_: risen)
    words = ["check", "b.yaml", "--against", "b.csv", "--junit", "j.xml"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "b: FAILED (1 risen, 1 held)\n  risen: m β=0.9: robust accuracy rose by more than chance" in done.stdout
    assert "if the rise is real, pass --accept-gains or --update" in done.stdout
    [failure] = ElementTree.parse("j.xml").getroot().iter("failure")
    assert failure.get("type") == "risen"
    done = CliRunner().invoke(app, [*words, "--accept-gains"])
    assert done.exit_code == 0
    assert "b: held (1 accepted, 1 held)" in done.stdout
    assert not list(ElementTree.parse("j.xml").getroot().iter("failure"))


NETWORK = """
from harness.models.demo import Demo

def network():
    return Demo(name="digits_plain").load().network
"""
BENCHMARK = """
models: [{kind: checkpoint, builder: "own:network", weights: own.safetensors}]
dataset: {kind: digits, n: 80}
threat: {kind: Linf, eps: 0.05, attack: {stages: [apgd-ce], iterations: 10}}
search: {kind: full}
steering: {beta: [0.8, 0.9]}
"""
BROKEN = """
import harness.curvature.phi
harness.curvature.phi._value = lambda x, columns, c: 0 * x
"""


@pytest.mark.slow
class TestForReal:
    """On the demo network, from the shell."""

    @pytest.fixture(scope="class")
    @staticmethod
    def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
        from importlib.resources import files

        home = tmp_path_factory.mktemp("gate")
        (home / "leaderboards").mkdir()
        (home / "benchmarks").mkdir()
        (home / "own.py").write_text(NETWORK)
        weights = files("harness.models").joinpath("weights", "digits_plain.safetensors")
        (home / "own.safetensors").write_bytes(weights.read_bytes())
        (home / "benchmarks" / "tiny.yaml").write_text(BENCHMARK)
        done = TestForReal.command(home, "check", "--update")
        assert done.returncode == 0, done.stderr
        assert (home / "leaderboards" / "tiny.outcomes.csv").exists()
        return home

    @staticmethod
    def command(home: Path, *options: str, path: str = "", runs: str = "runs") -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "harness", options[0], "benchmarks/tiny.yaml"]
        words += ["--against", "leaderboards/tiny.csv", "--runs", runs, *options[1:]]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [path, str(home)]))}
        return subprocess.run(words, cwd=home, env=environment, capture_output=True, text=True, check=False)

    def test_it_holds(self, home: Path) -> None:
        done = self.command(home, "check", "--summary", "s.md", "--junit", "j.xml", runs="again")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "tiny: held (3 held)" in done.stdout
        assert "held" in (home / "s.md").read_text()
        assert ElementTree.parse(home / "j.xml").getroot()[0].get("failures") == "0"

    def test_a_broken_steering_fails(self, home: Path, tmp_path: Path) -> None:
        (tmp_path / "sitecustomize.py").write_text(BROKEN)
        done = self.command(home, "check", path=str(tmp_path), runs="broken")
        assert done.returncode == 1, done.stdout + done.stderr
        assert "regressed: network β=0.8: clean accuracy fell by more than chance allows (p = " in done.stdout
        assert "regressed: network β=1" not in done.stdout

    def test_a_perturbed_weight_fails(self, home: Path) -> None:
        path = home / "own.safetensors"
        original = path.read_bytes()
        state = load_file(path)
        state[min(state)].view(-1)[0] += 0.01
        save_file(state, path)
        try:
            done = self.command(home, "check", runs="perturbed")
        finally:
            path.write_bytes(original)
        assert done.returncode == 1
        assert "the weights have another hash" in done.stdout

    def test_another_question_cannot_be_compared(self, home: Path) -> None:
        done = self.command(home, "check", "--set", "threat.eps=0.06")
        assert done.returncode == 2
        assert "eps: the committed board has 0.05 and the benchmark 0.06" in done.stderr

    def test_nightly_sums_up_and_goes_on(self, home: Path) -> None:
        (home / "leaderboards" / "absent.csv").write_text("rank\n")
        nightly = Path(__file__).parents[2] / "ci" / "nightly.py"
        environment = os.environ | {"PYTHONPATH": str(home)}
        done = subprocess.run(
            [sys.executable, str(nightly)], cwd=home, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        text = (home / "nightly" / "summary.md").read_text()
        assert "# Nightly: held" in text
        assert "absent: not run" in text
        board = home / "leaderboards" / "tiny.csv"
        before = {file: file.read_bytes() for file in board_files.files_of(board).values()}
        table, marks = csv_file.read(board), outcomes.read(board)
        assert marks is not None
        board_files.write(Board(table.assign(weights_sha256="0" * 64), marks), board, "")
        done = subprocess.run(
            [sys.executable, str(nightly)], cwd=home, env=environment, capture_output=True, text=True, check=False
        )
        for file, content in before.items():
            file.write_bytes(content)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "# Nightly: FAILED" in (home / "nightly" / "summary.md").read_text()

    def test_compare_writes_for_machines(self, home: Path) -> None:
        words = [
            sys.executable,
            "-m",
            "harness",
            "compare",
            "leaderboards/tiny.csv",
            "--csv",
            "c.csv",
            "--json",
            "c.json",
        ]
        done = subprocess.run(words, cwd=home, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert pd.read_csv(home / "c.csv")["model"].tolist() == ["network"]
        assert json.loads((home / "c.json").read_text())[0]["model"] == "network"
