"""Images and labels of a benchmark: opened once in a process, checked, and identified by hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from harness.api.dataset import Data, Dataset, Source
from harness.api.records import AS_STORED, Batch, Preprocessing, Target
from harness.api.threat import beyond_box
from harness.engine.class_names import numbered_as
from harness.engine.numerics import one_thread
from harness.errors import DataError
from harness.util.batching import batched
from harness.util.threads import in_threads, readers

R = TypeVar("R")

SLICE = 256
"""Images read at a time."""
PIECE = 8
"""Images that each thread reads at a time, where several do."""


@lru_cache(maxsize=4)
def source(dataset: Dataset, preprocessing: Preprocessing, offline: bool) -> Source:
    """Open ``dataset``, once in a process for each preprocessing."""
    return dataset.open(offline=offline).prepared(preprocessing)


def scored_source(
    dataset: Dataset, preprocessing: Preprocessing, offline: bool, class_names: tuple[str, ...]
) -> Source:
    """Open ``dataset``, with its classes numbered as in ``class_names``; see `numbered_as`."""
    return numbered_as(source(dataset, preprocessing, offline), class_names)


def open_data(
    dataset: Dataset, offline: bool, preprocessing: Preprocessing = AS_STORED, class_names: tuple[str, ...] = ()
) -> Data:
    """Read all chosen images and hash them.

    Args:
        dataset: the dataset, with the subset that the benchmark chooses.
        offline: whether to refuse every download.
        preprocessing: resizing and cropping that the model wants; part of what is hashed.
        class_names: names of the classes as the model numbers them; empty for the dataset's own numbers.

    Raises:
        DataError: the images are missing, or not float32 in [0, 1] with labels of the dataset's target.
    """
    opened = scored_source(dataset, preprocessing, offline, class_names)
    chosen = dataset.chosen(source(dataset, preprocessing, offline))

    def identify(batch: Batch) -> tuple[list[str], np.ndarray, list[str]]:
        _check(batch, dataset)
        x, y = batch.x.numpy(), batch.y
        return list(map(digest, x, y.tolist())), y.numpy(), list(map(of_pixels, x))

    with one_thread():  # of torch, since there are several of ours
        digests, labels, pixels = zip(*in_pieces(opened, chosen, identify, readers()), strict=True)
    names = dict(zip(chosen, chain.from_iterable(digests), strict=True))
    numbered = tuple(opened.class_names or ()) if dataset.target == "class" else ()
    return Data(names, np.concatenate(labels), frozenset(chain.from_iterable(pixels)), numbered)


def in_pieces(opened: Source, numbers: Sequence[int], work: Callable[[Batch], R], threads: int) -> list[R]:
    """Read images piece by piece, in threads if the source allows it, and return what ``work`` makes of each piece.

    Args:
        opened: opened dataset.
        numbers: the images.
        work: makes something of a piece, in the thread that has read it.
        threads: number of threads.

    Raises:
        Exception: the source's error for the first image that has one, or for images that differ in size.
    """
    size, threads = (PIECE, threads) if opened.concurrent else (SLICE, 1)

    def read(piece: tuple[int, ...]) -> tuple[torch.Size, R]:
        batch = _clipped(opened.read(piece))
        return batch.x.shape[1:], work(batch)

    found = in_threads(read, batched(numbers, size), threads)
    for place, (shape, _) in enumerate(found):
        if shape != found[0][0]:
            opened.read((numbers[0], numbers[place * size]))  # raises the source's own error
    return [made for _, made in found]


def _clipped(batch: Batch) -> Batch:
    """Return images without what rounding has put outside of [0, 1]; what is further outside is left, to be refused."""
    x = batch.x
    if not x.numel() or (x.min() >= 0 and x.max() <= 1) or beyond_box(x.min().item(), x.max().item()):
        return batch
    return replace(batch, x=x.clamp(0, 1))


def digest(x: np.ndarray, y: object) -> str:
    """Return a hash of an image's pixels [c, h, w] and its label, by which its results are found again."""
    return hashlib.sha256(f"{x.shape} {y} ".encode() + x.tobytes()).hexdigest()


