"""Images held in memory as stored, and converted to float32 in [0, 1] when read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.api.dataset import Source
from harness.api.records import Batch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ArraySource(Source):
    """Images and labels in two arrays.

    Args:
        x: images [n, c, h, w], uint8 in 0 … 255 or float in [0, 1] but for rounding, which is clipped.
        y: class numbers, integers [n] ≥ 0.
        class_names: name of each class, by number; None where they have none.
    """

    x: NDArray[Any]
    y: NDArray[np.integer[Any]]
    class_names: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def labels(self) -> list[int]:
        """See `Source.labels`."""
        labels: list[int] = self.y.tolist()
        return labels

    def read(self, indices: tuple[int, ...]) -> Batch:
        """See `Source.read`."""
        import torch

        chosen = torch.tensor(indices, dtype=torch.int64)
        x = torch.from_numpy(self.x[chosen.numpy()].astype("float32"))
        y = torch.from_numpy(self.y[chosen.numpy()].astype("int64"))
        return Batch(x / 255 if self.x.dtype == "uint8" else x.clamp_(0, 1), y, chosen)
