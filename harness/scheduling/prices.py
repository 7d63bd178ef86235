"""Prices of attempts: passes of an image through the network, as far as they are known beforehand. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.api.threat import Threat


def price(threat: Threat, stage: str, classes: int) -> float:
    """Return the number of passes that one attempt of a stage takes if the image survives it; 1 if it is not known.

    Args:
        threat: the threat.
        stage: name of the stage.
        classes: number of logits.
    """
    passes = threat.passes(stage, classes)
    return 1.0 if passes is None else (passes.forwards + passes.gradients) / max(attempts(threat, stage, classes), 1)


def attempts(threat: Threat, stage: str, classes: int) -> int:
    """Return the number of attempts of a stage on an image."""
    return len(threat.attempts(stage, tuple(range(1, min(classes, threat.ranks + 1)))))


def cheapest_first(threat: Threat, classes: int) -> Sequence[str]:
    """Return a threat's stages by the price of one attempt; equal ones in their order."""
    return sorted(threat.stages, key=lambda stage: price(threat, stage, classes))


def share(threat: Threat, stage: str, classes: int) -> float:
    """Return a stage's share of the price of all stages on an image that survives them, in [0, 1]."""
    prices = {one: price(threat, one, classes) * attempts(threat, one, classes) for one in threat.stages}
    return prices[stage] / max(sum(prices.values()), 1e-9)
