"""Recorded steps: every machine's can be repeated without Python, with the same bits; what cannot, is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from helpers.pretend_gpu import PretendGpu
from helpers.pretend_graph import PretendGraphs
from torch import Tensor

from harness.api.attack import Attack, Network, Trials
from harness.attacks import autoattack
from harness.attacks.norms import Norm
from harness.datasets.digits import Digits
from harness.engine.slots import Packed, advance
from harness.engine.step_graph import WARM_UP, CudaRecorder, state_of
from harness.models.demo import Demo

EPS: dict[Norm, float] = {"Linf": 0.1, "L2": 0.5, "L1": 4.0}
HARDER = {"fab-t": 0.3}
"""FAB finds its images in two or three steps otherwise."""
CUSTOM = {
    "apgd-ce": {"iterations": 12}, "apgd-t": {"iterations": 12}, "fab-t": {"iterations": 8}, "square": {"queries": 70},
}  # fmt: skip


def ended(
    made: Callable[[str], Attack], slots: int, recorder: Any = None, rows_for: Callable[[int], int] = int
) -> list[tuple[int, int, Tensor | None]]:
    """Run sixteen trials in slots, on the pretend GPU, and return each one's number, steps and image, in order."""
    gpu = PretendGpu()
    plain = Demo(name="digits_plain").load().network.requires_grad_(False)
    batch = Digits(n=40).open().read(tuple(range(40)))
    right = (plain(batch.x).argmax(1) == batch.y).nonzero().flatten()[:16]
    x, y = batch.x[right], batch.y[right]
    targets = plain(x).scatter(1, y[:, None], -torch.inf).argmax(1)
    with gpu:
        machine, network = made("meta"), gpu.module(plain)

        def start(places: Tensor, numbers: list[int]) -> None:
            trials = x[numbers], y[numbers], targets[numbers], torch.tensor(numbers) + 1000
            machine.start(places, Trials(*map(gpu.tensor, trials)))

        packed = Packed(lambda images, _: network(images), slots, torch.device("meta"), rows_for)
        some = advance(machine, slots, len(x), start, packed, recorder)
        every = [
            (one.number, one.steps, None if one.found is None else one.found.cpu()) for part in some for one in part
        ]
    assert not gpu.strays
    return sorted(every, key=lambda one: one[0])


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("stage", list(CUSTOM))
def test_every_attack_does_the_same_when_its_steps_are_repeated(stage: str, norm: Norm) -> None:
    """As slots empty and fill, at two numbers of rows."""
    attack = autoattack.Custom(stages=(stage,), **CUSTOM[stage])

    def machine(device: str) -> Attack:
        return autoattack.machine(
            stage,
            attack,
            norm=norm,
            eps=EPS[norm] * HARDER.get(stage, 1),
            slots=8,
            shape=(1, 8, 8),
            classes=10,
            device=device,
        )

    graphs = PretendGraphs()
    found, expected = ended(machine, 8, graphs, lambda n: 4 if n <= 4 else 8), ended(machine, 8)
    assert graphs.recorded in (1, 2), "one for each number of rows"
    assert graphs.repeated > 10
    assert len(found) == len(expected) == 16
    for (_, steps, image), (_, other_steps, other) in zip(found, expected, strict=True):
        assert steps == other_steps
        assert (image is None) == (other is None)
        if image is not None and other is not None:
            assert torch.equal(image, other)


class Counting(Attack):
    """A machine whose steps are counted in Python, which no recording repeats."""

    forwards, backwards, capturable = 1, 0, True

    def __init__(self, device: str, by_hand: bool = False, waits: bool = False) -> None:
        self.by_hand, self.waits, self.taken = by_hand, waits, 0
        self.count = torch.zeros(4, dtype=torch.int64, device=device)
        self.found = torch.zeros(4, 1, 8, 8, device=device)
        self.fooled, self.finished = (torch.full((4,), full, device=device) for full in (False, True))

    def start(self, slots: Tensor, trials: Trials) -> None:
        self.count.index_fill_(0, slots, 0)
        self.fooled.index_fill_(0, slots, False)
        self.finished.index_fill_(0, slots, False)

    def step(self, network: Network) -> None:
        network(self.found)
        self.taken += 1
        self.count += self.taken if self.by_hand else 1
        if self.waits:
            self.count[0].item()
        torch.ge(self.count, 9, out=self.finished)


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        (partial(Counting, by_hand=True), "repeated, it computes something else"),
        (partial(Counting, waits=True), "RuntimeError: operation not permitted"),
    ],
)
def test_what_cannot_be_repeated_is_told_and_runs_as_it_is(machine: Callable[[str], Attack], told: str) -> None:
    graphs = PretendGraphs()
    with pytest.warns(UserWarning, match=rf"a step cannot be recorded as a CUDA graph \({told}"):
        found = ended(machine, 4, graphs)
    assert not graphs.usable
    ended(machine, 4, graphs)  # nobody tries again, or hears of it again
    if "waits" in machine.keywords:  # type: ignore[attr-defined] # the steps on trial count too, by hand
        assert [one[1] for one in found] == [one[1] for one in ended(Counting, 4)]


def test_a_machine_that_does_not_promise_it_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "capturable", False)
    graphs, machine = PretendGraphs(), partial(Counting, by_hand=True)
    assert [one[1] for one in ended(machine, 4, graphs)] == [one[1] for one in ended(machine, 4)]
    assert graphs.recorded == 0


def test_memory_that_is_short_is_not_taken_for_something_else() -> None:
    class Full(PretendGraphs):
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        ended(Counting, 4, Full())


def test_the_state_of_a_machine_is_every_tensor_that_it_holds_anywhere() -> None:
    shared = torch.zeros(2)

    class Part:
        def __init__(self) -> None:
            self.a, self.b, self.text = shared, [torch.ones(1), (torch.ones(2), {"c": torch.ones(3)})], "text"

    class Whole:
        def __init__(self) -> None:
            self.part, self.again, self.own = Part(), shared, torch.ones(4)
            self.part_of = self

    found = state_of(Whole())
    assert sorted(len(tensor) for tensor in found) == [1, 2, 2, 3, 4]
    assert sum(tensor is shared for tensor in found) == 1
    assert WARM_UP > 0


class Allocator:
    """CUDA's pools of recorded memory, as torch has them: one whose last graph is gone takes no other."""

    def __init__(self) -> None:
        self.graphs: dict[int, int] = {}

    def graph(self) -> Any:
        allocator = self

        class Graph:
            number = -1

            def pool(self) -> int:
                return self.number

            def replay(self) -> None:
                pass

            def __del__(self) -> None:
                if self.number >= 0:
                    allocator.graphs[self.number] -= 1

        return Graph()

    @contextmanager
    def recording(self, graph: Any, pool: int | None, stream: object) -> Iterator[None]:
        number = len(self.graphs) if pool is None else pool
        if pool is not None and self.graphs[pool] == 0:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        self.graphs[number] = self.graphs.get(number, 0) + 1
        graph.number = number
        yield


def test_graphs_share_memory_while_one_of_them_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = Allocator()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", allocator.graph)
    monkeypatch.setattr(torch.cuda, "graph", allocator.recording)
    recorder = CudaRecorder("cuda")
    first = [recorder.record(lambda: None) for _ in range(2)]
    assert allocator.graphs == {0: 2}
    first.pop(0)
    first.append(recorder.record(lambda: None))
    assert allocator.graphs == {0: 2}
    first.clear()  # as at the end of a stage
    assert allocator.graphs == {0: 0}
    second = recorder.record(lambda: None)
    assert allocator.graphs == {0: 0, 1: 1}
    del second
