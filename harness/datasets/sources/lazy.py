"""Images decoded when they are read, with labels that are known in advance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.api.dataset import Source
from harness.api.records import AS_STORED, Batch, Preprocessing, Target
from harness.datasets.sources.image_files import decode, stack
from harness.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class LazySource(Source):
    """Labelled images that a library decodes one by one.

    Args:
        open_image: opens the image of an index.
        y: labels of all images, in the form of those of `Batch`.
        where: location of the images, for error messages.
        preprocessing: resizing and cropping applied to every image.
        class_names: name of each class, by number; None where they have none.
    """

    open_image: Callable[[int], Image]
    y: NDArray[Any]
    where: str
    preprocessing: Preprocessing = AS_STORED
    class_names: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.y)

    def labels(self) -> list[int]:
        """See `Source.labels`; decodes no image."""
        labels: list[int] = self.y.tolist()
        return labels

    def read(self, indices: tuple[int, ...]) -> Batch:
        """See `Source.read`; decodes no other images.

        Raises:
            DataError: an image is missing or damaged, or they differ in size.
        """
        import torch

        images = [
            decode(partial(self.open_image, index), f"{self.where}: image {index}", self.preprocessing)
            for index in indices
        ]
        x = stack(images, [f"image {index}" for index in indices], self.where)
        return Batch(x, torch.from_numpy(self.y[list(indices)]), torch.tensor(indices, dtype=torch.int64))

    def prepared(self, preprocessing: Preprocessing) -> LazySource:
        """Apply the model's preprocessing in place of the dataset's, which stays if the model has none."""
        return self if preprocessing == AS_STORED else replace(self, preprocessing=preprocessing)


def image_opener(pixels: NDArray[Any]) -> Callable[[int], Image]:
    """Return a function that opens the image of an index in an array, uint8 [n, h, w] (grey) or [n, h, w, 3] (RGB)."""
    from PIL import Image

    return lambda index: Image.fromarray(pixels[index])


def as_labels(labels: Any, target: Target, where: str) -> NDArray[Any]:
    """Convert a library's labels to the form of those of `Batch`.

    Args:
        labels: one label for each image; for attributes and values a row, or a single number, for each.
        target: kind of the labels.
        where: location of the labels, for error messages.

    Raises:
        DataError: the labels are not of that kind.
    """
    import numpy as np

    try:
        array = np.asarray(labels)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"{where}: rows of different lengths; expected {EXPECTED[target]}") from error
    if target == "class":
        valid = array.ndim == 1 and array.dtype.kind in "iu" and array.min(initial=0) >= 0
        return _checked(valid, array, target, where).astype(np.int64)
    rows = array[:, None] if array.ndim == 1 else array
    if target == "attributes":
        valid = rows.ndim == 2 and rows.dtype.kind in "biu" and bool(((rows == 0) | (rows == 1)).all())
        return _checked(valid, rows, target, where).astype(np.int64)
    valid = rows.ndim == 2 and rows.dtype.kind in "fiu" and bool(np.isfinite(rows).all())
    return _checked(valid, rows, target, where).astype(np.float32)


EXPECTED: dict[Target, str] = {
    "class": "for each image the number of its class, ≥ 0",
    "attributes": "for each image a row of 0 and 1, one for each attribute",
    "values": "for each image a row of finite numbers",
}


def _checked(valid: bool, labels: NDArray[Any], target: Target, where: str) -> NDArray[Any]:
    if not valid:
        first = " ".join(str(labels[:3].tolist()).split())
        raise DataError(
            f"{where}: expected {EXPECTED[target]}; found {labels.dtype} {list(labels.shape)}: {first:.200} …"
        )
    return labels
