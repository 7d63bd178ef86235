"""Your own labelled images: two arrays in an .npz file."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api.dataset import Dataset
from harness.api.threat import beyond_box
from harness.errors import DataError, DataMissing
from harness.util.text import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.datasets.sources.in_memory import ArraySource

DARK = 16
"""Largest uint8 pixel of images that are nearly black, or not in 0 … 255; the digits of scikit-learn end at 16."""
MOST_CLASSES = 1_000_000
"""Number of classes that no network has."""

WRITE = "write it with numpy.savez(path, x=images, y=labels)"


class Arrays(Dataset):
    """The images ``x`` and labels ``y`` of an .npz file.

    Args:
        path: file written by ``numpy.savez(path, x=x, y=y)``, with images x [n, c, h, w], uint8 in 0 … 255 or float in
            [0, 1], and class numbers y, integers [n] ≥ 0.
    """

    kind: ClassVar[str] = "arrays"
    location_fields: ClassVar[frozenset[str]] = frozenset({"path"})

    path: str

    def open(self, *, offline: bool = False) -> ArraySource:
        """See `Dataset.open`."""
        from harness.datasets.sources.in_memory import ArraySource

        path = Path(self.path).absolute()
        arrays = _read(path)
        _check_images(arrays["x"], f"{path}: x")
        _check_labels(arrays["y"], len(arrays["x"]), f"{path}: y")
        return ArraySource(arrays["x"], arrays["y"])


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays x and y as they are stored."""
    from harness.datasets.sources.npz import read_array

    if not path.is_file():
        raise DataMissing(f"dataset.path: no file {path}; {WRITE}")
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # of zipfile and the system
        raise DataError(f"{path}: not an .npz file, or cut short; {WRITE}") from error
    with archive:
        keys = [name.removesuffix(".npy") for name in archive.namelist()]
        if missing := {"x", "y"} - set(keys):
            found = shown(", ".join(keys) or "nothing")[1:-1]
            absent = " and no ".join(sorted(missing))
            raise DataError(f"{path}: no array {absent} in it, only {found}; {WRITE}")
        if twice := {key for key in ("x", "y") if keys.count(key) > 1}:
            raise DataError(f"{path}: two arrays {min(twice)} in it; {WRITE}")
        return {key: read_array(archive, key, str(path), "write or copy the file again") for key in ("x", "y")}


def _check_images(x: NDArray[Any], where: str) -> None:
    if x.ndim != 4 or not x.size:
        raise DataError(f"{where} has shape {x.shape}; expected n×c×h×w, with at least one image")
    if x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        remedy = "transpose to n×c×h×w: x.transpose(0, 3, 1, 2)"
        raise DataError(f"{where} has shape {x.shape}, with the channels last; {remedy}")
    if x.dtype != "uint8" and x.dtype.kind != "f":
        raise DataError(f"{where} is {x.dtype}; expected uint8 in 0 … 255, or float in [0, 1]")
    low, high = float(x.min()), float(x.max())
    if math.isnan(low):  # NaN is the minimum of whatever holds one
        first = int(x.max(axis=(1, 2, 3)).argmax())
        raise DataError(f"{where} holds NaN, first in image {first}; fix or drop such images")
    if x.dtype == "uint8":
        return _refuse_dark(high, where)
    if excess := beyond_box(low, high):
        remedy = "divide by 255" if low >= 0 and 2 < high <= 255 else "undo the normalisation, or clip them"
        raise DataError(
            f"{where} is {x.dtype} from {low:g} to {high:g}; expected floats in [0, 1], found {excess}: {remedy}"
        )


def _refuse_dark(brightest: float, where: str) -> None:
    """Refuse uint8 images in which white is not 255, but 1 or 16, say: they would be black to every network."""
    if 0 < brightest <= DARK:
        raise DataError(
            f"{where} is uint8 and never above {brightest:g}, where white is 255: expected images that are not black; "
            f"if {brightest:g} is their white, save x / {brightest:g} as float32, and x / 255 if they are that dark"
        )


def _check_labels(y: NDArray[Any], n: int, where: str) -> None:
    if y.shape != (n,):
        raise DataError(f"{where} has shape {y.shape}; expected ({n},), a label for each of the {n} images")
    if y.dtype.kind not in "iu":
        raise DataError(f"{where} is {y.dtype}; expected class numbers, integers")
    for label, image in ((y.min(), y.argmin()), (y.max(), y.argmax())):
        if not 0 <= label < MOST_CLASSES:
            raise DataError(
                f"{where} has the label {label} at image {image}; expected class numbers, ≥ 0 and < {MOST_CLASSES:,}"
            )