class Image(NamedTuple):
    """An image that is kept.

    Args:
        x: pixels [c, h, w]: float32 in [0, 1], or uint8 where these are exactly such levels / 255.
        y: label.
        digest: see `digest`.
    """

    x: Tensor
    y: Tensor
    digest: str


class ImageCache:
    """Images that are read once and kept, as far as there is room for them. One thread at a time may read.

    Args:
        source: opened dataset.
        threads: number of threads that read what is missing.
        room: bytes of pixels that are kept at most.
    """

    def __init__(self, source: Source, threads: int = 1, room: int = 500_000_000) -> None:
        self._source, self._threads, self._room = source, threads, room
        self._kept: dict[int, Image] = {}

    def read(self, numbers: Sequence[int]) -> tuple[Batch, list[str]]:
        """Return images in this order, which may name one several times, and the digest of each."""
        missing = [number for number in dict.fromkeys(numbers) if number not in self._kept]
        found = self._kept | self._load(missing) if missing else self._kept
        x, y, digests = zip(*(found[number] for number in numbers), strict=True)
        return Batch(unpacked(x), torch.stack(y), torch.tensor(numbers)), list(digests)

    def _load(self, numbers: Sequence[int]) -> dict[int, Image]:
        pieces = in_pieces(self._source, numbers, _images, self._threads)
        loaded = dict(zip(numbers, chain.from_iterable(pieces), strict=True))
        for number, image in loaded.items():
            if image.x.nbytes <= self._room:
                self._room -= image.x.nbytes
                self._kept[number] = image._replace(x=image.x.clone())  # without the piece that it is a view of
        return loaded


def _images(batch: Batch) -> list[Image]:
    """Return the images of a batch as they are kept."""
    digests = map(digest, batch.x.numpy(), batch.y.tolist())
    return [Image(*each) for each in zip(packed(batch.x), batch.y, digests, strict=True)]


def packed(x: Tensor) -> list[Tensor]:
    """Return each image of a batch, float32 [n, c, h, w], as uint8 where `unpacked` gives back its bits."""
    levels = (x * 255).round_().to(torch.uint8)
    same = _divided(levels).view(torch.int32) == x.view(torch.int32)  # bits: -0 and 0 are equal, and so are denormals
    exact = same.flatten(1).all(1).tolist()
    return [few if is_exact else full for few, full, is_exact in zip(levels, x, exact, strict=True)]


def unpacked(images: Sequence[Tensor]) -> Tensor:
    """Return images [c, h, w], each uint8 in 0 … 255 or float32 in [0, 1], as float32 [n, c, h, w] in [0, 1]."""
    if all(image.dtype == torch.uint8 for image in images):
        return _divided(torch.stack(tuple(images)))
    return torch.stack([image if image.is_floating_point() else _divided(image) for image in images])


def _divided(levels: Tensor) -> Tensor:
    """Return uint8 levels as float32 in [0, 1], with the bits that every source gives them."""
    return levels.float().div_(255)


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
    low, high = x.min().item(), x.max().item()
    if excess := beyond_box(low, high):
        raise DataError(
            f"dataset: {dataset.kind}: images must lie in [0, 1], since eps is in pixels; found {low:.4g} … "
            f"{high:.4g}, {excess}. Leave normalisation to the model (checkpoint: mean, std)"
        )
    if dataset.target == "attributes" and not ((y == 0) | (y == 1)).all():
        raise DataError(f"dataset: {dataset.kind}: attributes must be 0 or 1, found {y.min()} … {y.max()}")
    if not y.double().isfinite().all():
        raise DataError(f"dataset: {dataset.kind}: values must be finite numbers, found {y[~y.isfinite()][0]}")
