"""Providers of known datasets: the libraries and sites from which they are downloaded, and their layouts."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from harness.api.records import Target
from harness.datasets.sources.npz import read_array
from harness.errors import DataError, DataMissing
from harness.util.downloads import BadFile, Remote

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.datasets.sources.lazy import LazySource

Split = Literal["train", "test"]


class Provider(Protocol):
    """A library or site that provides a dataset."""

    def open(self, root: Path, split: Split, target: Target, *, offline: bool) -> LazySource:
        """Open the images of a split, and download them if they are missing.

        Args:
            root: directory of all datasets.
            split: ``train`` or ``test``.
            target: kind of the labels.
            offline: whether to refuse downloads.

        Raises:
            DataError: the images are missing and cannot be downloaded, or are damaged.
        """


@dataclass(frozen=True)
class TorchVisionProvider:
    """A dataset of torchvision, in torchvision's own layout.

    Args:
        name: name of its class in torchvision.
        directory: directory of its files below the root.
        files: files that the directory must hold, in words.
        url: address at which a person can get them.
        train: keyword arguments of the class for the train split.
        test: keyword arguments of the class for the test split.
    """

    name: str
    directory: str
    files: str
    url: str
    train: Mapping[str, Any] = field(default_factory=lambda: {"split": "train"})
    test: Mapping[str, Any] = field(default_factory=lambda: {"split": "test"})

    def open(self, root: Path, split: Split, target: Target, *, offline: bool) -> LazySource:
        """See `Provider.open`; existing files are never changed."""
        from harness.datasets.sources.lazy import LazySource, as_labels

        dataset = self._construct(root, split, offline)
        where = str(root / self.directory)
        y, names = as_labels(_labels(dataset), target, where), _class_names(dataset, target)
        return LazySource(lambda index: dataset[index][0], y, where, class_names=names)

    def _construct(self, root: Path, split: Split, offline: bool) -> Any:
        """Construct torchvision's own dataset."""
        from torchvision import datasets

        official = getattr(datasets, self.name)
        arguments = self.train if split == "train" else self.test
        with redirect_stdout(sys.stderr):
            try:
                return official(root, **arguments, download=False)
            except Exception as error:  # errors of torchvision, the system and the file formats have no common base
                if offline:
                    raise self._unavailable(error, root / self.directory) from error
            try:
                return official(root, **arguments, download=True)
            except Exception as error:
                directory = root / self.directory
                remedy = f"delete {directory} and run again, or {self._by_hand(directory)}"
                reason = f"torchvision cannot download or read it ({_in_one_line(error)})"
                raise DataError(f"{directory}: {reason}; {remedy}") from error

    def _unavailable(self, error: Exception, directory: Path) -> DataError:
        """Return the error to be raised offline."""
        offline = "and offline nothing is downloaded"
        by_hand = self._by_hand(directory)
        if not directory.exists():
            return DataMissing(f"{directory}: no such directory, {offline}; {by_hand}")
        if isinstance(error, FileNotFoundError):
            return DataMissing(f"{directory}: no file {error.filename or error}, {offline}; {by_hand}")
        remedy = f"delete it and run without --offline, or {by_hand}"
        return DataError(f"{directory}: incomplete, or damaged ({_in_one_line(error)}), {offline}; {remedy}")

    def _by_hand(self, directory: Path) -> str:
        return f"to put it there by hand, get {self.url} and unpack it: {directory} must hold {self.files}"


def _labels(dataset: Any) -> Any:
    """Return the labels of all images without opening one; torchvision keeps them under one of these names."""
    for name in ("targets", "_labels", "attr"):
        if hasattr(dataset, name):
            return getattr(dataset, name)
    return [label for _, label in dataset._samples]


def _class_names(dataset: Any, target: Target) -> list[str] | None:
    """Return torchvision's name of each class, by number; None where it has none, or several for one."""
    names = list(getattr(dataset, "classes", ())) if target == "class" else []
    return names if names and all(isinstance(name, str) for name in names) else None


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


@dataclass(frozen=True)
class HubProvider:
    """A dataset of the Hugging Face hub, or its files in a directory below the root.

    Args:
        directory: name of that directory.
        path: user/name on the hub.
        label: name of the column of labels; that of images is ``image``.
        revision: branch, tag or commit on the hub.
    """

    directory: str
    path: str
    label: str = "label"
    revision: str | None = None

    def open(self, root: Path, split: Split, target: Target, *, offline: bool) -> LazySource:
        """See `Provider.open`."""
        from harness.datasets.hugging_face import HuggingFace, read

        directory = root / self.directory
        local = directory.is_dir()
        dataset = HuggingFace(
            path=str(directory) if local else self.path,
            revision=None if local else self.revision,
            split=split,
            label_column=self.label,
            labels=target,
        )
        by_hand = (
            f"to put it there by hand, write its splits with datasets.Dataset.to_parquet, images as image and labels "
            f"as {self.label}, as {directory}/train.parquet and {directory}/test.parquet"
        )
        return read(dataset, offline, by_hand)


