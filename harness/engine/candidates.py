"""Adversarial images from the ledger, shown to a steering that has not seen them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.api.work import Adversaries, Cell
from harness.engine.ledger import Ledger, read_adversaries
from harness.scheduling.replay import _fooling, _lost
from harness.scheduling.trials import REPLAY, REPLAY_FIRST

if TYPE_CHECKING:
    from torch import Tensor

    from harness.scheduling.state import State


def packed(cell: Cell, state: State[Any], number: int, ledger: Ledger) -> Cell:
    """A lane's cell as it is sent to a worker: with the images to be shown, read from the ledger."""
    if cell.stage == REPLAY:
        return replace(cell, shown=_read(ledger, cell.sources, cell.standing))
    if cell.stage == REPLAY_FIRST:
        lost = _lost(state.done[state.followed[number]], cell.shard.images)
        return replace(cell, shown=_read(ledger, _fooling(lost, cell.standing), cell.standing))
    return cell


def _read(ledger: Ledger, keys: Sequence[str], standing: Sequence[int]) -> Adversaries:
    """The adversarial images of these outcomes that were made from one of ``standing``."""
    import torch

    images: list[Tensor] = []
    indices: list[int] = []
    wanted = set(standing)
    for key in keys:
        found = read_adversaries(ledger.adversaries(key))
        positions = [position for position, image in enumerate(found.indices) if image in wanted]
        images.append(found.images[positions])
        indices += [found.indices[position] for position in positions]
    return Adversaries(torch.cat(images) if images else torch.empty(0), tuple(indices))
