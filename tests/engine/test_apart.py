"""Whoever fails, fails alone: whatever a model's code does to its process, the others are scored."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from helpers import tiny
from helpers.commands import Ended, in_process
from helpers.packages import INSTALLED, python_path
from helpers.portions import portion
from helpers.tiny import mapping

from harness.config.benchmark import parse_benchmark
from harness.engine.evaluate import evaluate
from harness.engine.prepare import prepare_models
from harness.engine.session import model_session
from harness.errors import ModelError
from harness.executors.local import Local
from harness.util import process
from harness.util.foreign import told

NETWORKS = """
import os, sys, time
from tiny_networks import mixed

def network(forward):
    made = mixed()
    class Ends(type(made)):
        def forward(self, x):
            forward()
            return super().forward(x)
    made.__class__ = Ends
    return made

def raises(error):
    raise error

def builder_exits(): sys.exit(0)
def builder_ends(): os._exit(0)
def builder_interrupts(): raise KeyboardInterrupt
def forward_exits(): return network(lambda: sys.exit(0))
def forward_ends(): return network(lambda: os._exit(0))
def forward_closes(): return network(lambda: raises(GeneratorExit()))
def forward_waits(): return network(lambda: time.sleep(600))

def builder_patches():
    import torch
    torch.nn.functional.relu = lambda x, inplace=False: x
    torch.set_default_dtype(torch.float64)
    raise MemoryError("h" * 1_000_000)

def prints():
    print("\\x1b[31mchatter\\x1b[0m\\r0 %\\r100 %")
    print("x" * 50 + "\\n", end="" , flush=True)
    for _ in range(1000):
        print("y" * 100)
    return mixed()
"""
"""Networks of `tiny_networks` with one fault each; those of the last kind print."""

FAULTS = {
    "ends_nets:builder_exits": r"builder '.*builder_exits': it called sys\.exit\(0\); it must return the network",
    "ends_nets:builder_ends": r"its code has ended the process in which it was loaded and tried \(exit code 0\)",
    "ends_nets:builder_interrupts": r"builder '.*builder_interrupts': raised KeyboardInterrupt\(\);",
    "ends_nets:forward_exits": r"cannot be run: it called sys\.exit\(0\)",
    "ends_nets:forward_ends": r"its code has ended the process .*\(exit code 0\)",
    "ends_nets:forward_closes": "cannot be run: it raised GeneratorExit",
    "ends_nets:builder_patches": r"builder '.*builder_patches': raised MemoryError\('h{500,2000} … h{500,2000}'\);",
    "ends_args:build": r"its module 'ends_args' ends the process when it is imported: it called sys\.exit\(2\)",
    "ends_import:build": r"ends the process when it is imported: it called sys\.exit\('no GPU found'\)",
}
"""Builders, and why their models fail."""

IMPORTED = {
    "ends_args": "import argparse\nfrom tiny_networks import mixed as build\nargparse.ArgumentParser().parse_args()\n",
    "ends_import": "import sys\nsys.exit('no GPU found')\n",
    "ends_nets": NETWORKS,
}


def ct_harness(folder: Path, *arguments: str) -> Ended:
    """Run ``ct-harness`` in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "harness", *arguments], cwd=folder, env=os.environ, text=True,
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def checkpoint(builder: str) -> dict[str, Any]:
    return {"kind": "checkpoint", "builder": builder, "name": builder.replace(":", ".")}


@dataclass(frozen=True)
class Faulty:
    """A run of models with one fault each, and of one without."""

    ended: Ended
    doctor: Ended
    board: pd.DataFrame


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("faulty")
    tiny.save_images(made)
    for name, code in IMPORTED.items():
        (made / f"{name}.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", python_path(INSTALLED))
        yield made


