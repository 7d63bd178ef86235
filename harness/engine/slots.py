"""Slots: trials of one stage advance together in a step machine, each at its own step, and leave when they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from harness.api.attack import Attack

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
    """

    def __init__(self, network: Callable[[Tensor, Tensor], Tensor], slots: int) -> None:
        self.network, self.slots = network, slots
        self.occupied = torch.empty(0, dtype=torch.int64)

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits [w, classes] of images [w, c, h, w]; 0 where a slot is empty."""
        if len(self.occupied) == self.slots:
            return self.network(images, self.occupied)
        logits = self.network(images.index_select(0, self.occupied), self.occupied)
        return logits.new_zeros(self.slots, logits.shape[1]).index_copy(0, self.occupied, logits)


def advance(
    attack: Attack,
    slots: int,
    trials: int,
    start: Callable[[Tensor, list[int]], None],
    network: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[list[Ended]]:
    """Run trials through slots until all have ended, and yield those that have, as they do.

    Args:
        attack: step machine.
        slots: number of its slots.
        trials: number of trials, which are called 0, 1, ….
        start: puts the trials of these numbers into slots, int64 [k].
        network: see `Packed`.
    """
    device = attack.finished.device
    packed = Packed(network, slots)
    stride = STRIDE if device.type == "cuda" else 1
    steps = torch.zeros(slots, dtype=torch.int64, device=device)
    occupants = [-1] * slots
    waiting = 0
    while True:
        free = [slot for slot, trial in enumerate(occupants) if trial < 0]
        left = trials - waiting
        if left and len(free) >= min(max(slots // REFILL, 1), left):
            filled = free[: min(left, len(free))]
            numbers = list(range(waiting, waiting + len(filled)))
            places = torch.tensor(filled, device=device)
            start(places, numbers)
            steps.index_fill_(0, places, 0)
            for slot, number in zip(filled, numbers, strict=True):
                occupants[slot] = number
            waiting += len(filled)
        occupied = [slot for slot, trial in enumerate(occupants) if trial >= 0]
        if not occupied:
            return
        packed.occupied = torch.tensor(occupied, device=device)
        while int(attack.finished.sum()) == slots - len(occupied):
            for _ in range(stride):
                steps += ~attack.finished
                attack.prepare()
                attack.step(packed)
        yield _collect(attack, steps, occupants, occupied)


def _collect(attack: Attack, steps: Tensor, occupants: list[int], occupied: list[int]) -> list[Ended]:
    """Take the trials that have ended out of their slots."""
    finished, fooled, taken = (tensor.tolist() for tensor in (attack.finished, attack.fooled, steps))
    ended = [slot for slot in occupied if finished[slot]]
    wanted = [slot for slot in ended if fooled[slot]]
    images = dict(zip(wanted, attack.found[wanted].detach(), strict=True)) if wanted else {}
    result = [Ended(occupants[slot], taken[slot], images.get(slot)) for slot in ended]
    for slot in ended:
        occupants[slot] = -1
    return result
