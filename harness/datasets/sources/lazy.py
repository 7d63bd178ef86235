"""Pictures that a library decodes when they are read, and whose labels are known before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.api.dataset import Source
from harness.api.records import AS_STORED, Batch, Preprocessing, Target
from harness.datasets.sources.image_files import decoded, stacked
from harness.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class LazySource(Source):
    """Labelled pictures.

    Args:
        picture: opens the picture of a number.
        y: the labels of all, as `Batch` has them.
        where: where the pictures lie, for errors.
        preprocessing: how they become images of one size.
    """

    picture: Callable[[int], Image]
    y: NDArray[Any]
    where: str
    preprocessing: Preprocessing = AS_STORED

    def __len__(self) -> int:
        return len(self.y)

    def labels(self) -> list[int]:
        """See `Source.labels`; decodes no picture."""
        labels: list[int] = self.y.tolist()
        return labels

    def read(self, indices: tuple[int, ...]) -> Batch:
        """See `Source.read`; decodes these pictures and no others.

        Raises:
            DataError: one is not there or damaged, or they have different sizes.
        """
        import torch

        images = [
            decoded(partial(self.picture, index), f"{self.where}: picture {index}", self.preprocessing)
            for index in indices
        ]
        x = stacked(images, [f"picture {index}" for index in indices], self.where)
        return Batch(x, torch.from_numpy(self.y[list(indices)]), torch.tensor(indices, dtype=torch.int64))

    def prepared(self, preprocessing: Preprocessing) -> LazySource:
        """The same pictures as a model wants them; a model that does not say gets them as they are here."""
        return self if preprocessing == AS_STORED else replace(self, preprocessing=preprocessing)


def in_memory(pixels: NDArray[Any]) -> Callable[[int], Image]:
    """Opens the pictures of an array: uint8 [n, h, w] of grey levels, or [n, h, w, 3] of colours."""
    from PIL import Image

    return lambda index: Image.fromarray(pixels[index])


def as_labels(labels: Any, target: Target, where: str) -> NDArray[Any]:
    """Labels in whatever form a library has them, as `Batch` has them.

    Args:
        labels: a label for each picture; for attributes and values a row for each, or a single number.
        target: what they are.
        where: where they were found, for errors.

    Raises:
        DataError: they are something else.
    """
    import numpy as np

    try:
        found = np.asarray(labels)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"{where}: the rows are not of one length; expected {EXPECTED[target]}") from error
    if target == "class":
        good = found.ndim == 1 and found.dtype.kind in "iu" and found.min(initial=0) >= 0
        return _right(good, found, target, where).astype(np.int64)
    rows = found[:, None] if found.ndim == 1 else found
    if target == "attributes":
        good = rows.ndim == 2 and rows.dtype.kind in "biu" and bool(((rows == 0) | (rows == 1)).all())
        return _right(good, rows, target, where).astype(np.int64)
    good = rows.ndim == 2 and rows.dtype.kind in "fiu" and bool(np.isfinite(rows).all())
    return _right(good, rows, target, where).astype(np.float32)


EXPECTED: dict[Target, str] = {
    "class": "for each picture the number of its class, ≥ 0",
    "attributes": "for each picture a row of 0 and 1, one for each attribute",
    "values": "for each picture a row of finite numbers",
}


def _right(good: bool, labels: NDArray[Any], target: Target, where: str) -> NDArray[Any]:
    if not good:
        few = " ".join(str(labels[:3].tolist()).split())
        raise DataError(
            f"{where}: expected {EXPECTED[target]}; found {labels.dtype} {list(labels.shape)}: {few:.200} …"
        )
    return labels