@contextmanager
def there(folder: Path) -> Iterator[None]:
    """In the directory of the networks, as ``python -m harness`` finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for path in (INSTALLED, folder):
            patch.syspath_prepend(str(path))
        yield


@pytest.fixture(scope="module")
def faulty(folder: Path) -> Faulty:
    models = [*map(checkpoint, FAULTS), checkpoint("ends_nets:prints")]
    benchmark = mapping(models=models, threat={"kind": "clean"}, executor={"kind": "local", "workers": 1})
    (folder / "tiny.yaml").write_text(yaml.safe_dump(benchmark))
    ended = ct_harness(folder, "run", "tiny.yaml")
    few = json.dumps([checkpoint("ends_nets:builder_exits"), checkpoint("ends_nets:builder_ends")])
    with there(folder):
        doctor = in_process("doctor", "tiny.yaml", "--set", f"models={few}")
    return Faulty(ended, doctor, pd.read_csv(folder / "leaderboards" / "tiny.csv"))


@pytest.mark.slow
@pytest.mark.parametrize("builder", FAULTS)
def test_a_model_that_ends_its_process_is_a_failed_row(faulty: Faulty, builder: str) -> None:
    rows = faulty.board[faulty.board["model"] == checkpoint(builder)["name"]]
    (status,) = rows["status"]
    assert re.match(f"failed: .*{FAULTS[builder]}", status)


@pytest.mark.slow
def test_the_others_are_scored_and_the_exit_code_says_that_some_failed(faulty: Faulty) -> None:
    assert faulty.ended.code == 1, faulty.ended.err
    rows = faulty.board[faulty.board["model"] == checkpoint("ends_nets:prints")["name"]]
    assert len(rows) > 2
    assert (rows["clean"] > 0.5).all()


@pytest.mark.slow
def test_what_a_model_prints_comes_under_its_name_and_is_bounded(faulty: Faulty) -> None:
    own = [line for line in faulty.ended.err.splitlines() if line.startswith("ends_nets.prints: ")]
    assert own[0] == "ends_nets.prints: 100 %"
    assert "\x1b" not in faulty.ended.err
    of_each_process = sum(map(len, own)) / 2  # where it is tried, and where it is scored
    assert 5_000 < of_each_process < 15_000
    assert own[-1] == "ends_nets.prints: prints more than 10,000 characters; the rest is left out"
    assert "chatter" not in faulty.ended.out


@pytest.mark.slow
def test_what_is_awaited_is_told_before_it_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "FIRST_NOTE", 1.0)
    limits = iter([300, 3])  # of the first model, for which the process is started, and of the second
    monkeypatch.setattr(Local, "loading_limit", property(lambda _: next(limits)))
    models = [checkpoint("tiny_networks:mixed"), checkpoint("ends_nets:forward_waits")]
    benchmark = mapping(name="tiny", models=models, executor={"kind": "local", "workers": 1})
    with there(folder):
        good, waits = prepare_models(parse_benchmark(benchmark), offline=True)
    assert good.failure is None, good.failure
    assert str(waits.failure) == "loaded and tried: no answer for 3 s; look where its code waits"
    told_first = "ends_nets.forward_waits: loaded and tried: no answer for 1 s; still waiting\n"
    assert told_first in capsys.readouterr().err


@pytest.mark.slow
def test_doctor_finds_them_and_does_not_end_with_them(faulty: Faulty) -> None:
    assert faulty.doctor.code == 2, faulty.doctor.err
    assert "it called sys.exit(0)" in " ".join(faulty.doctor.out.split())
    assert "2 problems" in faulty.doctor.out


# --- in a worker ---


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), KeyboardInterrupt(), SystemExit("no GPU")])
@pytest.mark.usefixtures("here")
def test_an_exit_during_a_trial_is_an_error_of_the_model(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    work = portion(mapping(threat={"kind": "dim"}), stage="dim-1", images=range(4))

    def ends_at_once(*_: object) -> Iterator[Any]:
        raise error
        yield

    monkeypatch.setattr("harness.engine.evaluate.run", ends_at_once)
    with pytest.raises(ModelError, match=re.escape(f"cannot be run: {told(error)}")):
        list(evaluate(work))


# --- weights that are none ---


@pytest.mark.usefixtures("here")
def test_a_network_that_was_never_trained_is_told_as_such() -> None:
    torch.manual_seed(1)
    work = portion(mapping(models=[{"kind": "checkpoint", "builder": "planted_networks:untrained"}]))
    model_session.cache_clear()  # as in another process
    with pytest.raises(ModelError, match=r"others each time that it is loaded, .* never trained; give .*\(weights\)"):
        list(evaluate(work))


@pytest.mark.usefixtures("here")
def test_weights_that_change_once_are_told_as_such() -> None:
    work = portion(mapping())
    work = replace(work, task=replace(work.task, weights_sha256="0" * 64))
    with pytest.raises(ModelError, match=r"its weights changed while the benchmark ran \(0{12} before\); run it again"):
        list(evaluate(work))
