"""Attacks on normalised images, as ``protocol: paper`` has them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from harness.errors import ModelError

if TYPE_CHECKING:
    from harness.api.model import Scorable
    from harness.api.records import Batch
    from harness.models.loaded import Loaded
    from harness.models.normalisation import Normalised


def in_normalised_space(loaded: Scorable) -> tuple[Loaded, Normalised]:
    """The network that takes normalised images, and what normalises them.

    Raises:
        ModelError: the model does not say how its images are normalised.
    """
    from harness.models.loaded import Loaded
    from harness.models.normalisation import Normalised

    normalised = loaded.body
    if not (isinstance(loaded, Loaded) and isinstance(normalised, Normalised)):
        raise ModelError(
            "protocol: paper attacks normalised images, but this model does not say what its images are normalised by; "
            "give mean and std (kind: checkpoint), or set protocol=pixel"
        )
    return replace(loaded, network=normalised.network), normalised


def normalised(batch: Batch, by: Normalised) -> Batch:
    """The same images, normalised: [n, c, h, w], no longer in [0, 1]."""
    return replace(batch, x=by.normalise(batch.x))
