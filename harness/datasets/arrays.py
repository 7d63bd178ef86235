"""Your own labelled images: two arrays in an .npz file."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api.dataset import Dataset
from harness.errors import DataError, DataMissing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.datasets.sources.in_memory import ArraySource

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
    import numpy as np

    if not path.is_file():
        raise DataMissing(f"dataset.path: no file {path}; {WRITE}")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not an .npz file, or cut short; {WRITE}")
    with np.load(path, allow_pickle=False) as archive:
        if missing := {"x", "y"} - set(archive.files):
            found = ", ".join(archive.files) or "nothing"
            absent = " and no ".join(sorted(missing))
            raise DataError(f"{path}: no array {absent} in it, only {found}; {WRITE}")
        return {key: _array(archive, key, path) for key in ("x", "y")}


def _array(archive: Any, key: str, path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = archive[key]
    except ValueError as error:  # numpy's "Object arrays cannot be loaded when allow_pickle=False"
        raise DataError(f"{path}: {key} holds Python objects; save numbers, all of one shape") from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: {key} is damaged ({error}); write or copy the file again") from error
    return array


def _check_images(x: NDArray[Any], where: str) -> None:
    if x.ndim != 4 or not x.size:
        raise DataError(f"{where} has shape {x.shape}; expected n×c×h×w, with at least one image")
    if x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        remedy = "transpose to n×c×h×w: x.transpose(0, 3, 1, 2)"
        raise DataError(f"{where} has shape {x.shape}, with the channels last; {remedy}")
    if x.dtype == "uint8":
        return
    if x.dtype.kind != "f":
        raise DataError(f"{where} is {x.dtype}; expected uint8 in 0 … 255, or float in [0, 1]")
    low, high = float(x.min()), float(x.max())
    if math.isnan(low):  # NaN is the minimum of whatever holds one
        first = int(x.max(axis=(1, 2, 3)).argmax())
        raise DataError(f"{where} holds NaN, first in image {first}; fix or drop such images")
    if low < 0 or high > 1:
        remedy = "divide by 255" if low >= 0 and 1 < high <= 255 else "undo the normalisation"
        raise DataError(f"{where} is {x.dtype} from {low:g} to {high:g}; expected floats in [0, 1]: {remedy}")


def _check_labels(y: NDArray[Any], n: int, where: str) -> None:
    if y.shape != (n,):
        raise DataError(f"{where} has shape {y.shape}; expected ({n},), a label for each of the {n} images")
    if y.dtype.kind not in "iu":
        raise DataError(f"{where} is {y.dtype}; expected class numbers, integers")
    if y.min() < 0:
        raise DataError(f"{where} has the label {y.min()} at image {y.argmin()}; expected class numbers, ≥ 0")
