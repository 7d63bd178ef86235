"""How long a worker may be silent: far longer than its work can take, and for ever where nobody can tell."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import pytest
from helpers.portions import portion
from helpers.tiny import mapping

from harness.api.work import Portion
from harness.config.benchmark import parse_benchmark
from harness.errors import SpecError
from harness.executors.local import Local
from harness.executors.patience import LEAST, longest_silence

pytestmark = pytest.mark.usefixtures("here")


def work(pace: float, stage: str = "clean", **changes: Any) -> Portion:
    made = portion(mapping(**changes), stage=stage)
    return replace(made, task=replace(made.task, pace=pace))


def test_a_quick_model_has_an_hour() -> None:
    assert longest_silence(work(1e-4)) == LEAST == 3600


def test_a_slow_model_has_twenty_times_what_a_batch_takes_in_the_worst_case() -> None:
    attack = {"stages": ["apgd-ce"], "iterations": 100}
    changes = {"threat": {"kind": "Linf", "eps": 0.1, "attack": attack}, "batch_size": 64}
    alone = 10.0  # seconds for an image
    passes = 3 * 100  # each gradient is worth three forward passes
    assert longest_silence(work(alone, "apgd-ce", **changes)) == pytest.approx(20 * alone * 64 * passes, rel=0.05)
    assert longest_silence(work(alone, "clean", **changes)) == pytest.approx(20 * alone * 64)


def test_nobody_knows_how_long_a_fit_or_an_attack_of_a_third_party_takes() -> None:
    assert longest_silence(work(0.0)) == inf  # of a probe, which is not run before it is fitted
    assert longest_silence(work(10.0, "dim-1", threat={"kind": "dim"})) == inf


def test_the_users_limit_holds_for_loading_too() -> None:
    assert Local(time_limit=30).loading_limit == 30
    assert Local().loading_limit == 3600
    assert longest_silence(work(10.0), 30) == 30


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_local_and_ray_have_a_time_limit(kind: str) -> None:
    pytest.importorskip("ray")
    executor = parse_benchmark({"name": "tiny"} | mapping(executor={"kind": kind, "time_limit": 30})).executor
    assert executor.loading_limit == 30


def test_slurm_refuses_a_time_limit_and_names_its_own() -> None:
    pytest.importorskip("submitit")
    with pytest.raises(SpecError, match=r"executor\.time_limit: unknown key \(did you mean 'time'\?\)"):
        parse_benchmark({"name": "tiny"} | mapping(executor={"kind": "slurm", "time_limit": 30}))
