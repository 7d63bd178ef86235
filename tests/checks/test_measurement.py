"""The cost of an image is that of a batch as wide as a run's, by a clock that the network itself winds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import tiny
from helpers.networks import network_of
from helpers.portions import portion
from torch import Tensor, nn

from harness.api.attack import Trials
from harness.api.records import Steering
from harness.attacks.autoattack import VERSIONS, Attack, Custom
from harness.checks import measurement
from harness.checks.cost import Costs, seconds
from harness.checks.measurement import measure, steps
from harness.engine import fixed_width
from harness.engine.computation import Computation
from harness.engine.session import model_session
from harness.threats.lp import Linf

CALL = 1e-3
"""Seconds of a call of the network, however many images it is given."""
STAGES = ["apgd-ce", "fab-t", "square"]
BUDGET = {"stages": STAGES, "iterations": 4, "targets": 2, "queries": 6}
CALLS = 1 + 5 + 2 * 4 * 2 + 7
"""Calls for images that survive: clean, APGD's steps and its start, FAB's two a step and target, Square's and its
start."""


class Clock:
    """Goes on by ``a_call`` at each call of the network, and by next to nothing when it is read."""

    def __init__(self) -> None:
        self.now, self.a_call = 0.0, CALL
        self.widths: list[int] = []

    def __call__(self) -> float:
        self.now += 1e-5
        return self.now

    def flatten(self, x: Tensor) -> Tensor:
        """Stand in for the first layer of every network of `tiny_networks`."""
        self.now += self.a_call
        self.widths.append(len(x))
        return x.flatten(1)


@pytest.fixture
def clock(here: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    for module in (measurement, fixed_width):
        monkeypatch.setattr(module, "perf_counter", clock)
    monkeypatch.setattr(nn.Flatten, "forward", lambda _, x: clock.flatten(x))
    model_session.cache_clear()
    yield clock
    model_session.cache_clear()


def computation(**changes: Any) -> Computation:
    """Return the computation of a tiny benchmark."""
    threat = {"kind": "Linf", "eps": 0.1, "attack": BUDGET}
    return Computation(portion(tiny.mapping(**{"threat": threat, "batch_size": 32} | changes)))


def measured(computation: Computation, trials: int = 1000) -> Costs:
    batch, _ = computation.batch(computation.portion.trials)
    return measure(computation, Steering(0.5), batch, trials)


@pytest.mark.parametrize("width", [16, 32, 64])
def test_an_image_costs_its_share_of_a_batch_as_wide_as_a_runs(width: int, clock: Clock) -> None:
    asked = computation(batch_size=width)
    costs = measured(asked)
    assert costs.width == width
    found = seconds(asked.portion.task.threat, costs)
    assert found == pytest.approx(CALLS * CALL / width, rel=0.02)
    assert clock.widths[-1] == width


def test_the_width_is_the_one_that_the_engine_would_choose(clock: Clock) -> None:
    """A call takes as long with more images, so the widest batch is the fastest."""
    assert measured(computation(batch_size="auto"), trials=10_000).width == fixed_width.LADDER[-1]


def test_a_batch_is_no_wider_than_a_worker_has_trials(clock: Clock) -> None:
    asked = computation(batch_size=64)
    costs = measured(asked, trials=20)
    assert costs.width == 32
    assert seconds(asked.portion.task.threat, costs) == pytest.approx(CALLS * CALL / 32, rel=0.02)


def test_a_network_that_is_slow_on_a_cpu_is_timed_on_a_few_images(clock: Clock) -> None:
    clock.a_call = 2 * measurement.QUICK
    asked = computation()
    costs = measured(asked)
    assert (costs.width, costs.attacks, max(clock.widths)) == (16, {}, measurement.FEW)
    assert costs.forward == pytest.approx(clock.a_call / measurement.FEW, rel=0.02)
    assert seconds(asked.portion.task.threat, costs) == pytest.approx(CALLS * clock.a_call / measurement.FEW, rel=0.02)


@pytest.mark.usefixtures("here")
def test_the_work_of_an_attack_outside_the_network_counts(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.attacks.square import Square

    step, prepare = Square.step, Square.prepare

    def slower(self: Square, network: Any) -> None:
        step(self, network)
        clock.now += 3 * CALL

    def slowly(self: Square) -> None:
        prepare(self)
        clock.now += 2 * CALL

    monkeypatch.setattr(Square, "step", slower)
    monkeypatch.setattr(Square, "prepare", slowly)
    asked = computation()
    found = seconds(asked.portion.task.threat, measured(asked))
    assert found == pytest.approx((CALLS + 7 * (3 + 2)) * CALL / 32, rel=0.02)


def test_threats_without_a_step_machine_cost_their_passes(clock: Clock) -> None:
    asked = computation(threat={"kind": "one_step", "eps": 0.1})
    costs = measured(asked)
    assert costs.attacks == {}
    assert seconds(asked.portion.task.threat, costs) == pytest.approx(2 * CALL / 32, rel=0.02)


ATTACKS: list[Attack] = ["standard", "rand", "plus", Custom(stages=("apgd-t", "fab-t", "fab"), iterations=7, targets=3)]


@pytest.mark.parametrize("attack", ATTACKS)
def test_steps_are_those_after_which_survivors_end(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network_of("digits_plain")
    threat = Linf(eps=1e-6, attack=attack)
    x = torch.rand(2, 1, 8, 8)
    y = net(x).argmax(1)
    for stage in VERSIONS[attack] if isinstance(attack, str) else attack.stages:
        if stage == "square":
            continue  # 5000 queries
        runs = threat.attempts(stage, range(1, 10))
        machine = threat.attack_machine(stage, 2, (1, 8, 8), 10, "cpu")
        variants = torch.full((2,), threat.variant(runs[0]))
        machine.start(torch.arange(2), Trials(x, y, (y + 1) % 10, torch.arange(2), variants))
        taken = 0
        while not machine.finished.all():
            machine.prepare()
            machine.step(net)
            taken += 1
        assert steps(threat.passes(stage, 10), machine) == taken * len(runs), stage


def test_memory_on_a_gpu_is_the_most_that_torch_held(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "_begin_to_count", lambda _: 1_000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 1_000 + 32 * 77)
    assert measured(computation()).working == int(measurement.SPARE * 77)


def test_no_gpu_is_asked_where_the_device_is_a_cpu(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a GPU was asked")

    for name in ("mem_get_info", "reset_peak_memory_stats", "memory_allocated", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, refused)
    assert measured(computation()).working > 0
