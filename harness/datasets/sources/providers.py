"""Where the pictures of a known data set come from, and how they get here."""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from harness.api.records import Target
from harness.errors import DataError, DataMissing
from harness.util.downloads import BadFile, Remote

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.datasets.sources.lazy import LazySource

Split = Literal["train", "test"]


class Provider(Protocol):
    """Somewhere that a data set comes from."""

    def open(self, root: Path, split: Split, target: Target, *, offline: bool) -> LazySource:
        """The pictures of ``split``, below ``root`` if they are there, else fetched.

        Raises:
            DataError: they cannot be had, or are damaged; says what to do.
        """


@dataclass(frozen=True)
class TorchVision:
    """A data set of torchvision, in torchvision's own layout.

    Args:
        name: of its class.
        place: where below the root its files lie.
        files: what must be there.
        address: where anyone can get them.
        train: what the class is given for the train split; what is not said here is ``split="train"``.
        test: and for the test split.
    """

    name: str
    place: str
    files: str
    address: str
    train: Mapping[str, Any] = field(default_factory=lambda: {"split": "train"})
    test: Mapping[str, Any] = field(default_factory=lambda: {"split": "test"})

    def open(self, root: Path, split: Split, target: Target, *, offline: bool) -> LazySource:
        """See `Provider.open`; what is there is never touched."""
        from harness.datasets.sources.lazy import LazySource, as_labels

        found = self._made(root, split, offline)
        place = str(root / self.place)
        return LazySource(lambda index: found[index][0], as_labels(_labels(found), target, place), place)

    def _made(self, root: Path, split: Split, offline: bool) -> Any:
        """The data set, of torchvision's class."""
        from torchvision import datasets

        official = getattr(datasets, self.name)
        arguments = self.train if split == "train" else self.test
        with redirect_stdout(sys.stderr):
            try:
                return official(root, **arguments, download=False)
            except Exception as error:  # torchvision's, the system's and those of the formats have no common base
                if offline:
                    raise self._unavailable(error, root / self.place) from error
            try:
                return official(root, **arguments, download=True)
            except Exception as error:
                place = root / self.place
                remedy = f"delete {place} and run again, or {self._by_hand(place)}"
                raise DataError(f"{place}: torchvision cannot get or read it ({_told(error)}); {remedy}") from error

    def _unavailable(self, error: Exception, place: Path) -> DataError:
        """What to say offline."""
        kept = "and offline nothing is downloaded"
        if not place.exists():
            return DataMissing(f"{place}: no such folder, {kept}; {self._by_hand(place)}")
        if isinstance(error, FileNotFoundError):
            return DataMissing(f"{place}: no file {error.filename or error}, {kept}; {self._by_hand(place)}")
        remedy = f"delete it and run without --offline, or {self._by_hand(place)}"
        return DataError(f"{place}: not whole, or damaged ({_told(error)}), {kept}; {remedy}")

    def _by_hand(self, place: Path) -> str:
        return f"to put it there by hand, get {self.address} and unpack it: {place} must hold {self.files}"


