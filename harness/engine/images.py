"""Images and labels of a benchmark: opened once in a process, checked, and identified by hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from harness.api.dataset import Data, Dataset, Source
from harness.api.records import AS_STORED, Batch, Preprocessing, Target
from harness.errors import DataError
from harness.util.batching import batched

SLICE = 256
"""Images read at a time."""


@lru_cache(maxsize=4)
def source(dataset: Dataset, preprocessing: Preprocessing, offline: bool) -> Source:
    """Open ``dataset``, once in a process for each preprocessing."""
    return dataset.open(offline=offline).prepared(preprocessing)


def open_data(dataset: Dataset, offline: bool, preprocessing: Preprocessing = AS_STORED) -> Data:
    """Read all chosen images and hash them.

    Args:
        dataset: the dataset, with the subset that the benchmark chooses.
        offline: whether to refuse every download.
        preprocessing: resizing and cropping that the model wants; part of what is hashed.

    Raises:
        DataError: the images are missing, or not float32 in [0, 1] with labels of the dataset's target.
    """
    opened = source(dataset, preprocessing, offline)
    digests: dict[int, str] = {}
    pixels: set[str] = set()
    labels: list[np.ndarray] = []
    for part in batched(dataset.chosen(opened), SLICE):
        batch = opened.read(part)
        _check(batch, dataset)
        labels.append(batch.y.numpy())
        for image, x, y in zip(part, batch.x.numpy(), batch.y.tolist(), strict=True):
            digests[image] = digest(x, y)
            pixels.add(of_pixels(x))
    return Data(digests, np.concatenate(labels), frozenset(pixels))


def digest(x: np.ndarray, y: object) -> str:
    """Return a hash of an image's pixels [c, h, w] and its label, by which its results are found again."""
    return hashlib.sha256(f"{x.shape} {y} ".encode() + x.tobytes()).hexdigest()


class ImageCache:
    """Images that are read once and kept, as far as there is room for them.

    Args:
        source: opened dataset.
        room: bytes of images that are kept at most.
    """

    def __init__(self, source: Source, room: int = 500_000_000) -> None:
        self._source, self._room = source, room
        self._kept: dict[int, tuple[Tensor, Tensor, str]] = {}

    def read(self, numbers: Sequence[int]) -> tuple[Batch, list[str]]:
        """Return images in this order, which may name one several times, and the digest of each."""
        missing = [number for number in dict.fromkeys(numbers) if number not in self._kept]
        found = self._kept | self._load(missing) if missing else self._kept
        x, y, digests = zip(*(found[number] for number in numbers), strict=True)
        return Batch(torch.stack(x), torch.stack(y), torch.tensor(numbers)), list(digests)

    def _load(self, numbers: Sequence[int]) -> dict[int, tuple[Tensor, Tensor, str]]:
        batch = self._source.read(tuple(numbers))
        loaded = {
            number: (x, y, digest(x.numpy(), y.tolist()))
            for number, x, y in zip(numbers, batch.x, batch.y, strict=True)
        }
        if len(self._kept) * batch.x[0].numel() * batch.x.element_size() < self._room:
            self._kept |= {number: (x.clone(), y, name) for number, (x, y, name) in loaded.items()}
        return loaded


def of_pixels(x: np.ndarray) -> str:
    """Return a hash of an image's pixels [c, h, w] alone, without its label and number."""
    return hashlib.sha256(x.tobytes()).hexdigest()


LABELS: Mapping[Target, tuple[torch.dtype, int]] = {
    "class": (torch.int64, 1), "attributes": (torch.int64, 2), "values": (torch.float32, 2),
}  # fmt: skip
"""Dtype and number of dimensions of the labels, by target."""


def _check(batch: Batch, dataset: Dataset) -> None:
    """Refuse images and labels that are not what `Batch` promises."""
    x, y = batch.x, batch.y
    dtype, dimensions = LABELS[dataset.target]
    fits = y.dtype == dtype and y.ndim == dimensions and len(y) == len(x)
    if x.dtype != torch.float32 or x.ndim != 4 or not fits:
        expected = f"{str(dtype).removeprefix('torch.')} {['[n]', '[n, k]'][dimensions - 1]}"
        raise DataError(
            f"dataset: {dataset.kind}: expected x float32 [n, c, h, w] and y {expected}, found x {x.dtype} "
            f"{list(x.shape)} and y {y.dtype} {list(y.shape)}"
        )
    if not (x.min() >= 0 and x.max() <= 1):  # NaN fails too
        raise DataError(
            f"dataset: {dataset.kind}: images must lie in [0, 1], since eps is in pixels; found {x.min():.4g} … "
            f"{x.max():.4g}. Leave normalisation to the model (checkpoint: mean, std)"
        )
    if dataset.target == "attributes" and not ((y == 0) | (y == 1)).all():
        raise DataError(f"dataset: {dataset.kind}: attributes must be 0 or 1, found {y.min()} … {y.max()}")
    if not y.double().isfinite().all():
        raise DataError(f"dataset: {dataset.kind}: values must be finite numbers, found {y[~y.isfinite()][0]}")
