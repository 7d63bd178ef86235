"""Adversarial images from the ledger, shown to a steering that has not seen them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.api.work import Adversaries, Cell
from harness.engine.ledger import Ledger, read_adversaries
from harness.scheduling.replay import fooled_by, outcomes_with
from harness.scheduling.trials import REPLAY, REPLAY_FIRST

if TYPE_CHECKING:
    from torch import Tensor

    from harness.scheduling.state import RunProgress


def packed(cell: Cell, state: RunProgress[Any], number: int, ledger: Ledger) -> Cell:
    """A lane's cell as it is sent to a worker: with the images to be shown, read from the ledger."""
    if cell.stage == REPLAY:
        return replace(cell, candidates=_read(ledger, cell.sources, cell.surviving))
    if cell.stage == REPLAY_FIRST:
        fooled = fooled_by(state.done[state.followed[number]], cell.shard.images)
        return replace(cell, candidates=_read(ledger, outcomes_with(fooled, cell.surviving), cell.surviving))
    return cell


def _read(ledger: Ledger, keys: Sequence[str], surviving: Sequence[int]) -> Adversaries:
    """The adversarial images of these outcomes that were made from one of ``surviving``."""
    import torch

    images: list[Tensor] = []
    indices: list[int] = []
    wanted = set(surviving)
    for key in keys:
        found = read_adversaries(ledger.adversaries(key))
        positions = [position for position, image in enumerate(found.indices) if image in wanted]
        images.append(found.images[positions])
        indices += [found.indices[position] for position in positions]
    return Adversaries(torch.cat(images) if images else torch.empty(0), tuple(indices))
