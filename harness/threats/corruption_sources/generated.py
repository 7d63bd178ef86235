"""Corrupted images that a library makes of the clean ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import DataError, SpecError
from harness.threats.corruption_sources.base import CorruptionSource, Stage

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api.records import Batch


class Generated(CorruptionSource):
    """Made of the clean images by the library ``imagecorruptions-imaug``, with ImageNet-C's strengths at any size.

    The clean images are rounded to 8 bits first, as the library takes no others.
    """

    LIBRARY = "imagecorruptions-imaug"
    SEEDED = frozenset({"impulse_noise", "glass_blur"})
    """These do not draw from numpy's global generator, and take a seed instead."""

    @property
    def label(self) -> str:
        """The library and its version: another version may make other images.

        Raises:
            SpecError: it is not installed.
        """
        try:
            return f"generated:{self.LIBRARY}-{metadata.version(self.LIBRARY)}"
        except metadata.PackageNotFoundError as error:
            raise SpecError(
                f"threat.source: generated corruptions need the package {self.LIBRARY}, which is not installed; "
                "pip install 'ct-harness[corruptions]'"
            ) from error

    def prepare(self, root: Path, stages: Sequence[Stage], batch: Batch | None, offline: bool) -> None:
        """See `CorruptionSource.prepare`."""
        self._library()
        if batch is None:
            return
        channels, height, width = batch.x.shape[1:]
        if channels != 3 or min(height, width) < 32:
            raise DataError(
                f"threat.source: {self.LIBRARY} corrupts colour images of 32×32 pixels or more, "
                f"found {channels}×{height}×{width}; use larger images or another threat"
            )

    def images(self, root: Path, corruption: str, severity: int, batch: Batch, seed: int) -> Tensor:
        """See `CorruptionSource.images`; an image's noise depends on the seed and its number alone."""
        import numpy as np
        import torch

        corrupt = self._library().corrupt
        clean = (batch.x.cpu() * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        made = np.empty_like(clean)
        with _global_generator_restored():
            for row, number in enumerate(batch.indices.tolist()):
                [drawn] = np.random.SeedSequence([seed, number, *corruption.encode()]).generate_state(1).tolist()
                np.random.seed(drawn)
                given = {"seed": drawn} if corruption in self.SEEDED else {}
                made[row] = corrupt(clean[row], severity=severity, corruption_name=corruption, **given)
        return torch.from_numpy(made.transpose(0, 3, 1, 2).astype("float32") / 255)

    def _library(self) -> Any:
        label = self.label
        try:
            return import_module("imagecorruptions")
        except ImportError as error:
            raise SpecError(f"threat.source: {label} cannot be imported ({error}); repair its installation") from error


@contextmanager
def _global_generator_restored() -> Iterator[None]:
    """The library draws from numpy's global generator; the caller's is left as it was."""
    import numpy as np

    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)
