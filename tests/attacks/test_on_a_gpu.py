"""Every attack on the pretend GPU: the CPU's bits, no wait, a budget of operations, and memory that stays in place.

One table for all of them. Bits are compared where the sums are the same ones; a real GPU rounds in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from helpers.pretend_gpu import PretendGpu
from torch import Tensor, nn

from harness.api.attack import Attack, Network, Trials
from harness.api.trial import Attempt
from harness.attacks import autoattack, fab
from harness.attacks.autoattack import Custom, Name
from harness.attacks.norms import Norm
from harness.attacks.square_moves import AHEAD
from harness.testing import memory
from harness.util import noise

SLOTS, SHAPE, CLASSES = 9, (3, 11, 9), 10
"""297 pixels, enough for a CPU to take the ways of larger images."""
EPS: dict[Norm, float] = {"Linf": 0.012, "L2": 0.13, "L1": 1.0}
FARTHER = 3
"""Square, without gradients, gets a radius as many times as large."""
ITERATIONS, QUERIES = 12, AHEAD + 10
SHORT = {"iterations": ITERATIONS, "queries": QUERIES}


class Case(NamedTuple):
    """A stage of an attack in a ball, and how many operations a step takes besides the network's passes."""

    stage: Name
    norm: Norm
    budget: int
    version: autoattack.Attack | None = None
    triton: bool = False

    @property
    def name(self) -> str:
        version = self.version if isinstance(self.version, str) else ""
        return " ".join(filter(None, [self.stage, self.norm, version, "with Triton" if self.triton else ""]))

    def machine(self, device: str) -> Attack:
        version = self.version or Custom(stages=(self.stage,), **SHORT)
        return autoattack.machine(
            self.stage, version, norm=self.norm, eps=self.eps, slots=SLOTS, shape=SHAPE, classes=CLASSES,
            device=device,
        )  # fmt: skip

    @property
    def eps(self) -> float:
        return EPS[self.norm] * (FARTHER if self.stage == "square" else 1)

    @property
    def variant(self) -> int:
        return autoattack.variant(Attempt(self.stage, restart=1))

    @property
    def starts(self) -> dict[int, list[int]]:
        """At which step which slots are filled; Square plans ahead after `AHEAD` steps."""
        middle, turn = (AHEAD // 2, AHEAD) if self.stage == "square" else (3, 7)
        return {0: list(range(SLOTS)), middle: [2, 7], turn: [0, 3, 4]}

    @property
    def steps(self) -> int:
        return QUERIES + 5 if self.stage == "square" else ITERATIONS + 5


CASES = [
    Case("apgd-ce", "Linf", 77),
    Case("apgd-ce", "Linf", 724, "rand"),  # 20 gradients
    Case("apgd-ce", "L2", 91),
    Case("apgd-ce", "L1", 442),
    Case("apgd-ce", "L1", 442, "plus"),  # in one ball
    Case("apgd-dlr", "Linf", 77),
    Case("apgd-dlr", "L2", 91),
    Case("apgd-dlr", "L1", 442),
    Case("apgd-t", "Linf", 77),
    Case("apgd-t", "L2", 91),
    Case("apgd-t", "L1", 442),
    Case("fab", "Linf", 381),
    Case("fab", "Linf", 200, triton=True),
    Case("fab", "L2", 377),
    Case("fab", "L2", 189, triton=True),
    Case("fab", "L1", 295),
    Case("fab-t", "Linf", 222),
    Case("fab-t", "Linf", 41, triton=True),
    Case("fab-t", "L2", 227),
    Case("fab-t", "L2", 39, triton=True),
    Case("fab-t", "L1", 136),
    Case("square", "Linf", 18),
    Case("square", "L2", 49),
    Case("square", "L1", 237),
]
"""A step that becomes dearer fails here; one that becomes cheaper lowers its budget."""

cases = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(297, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    return layers.requires_grad_(False)


def trials_of(case: Case) -> Trials:
    x = torch.rand(100, *SHAPE, generator=torch.Generator().manual_seed(0))
    largest = network()(x).topk(2).values
    x = x[(largest[:, 0] - largest[:, 1]).argsort()[[0, 2, 4, 8, 16, 32, 50, 75, 99]]]  # from close to a boundary on
    ranking = network()(x).argsort(1, descending=True)
    keys = torch.tensor([noise.key_of("test", number) for number in range(SLOTS)])
    return Trials(x, ranking[:, 0], ranking[:, 1], keys, torch.full_like(keys, case.variant))


Outcome = tuple[Tensor, ...]


def outcome(machine: Attack) -> Outcome:
    return tuple(getattr(value, "here", value).clone() for value in (machine.found, machine.fooled, machine.finished))


def fill(machine: Attack, case: Case, step: int, place: Callable[[Tensor], Tensor]) -> None:
    if step in case.starts:
        slots = torch.tensor(case.starts[step])
        machine.start(place(slots), Trials(*(place(values[slots]) for values in trials_of(case))))  # type: ignore[index]


@cache
def on_the_cpu(case: Case) -> list[Outcome]:
    """Return the outcome after each step."""
    machine, outcomes, shown = case.machine("cpu"), list[Outcome](), network()
    for step in range(case.steps):
        fill(machine, case, step, lambda values: values)
        machine.prepare()
        machine.step(shown)
        outcomes.append(outcome(machine))
    return outcomes


class Run(NamedTuple):
    """What came of a case on the GPU: outcomes and operations besides the network's, after and of each step."""

    outcomes: list[Outcome]
    operations: list[int]
    gpu: PretendGpu


@contextmanager
def pretending(case: Case) -> Iterator[tuple[PretendGpu, Attack, nn.Module]]:
    """Yield the GPU, the case's machine on it and a network; Triton's kernel is one operation."""
    gpu = PretendGpu()

    def kernel(norm: Norm, device: torch.device) -> fab.Project:
        def project(*given: Tensor) -> Tensor:
            gpu.kernels["projection"] += 1
            return gpu.tensor(fab.PROJECT[norm](*(tensor.here for tensor in given)))  # type: ignore[attr-defined]

        return project

    with gpu, pytest.MonkeyPatch.context() as patch:
        if case.triton:
            patch.setattr(fab, "projection", kernel)
        yield gpu, case.machine("meta"), gpu.module(network())


@cache
def on_the_gpu(case: Case) -> Run:
    with pretending(case) as (gpu, machine, shown):
        run = Run([], [], gpu)
        own = operations_of(shown, gpu, machine.forwards, machine.backwards)
        gpu.forget()
        for step in range(case.steps):
            fill(machine, case, step, gpu.tensor)
            machine.prepare()
            before = gpu.kernels.total()
            machine.step(shown)
            run.operations.append(gpu.kernels.total() - before - own)
            run.outcomes.append(outcome(machine))
    return run


def operations_of(network: Network, gpu: PretendGpu, forwards: int, backwards: int) -> int:
    """Count the operations of so many passes of a network."""
    images = gpu.tensor(torch.rand(SLOTS, *SHAPE)).requires_grad_()
    gpu.forget()
    logits = network(images)
    forward = gpu.kernels.total()
    torch.autograd.grad(logits.sum(), images)
    return forwards * forward + backwards * (gpu.kernels.total() - forward)


@cases
def test_the_bits_are_the_cpu_s(case: Case) -> None:
    for step, (there, here) in enumerate(zip(on_the_gpu(case).outcomes, on_the_cpu(case), strict=True)):
        assert all(map(torch.equal, there, here)), f"step {step}"


@cases
def test_some_fall_and_some_do_not(case: Case) -> None:
    """Otherwise the other tests would say little."""
    assert any(fooled.any() for _, fooled, _ in on_the_cpu(case))
    assert not on_the_cpu(case)[ITERATIONS - 1][1].all()


@cases
def test_no_device_is_mixed_with_another_one(case: Case) -> None:
    assert not on_the_gpu(case).gpu.strays


@cases
def test_neither_a_start_nor_a_step_waits(case: Case) -> None:
    assert not on_the_gpu(case).gpu.waits


@cases
def test_a_step_keeps_within_its_budget_of_operations(case: Case) -> None:
    assert set(on_the_gpu(case).operations) == {case.budget}


@cases
def test_a_step_works_on_the_same_memory_and_changes_nothing_else(case: Case) -> None:
    """So that a CUDA graph of one step can be replayed for the others, whatever is started and planned in between."""
    with pretending(case) as (gpu, machine, shown):
        assert machine.capturable
        first = tensors_of(memory(machine))
        for step in range(case.steps):
            fill(machine, case, step, gpu.tensor)
            machine.prepare()
            before = memory(machine)
            machine.step(shown)
            assert memory(machine) == before
        assert tensors_of(memory(machine)) == first


def tensors_of(held: Any) -> list[Any]:
    """Return what `memory` says of the tensors alone."""
    if isinstance(held, tuple):
        return [held]
    parts = held.values() if isinstance(held, dict) else held if isinstance(held, list) else []
    return [tensor for part in parts for tensor in tensors_of(part)]


class Faulty(Attack):
    """Puts a tensor in another one's place, or counts on the host, or both within a helper."""

    forwards = backwards = 0

    def __init__(self, fault: str) -> None:
        self.found, self.fooled, self.finished = torch.zeros(1, 1, 2, 2), torch.zeros(1), torch.zeros(1)
        self.taken, self.fault = 0, fault
        self.helper = SimpleNamespace(best=[torch.zeros(1)], walked={"steps": 0})

    def start(self, slots: Tensor, trials: Trials) -> None:
        pass

    def step(self, network: Network) -> None:
        self.found += 1
        match self.fault:
            case "another tensor":
                self.found = self.found + 1
            case "a count":
                self.taken += 1
            case "another tensor in a helper":
                self.helper.best[0] = torch.zeros(1)
            case "a count in a helper":
                self.helper.walked["steps"] += 1


@pytest.mark.parametrize(
    "fault", ["", "another tensor", "a count", "another tensor in a helper", "a count in a helper"]
)
def test_a_planted_fault_would_be_found(fault: str) -> None:
    machine = Faulty(fault)
    before, held = memory(machine), [machine.found, *machine.helper.best]
    machine.step(lambda x: x)
    assert (memory(machine) == before) == (fault == "")
    assert held
