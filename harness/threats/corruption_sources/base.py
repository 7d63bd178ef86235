"""What every place that has corrupted images must do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api.records import Batch

Stage = tuple[str, int]
"""A corruption and a severity."""


class CorruptionSource(ABC):
    """A place that has the corrupted twin of every image."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Its name on the leaderboard and in the identity."""

    @abstractmethod
    def prepare(self, root: Path, stages: Sequence[Stage], batch: Batch | None, offline: bool) -> None:
        """Have the images of ``stages`` there; ``batch`` holds a few clean ones, if there are any to look at.

        Raises:
            HarnessError: they cannot be had, or are of other images than ``batch``.
        """

    @abstractmethod
    def images(self, root: Path, corruption: str, severity: int, batch: Batch, seed: int) -> Tensor:
        """The twins of ``batch``, in its order, on the CPU: float32 [n, c, h, w] in [0, 1].

        Raises:
            DataError: they are not there, damaged, or of other images.
        """