@dataclass(frozen=True)
class MedMNISTProvider:
    """A dataset of MedMNIST v2, 28×28 pixels, in ``<root>/medmnist``.

    Args:
        name: name of the dataset in MedMNIST.
    """

    name: str

    def open(self, root: Path, split: Split, target: Target, *, offline: bool) -> LazySource:
        """See `Provider.open`."""
        from harness.datasets.sources.lazy import LazySource, as_labels, image_opener

        path = root / "medmnist" / f"{self.name}.npz"
        url = f"https://zenodo.org/records/10519652/files/{self.name}.npz?download=1"
        images, labels = f"{split}_images", f"{split}_labels"
        _ensure_npz(path, url, (images, labels), offline)
        y = _array(path, labels)
        open_image = image_opener(_array(path, images))
        return LazySource(open_image, as_labels(y.reshape(len(y)), target, str(path)), str(path))


@dataclass(frozen=True)
class DSpritesProvider:
    """The 737,280 sprites in ``<root>/dsprites``, of which the splits are a sample; black is 0, white 255."""

    def open(self, root: Path, split: Split, target: Target, *, offline: bool) -> LazySource:
        """See `Provider.open`."""
        from harness.datasets.sources.lazy import LazySource, as_labels, image_opener

        path = root / "dsprites" / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
        url = f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{path.name}"
        _ensure_npz(path, url, ("imgs", "latents_values"), offline)
        latents = _array(path, "latents_values")
        chosen = sprite_indices(len(latents), split)
        pixels = _rows(path, "imgs", chosen)
        pixels *= 255
        return LazySource(image_opener(pixels), as_labels(latents[chosen, ORIENTATION], target, str(path)), str(path))


ORIENTATION = 3
"""Column of the orientation among the latents: colour, shape, scale, orientation, x, y."""
SPRITES: Mapping[Split, slice] = {"test": slice(10_000), "train": slice(10_000, 60_000)}
"""Part of a random permutation of all sprites that is each split."""


def sprite_indices(size: int, split: Split) -> NDArray[Any]:
    """Return the indices of the sprites of ``split`` among all ``size``, in the order of the split."""
    import numpy as np

    return np.random.default_rng(0).permutation(size)[SPRITES[split]]


def _ensure_npz(path: Path, url: str, keys: Sequence[str], offline: bool) -> None:
    """Download the .npz file ``path`` if it is missing, and check that it has the arrays ``keys``."""

    def check(file: Path) -> None:
        if not zipfile.is_zipfile(file):
            raise BadFile("is not an .npz file, or cut short")
        with zipfile.ZipFile(file) as archive:
            if missing := {f"{key}.npy" for key in keys} - set(archive.namelist()):
                raise BadFile(f"has no {', no '.join(sorted(missing))} in it")

    Remote(path, url, check, error=DataError, missing=DataMissing).ensure(offline)


AGAIN = "delete the file and run again"


def _array(path: Path, key: str) -> NDArray[Any]:
    """Read an array of an .npz file."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # see read_array
        raise DataError(f"{path}: {key} is damaged ({error}); {AGAIN}") from error
    with archive:
        return read_array(archive, key, str(path), AGAIN)


def _rows(path: Path, key: str, chosen: NDArray[Any]) -> NDArray[Any]:
    """Read some rows of an array of an .npz file, block by block: all sprites would take 3 GB of memory."""
    import numpy as np
    from numpy.lib import format as npy

    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as stream:
            npy.read_magic(stream)
            shape, by_column, dtype = npy.read_array_header_1_0(stream)  # the version that numpy writes for numbers
            if by_column:
                raise ValueError("it is stored by column")
            rows = np.empty((len(chosen), *shape[1:]), dtype)
            for start in range(0, shape[0], BLOCK):
                stop = min(start + BLOCK, shape[0])
                raw = stream.read((stop - start) * rows[:1].nbytes)
                block = np.frombuffer(raw, dtype).reshape(stop - start, *shape[1:])
                in_block = (start <= chosen) & (chosen < stop)
                rows[in_block] = block[chosen[in_block] - start]
            return rows
    except Exception as error:  # see read_array
        raise DataError(f"{path}: {key} is damaged ({error}); {AGAIN}") from error


BLOCK = 8192
"""Rows read at a time."""
