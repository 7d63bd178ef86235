"""Candidates of a replay: adversarial images that fooled other steerings, read from the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.api.work import Adversaries, Cell
from harness.engine.ledger import Ledger, read_adversaries
from harness.scheduling.replay import fooled_images, replay_sources
from harness.scheduling.trials import REPLAY, REPLAY_FIRST

if TYPE_CHECKING:
    from torch import Tensor

    from harness.scheduling.state import RunProgress


def with_candidates(cell: Cell, progress: RunProgress[Any], number: int, ledger: Ledger) -> Cell:
    """Return the cell as it is sent to a worker: a replay with its candidates, any other as it is.

    Args:
        cell: the next cell of a chain.
        progress: holds the chain, and the one that it follows.
        number: the chain's number.
        ledger: holds the adversarial images.
    """
    if cell.stage == REPLAY:
        return replace(cell, candidates=_read(ledger, cell.sources, cell.surviving))
    if cell.stage == REPLAY_FIRST:
        fooled = fooled_images(progress.done[progress.followed[number]], cell.shard.images)
        return replace(cell, candidates=_read(ledger, replay_sources(fooled, cell.surviving), cell.surviving))
    return cell


def _read(ledger: Ledger, sources: Sequence[str], surviving: Sequence[int]) -> Adversaries:
    """Read the adversarial images of these outcomes that were made from one of ``surviving``."""
    import torch

    images: list[Tensor] = []
    indices: list[int] = []
    wanted = set(surviving)
    for key in sources:
        found = read_adversaries(ledger.adversaries(key))
        positions = [position for position, image in enumerate(found.indices) if image in wanted]
        images.append(found.images[positions])
        indices += [found.indices[position] for position in positions]
    return Adversaries(torch.cat(images) if images else torch.empty(0), tuple(indices))
