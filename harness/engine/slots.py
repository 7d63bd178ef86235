"""Slots: trials of one stage advance together in a step machine, each at its own step, and leave when they end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.api.attack import Attack
from harness.engine.step_graph import Recorder, Replayed, state_of

REFILL = 4
"""Share of the slots, as a divisor, that must be free before they are filled again: starting a few costs much."""
STRIDE = 8
"""Steps between two looks at a GPU; on a CPU a look costs nothing."""


class Ended(NamedTuple):
    """A trial that has ended.

    Args:
        number: its number, from 0.
        steps: steps that it took.
        found: image [c, h, w] that has fooled the network, to be verified; None if there is none.
    """

    number: int
    steps: int
    found: Tensor | None


class Packed:
    """A network as a step machine sees it, which computes the occupied slots alone.

    Args:
        network: network of the images in some slots, int64 [m]: from [m, c, h, w] and the slots to logits [m, classes].
        slots: number of all slots.
        device: device of the images.
        rows_for: number of rows to which so many images are padded, by repeating one; where a step is recorded, there
            are to be few such numbers.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        slots: int,
        device: torch.device,
        rows_for: Callable[[int], int] = int,
    ) -> None:
        self.network, self.slots, self.rows_for = network, slots, rows_for
        self.rows = slots
        self._every = torch.arange(slots, device=device)
        self._packing: dict[int, tuple[Tensor, Tensor]] = {}

    def occupy(self, occupied: list[int]) -> None:
        """Compute these slots from now on; the tensors that say which stay at their places in memory."""
        self.rows = min(self.rows_for(len(occupied)), self.slots)
        if self.rows == self.slots:
            return
        there, back = self._packing.setdefault(
            self.rows, (torch.zeros_like(self._every[: self.rows]), torch.zeros_like(self._every))
        )
        there.copy_(torch.tensor(occupied + occupied[-1:] * (self.rows - len(occupied))))
        places = dict(zip(occupied, range(len(occupied)), strict=True))
        back.copy_(torch.tensor([places.get(slot, 0) for slot in range(self.slots)]))

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits [w, classes] of images [w, c, h, w]; where a slot is empty, anything."""
        if self.rows == self.slots:
            return self.network(images, self._every)
        there, back = self._packing[self.rows]
        logits = self.network(_Rows.apply(images, there, back), there)
        return _Rows.apply(logits, back, there)  # type: ignore[no-any-return]


class _Rows(torch.autograd.Function):
    """Some rows of a tensor; of the gradient, the rows that lead back, so that nothing is added up."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.back = back
        return tensor.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(0, ctx.back), None, None


def enough_slots(width: int, trials: int) -> int:
    """Return the number of slots: no more than trials can fill, rounded up to a multiple of 16."""
    return min(width, -(-trials // 16) * 16)


def advance(
    attack: Attack,
    slots: int,
    trials: int,
    start: Callable[[Tensor, list[int]], None],
    packed: Packed,
    recorder: Recorder | None = None,
) -> Iterator[list[Ended]]:
    """Run trials through slots until all have ended, and yield those that have, as they do.

    Args:
        attack: step machine.
        slots: number of its slots.
        trials: number of trials, which are called 0, 1, ….
        start: puts the trials of these numbers into slots, int64 [k].
        packed: the network.
        recorder: records steps, to repeat them; None to run each as it is.
    """
    device = attack.finished.device
    stride = STRIDE if device.type == "cuda" else 1
    steps = torch.zeros(slots, dtype=torch.int64, device=device)
    take = _steps(attack, steps, packed, recorder)
    occupants = [-1] * slots
    waiting = 0
    while True:
        free = [slot for slot, trial in enumerate(occupants) if trial < 0]
        left = trials - waiting
        if left and len(free) >= min(max(slots // REFILL, 1), left):
            filled = free[: min(left, len(free))]
            numbers = list(range(waiting, waiting + len(filled)))
            places = torch.tensor(filled).to(device)
            start(places, numbers)
            steps.index_fill_(0, places, 0)
            for slot, number in zip(filled, numbers, strict=True):
                occupants[slot] = number
            waiting += len(filled)
        occupied = [slot for slot, trial in enumerate(occupants) if trial >= 0]
        if not occupied:
            return
        packed.occupy(occupied)
        while not (ended := _ended(attack, steps, occupied)):
            for _ in range(stride):
                take()
        yield _collect(attack, ended, occupants)


def _steps(attack: Attack, steps: Tensor, packed: Packed, recorder: Recorder | None) -> Callable[[], None]:
    """Return what takes a step of a machine, and counts it for each slot that is not finished."""

    def step() -> None:
        steps.add_(~attack.finished)
        attack.step(packed)

    if recorder is None or not recorder.usable or not attack.capturable:
        recorded = None
    else:
        state = [steps, *state_of(attack)]
        recorded = defaultdict[int, Replayed](lambda: Replayed(step, state, recorder))

    def take() -> None:
        attack.prepare()
        if recorded is None:
            step()
        else:
            recorded[packed.rows]()

    return take


def _ended(attack: Attack, steps: Tensor, occupied: list[int]) -> list[tuple[int, int, bool]]:
    """Return the occupied slots whose trial has ended, with its steps and whether it has fooled; one copy for all."""
    if attack.finished.is_cpu and int(attack.finished.sum()) == len(steps) - len(occupied):
        return []  # a look costs less than a copy there
    finished, fooled, taken = torch.stack([attack.finished, attack.fooled, steps]).cpu().tolist()
    return [(slot, taken[slot], bool(fooled[slot])) for slot in occupied if finished[slot]]


def _collect(attack: Attack, ended: list[tuple[int, int, bool]], occupants: list[int]) -> list[Ended]:
    """Take the trials that have ended out of their slots."""
    wanted = [slot for slot, _, fooled in ended if fooled]
    found = attack.found.detach().index_select(0, torch.tensor(wanted, dtype=torch.int64).to(attack.found.device))
    images = dict(zip(wanted, found, strict=True))
    result = [Ended(occupants[slot], steps, images.get(slot)) for slot, steps, _ in ended]
    for slot, *_ in ended:
        occupants[slot] = -1
    return result