def _labels(found: Any) -> Any:
    """The labels of all, without opening a picture: torchvision has them under one of these names."""
    for name in ("targets", "_labels", "attr"):
        if hasattr(found, name):
            return getattr(found, name)
    return [label for _, label in found._samples]


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub, or its files in a folder of the data set's name below the root.

    Args:
        folder: that name.
        path: user/name on the hub.
        label: the column of the labels; that of the pictures is ``image``.
        revision: branch, tag or commit.
    """

    folder: str
    path: str
    label: str = "label"
    revision: str | None = None

    def open(self, root: Path, split: Split, target: Target, *, offline: bool) -> LazySource:
        """See `Provider.open`."""
        from harness.datasets.hugging_face import HuggingFace, read

        place = root / self.folder
        here = place.is_dir()
        dataset = HuggingFace(
            path=str(place) if here else self.path,
            revision=None if here else self.revision,
            split=split,
            label_column=self.label,
            labels=target,
        )
        by_hand = (
            f"to put it there by hand, write its splits with datasets.Dataset.to_parquet, pictures as image and labels "
            f"as {self.label}, as {place}/train.parquet and {place}/test.parquet"
        )
        return read(dataset, offline, by_hand)


@dataclass(frozen=True)
class MedMNIST:
    """A data set of MedMNIST v2, 28×28 pixels, in ``<root>/medmnist``."""

    name: str

    def open(self, root: Path, split: Split, target: Target, *, offline: bool) -> LazySource:
        """See `Provider.open`."""
        from harness.datasets.sources.lazy import LazySource, as_labels, in_memory

        path = root / "medmnist" / f"{self.name}.npz"
        url = f"https://zenodo.org/records/10519652/files/{self.name}.npz?download=1"
        images, labels = f"{split}_images", f"{split}_labels"
        _fetched(path, url, (images, labels), offline)
        y = _array(path, labels)
        return LazySource(in_memory(_array(path, images)), as_labels(y.reshape(len(y)), target, str(path)), str(path))


@dataclass(frozen=True)
class DSprites:
    """The 737,280 sprites, in ``<root>/dsprites``, of which the splits are a sample; black is 0, white 255."""

    def open(self, root: Path, split: Split, target: Target, *, offline: bool) -> LazySource:
        """See `Provider.open`."""
        from harness.datasets.sources.lazy import LazySource, as_labels, in_memory

        path = root / "dsprites" / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
        url = f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{path.name}"
        _fetched(path, url, ("imgs", "latents_values"), offline)
        latents = _array(path, "latents_values")
        chosen = sprites(len(latents), split)
        pixels = _rows(path, "imgs", chosen)
        pixels *= 255
        return LazySource(in_memory(pixels), as_labels(latents[chosen, ORIENTATION], target, str(path)), str(path))


ORIENTATION = 3
"""Of the latents: colour, shape, scale, orientation, x, y."""
SPRITES: Mapping[Split, slice] = {"test": slice(10_000), "train": slice(10_000, 60_000)}
"""Of a permutation of all."""


def sprites(size: int, split: Split) -> NDArray[Any]:
    """The numbers of the sprites of ``split`` among all ``size``, in the order of the split."""
    import numpy as np

    return np.random.default_rng(0).permutation(size)[SPRITES[split]]


def _fetched(path: Path, url: str, keys: Sequence[str], offline: bool) -> None:
    """Have ``path`` there, an .npz file with these arrays."""

    def check(file: Path) -> None:
        if not zipfile.is_zipfile(file):
            raise BadFile("is not an .npz file, or cut short")
        with zipfile.ZipFile(file) as archive:
            if missing := {f"{key}.npy" for key in keys} - set(archive.namelist()):
                raise BadFile(f"has no {', no '.join(sorted(missing))} in it")

    Remote(path, url, check, error=DataError, missing=DataMissing).ensure(offline)


FAULTS = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged .npz file may raise."""


def _array(path: Path, key: str) -> NDArray[Any]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            array: NDArray[Any] = archive[key]
            return array
    except FAULTS as error:
        raise DataError(f"{path}: {key} is damaged ({error}); delete the file and run again") from error


def _rows(path: Path, key: str, chosen: NDArray[Any]) -> NDArray[Any]:
    """Some rows of an array, in that order; the others (3 GB of sprites) pass by in blocks and are forgotten."""
    import numpy as np
    from numpy.lib import format as npy

    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as stream:
            npy.read_magic(stream)
            shape, by_column, dtype = npy.read_array_header_1_0(stream)  # what numpy writes of any array of numbers
            if by_column:
                raise ValueError("it is stored by column")
            found = np.empty((len(chosen), *shape[1:]), dtype)
            for start in range(0, shape[0], BLOCK):
                stop = min(start + BLOCK, shape[0])
                raw = stream.read((stop - start) * found[:1].nbytes)
                block = np.frombuffer(raw, dtype).reshape(stop - start, *shape[1:])
                here = (start <= chosen) & (chosen < stop)
                found[here] = block[chosen[here] - start]
            return found
    except FAULTS as error:
        raise DataError(f"{path}: {key} is damaged ({error}); delete the file and run again") from error


BLOCK = 8192
"""Rows read at once."""
