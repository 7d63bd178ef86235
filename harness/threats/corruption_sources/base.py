"""Interface of a source of corrupted images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api.records import Batch

Level = tuple[str, int]
"""A corruption and its severity."""


class CorruptionSource(ABC):
    """A source of the corrupted version of every image."""

    concurrent: ClassVar[bool] = False
    """True if several threads may call `images` at once. It is worth it where images are decoded."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Name on the leaderboard and in the identity."""

    @abstractmethod
    def prepare(self, root: Path, levels: Sequence[Level], batch: Batch | None, offline: bool) -> None:
        """Make sure that the corrupted images are available and match the benchmark's.

        Args:
            root: directory that holds the official datasets.
            levels: corruptions and severities to be scored.
            batch: a few clean images to compare with; None if there are none.
            offline: refuse to download anything.

        Raises:
            HarnessError: the corrupted images cannot be had, or do not match ``batch``.
        """

    @abstractmethod
    def images(self, root: Path, corruption: str, severity: int, batch: Batch, seed: int) -> Tensor:
        """Return the corrupted version of each image, on the CPU: float32 [n, c, h, w] in [0, 1].

        Args:
            root: directory that holds the official datasets.
            corruption: name of the corruption.
            severity: severity of the corruption, 1 to 5.
            batch: clean images, in the order of the result.
            seed: seed of the noise; official datasets have none.

        Raises:
            DataError: the corrupted images are missing, damaged, or do not match ``batch``.
        """
