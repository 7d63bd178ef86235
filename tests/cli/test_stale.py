"""Stale results: a rerun after any change of a network or a threat shows what a run from scratch shows, and says so."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from helpers import commands, tiny
from helpers.commands import Run

from harness.config.benchmark import parse_benchmark
from harness.engine.prepare import task_of
from harness.leaderboard import csv_file
from harness.threats.lp import Linf
from harness.util.source_code import code_of_classes

NETWORK = """
from tiny_networks import quadrants
from torch import nn
import my_part

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.sign = quadrants(), 1
    def forward(self, x):
        return my_part.flip(self.body(x)) * self.sign

def build():
    return Net()
"""
PART = """
import json
from pathlib import Path
def flip(logits):
    return logits * json.loads(Path("factor.json").read_text())
"""
ANSWERS = "m: the network answers otherwise than when these were computed; computing them again"
CODE = "m: its code, or what it holds besides its weights, has changed since these were computed; computing them again"
BENCHMARK = tiny.few_cells(
    models=[{"kind": "checkpoint", "builder": "my_network:build", "name": "m"}], threat={"kind": "clean"}
)


@pytest.fixture
def edit(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Write the network's files, which are imported anew at each run."""
    (here / "my_network.py").write_text(NETWORK)
    (here / "my_part.py").write_text(PART)
    (here / "factor.json").write_text("1.0")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    _forget()


def _forget() -> None:
    for name in ("my_network", "my_part"):
        sys.modules.pop(name, None)


def ran(run: Run, *arguments: str) -> tuple[float | None, str]:
    """Return the clean accuracy of a run, and what it has printed."""
    _forget()
    ended = run(BENCHMARK, *arguments)
    assert ended.code == 0, ended.err
    (baseline,) = (row for row in csv_file.read_rows(Path("leaderboards/tiny.csv")) if row.kind == "baseline")
    return baseline.clean, ended.err


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("my_network.py", "self.sign = quadrants(), 1", "self.sign = quadrants(), -1", ANSWERS),
        ("my_network.py", "* self.sign", "* -self.sign", ANSWERS),
        ("my_part.py", "return logits", "return -logits", ANSWERS),
        ("factor.json", "1.0", "-1.0", ANSWERS),
        ("my_part.py", "def flip", "# more to come\ndef flip", CODE),
    ],
)
@pytest.mark.usefixtures("edit")
def test_a_rerun_after_an_edit_is_the_run_from_scratch(
    here: Path, run: Run, file: str, old: str, new: str, told: str
) -> None:
    first, _ = ran(run)
    text = (here / file).read_text()
    (here / file).write_text(text.replace(old, new))
    edited, err = ran(run)
    assert told in err
    scratch, err = ran(run, "--runs", "scratch")
    assert "computing them again" not in err
    assert edited == scratch == (first if told == CODE else 0.0)
    again, err = ran(run)
    assert again == edited
    assert "computing" not in err
    (here / file).write_text(text)
    assert ran(run)[0] == first, "what was computed before the edit is there still"


@pytest.mark.usefixtures("edit")
def test_answers_that_differ_by_rounding_are_the_same_network(here: Path, run: Run) -> None:
    ran(run)
    (here / "factor.json").write_text("1.00001")
    _, err = ran(run)
    assert "computing" not in err


def test_fresh_computes_everything_again_and_keeps_what_was_there(here: Path, run: Run) -> None:
    assert run(tiny.few_cells()).code == 0
    ledger = (here / "runs/tiny/ledger.sqlite").read_bytes()
    for number in (1, 2):
        ended = run(tiny.few_cells(), "--fresh")
        assert ended.code == 0
        assert f"earlier results moved to runs/tiny.old-{number}" in ended.err
        assert "computing on 1 worker" in ended.err
    assert (here / "runs/tiny.old-1/ledger.sqlite").read_bytes() == ledger
    assert commands.trials(here / "runs").keys() == commands.trials(here / "runs", "tiny.old-1").keys()


THREAT = """
from typing import ClassVar
from harness.threats.lp import Linf
from my_strength import STRENGTH
class Shift(Linf):
    kind: ClassVar[str] = "shift"
    sigma: float = 0.5
    @property
    def stages(self): return ("shift",)
    def attempts(self, stage, ranking):
        from harness.api.trial import Attempt
        return (Attempt(stage),)
    def stage_identity(self, stage): return {"stage": stage}
    def attack_machine(self, *args): return None
    def perturb(self, stage, network, batch, noise): return (batch.x + STRENGTH * self.sigma * self.eps).clamp(0, 1)
"""


def test_a_threats_code_and_each_field_that_it_adds_are_part_of_the_identity(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(here))
    (here / "my_strength.py").write_text("STRENGTH = 1\n")
    (here / "my_threat.py").write_text(THREAT)
    my_threat = import_module("my_threat")

    before = code_of_classes(my_threat.Shift)
    (here / "my_strength.py").write_text("STRENGTH = 2\n")
    assert code_of_classes(my_threat.Shift) != before
    assert my_threat.Shift(eps=0.1, sigma=0.25).own_parameters() == {"sigma": 0.25}
    for name in ("my_threat", "my_strength"):
        del sys.modules[name]


@pytest.mark.usefixtures("here")
def test_a_run_asks_for_results_by_the_code_of_its_threat() -> None:
    benchmark = parse_benchmark({"name": "tiny"} | tiny.mapping(threat={"kind": "dim"}))
    (model,) = benchmark.models
    task = task_of(benchmark, model, model.load(), "cpu", offline=True)
    assert task.code == code_of_classes(type(benchmark.threat)) != ""


def test_the_harness_own_threats_have_no_code_in_their_identity() -> None:
    assert code_of_classes(Linf) == ""
    assert Linf(eps=0.1).own_parameters() == {}
    assert json.dumps(Linf(eps=0.1).identity()) == '{"kind": "Linf", "eps": 0.1}'
