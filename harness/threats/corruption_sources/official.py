"""The published sets of corrupted images: what lies where, and whether it is whole and of the images at hand."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from harness.api.records import Preprocessing
from harness.errors import DataError, DataMissing
from harness.threats.corruption_sources.base import CorruptionSource, Stage
from harness.util.downloads import BadFile, Remote
from harness.util.lockfile import ON_PURPOSE, differs

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from harness.api.records import Batch

SIZE = 10_000
"""Images in the test set of CIFAR-10, and of CIFAR-100."""


@dataclass(frozen=True)
class CIFARC(CorruptionSource):
    """CIFAR-10-C or CIFAR-100-C: ``<root>/<name>/<corruption>.npy``, the test images at severity 1, then at 2, ….

    Args:
        name: of the set and its folder.
        record: on Zenodo.
    """

    name: str
    record: str

    @property
    def label(self) -> str:
        """The set's name."""
        return self.name

    @property
    def url(self) -> str:
        """Of the archive."""
        return f"https://zenodo.org/records/{self.record}/files/{self.name}.tar"

    def prepare(self, root: Path, stages: Sequence[Stage], batch: Batch | None, offline: bool) -> None:
        """See `CorruptionSource.prepare`; checks every file against ``models.lock`` and downloads a missing set."""
        folder = root.absolute() / self.name
        corruptions = tuple(dict.fromkeys(corruption for corruption, _ in stages))
        if not folder.is_dir():
            if offline:
                raise DataMissing(f"{folder}: no such folder, and offline nothing is downloaded; {self._by_hand(root)}")
            self._download(root.absolute(), corruptions)
        for name in ("labels", *corruptions):
            self._read(folder, name)
            if fault := differs(f"{self.url}#{name}.npy", folder / f"{name}.npy"):
                raise DataError(f"{folder / name}.npy {fault}; {self._by_hand(root)}, or {ON_PURPOSE}")
        if batch is not None:
            self._of_these_images(folder, batch)

    def images(self, root: Path, corruption: str, severity: int, batch: Batch, seed: int) -> Tensor:
        """See `CorruptionSource.images`; reads no more of the file than these images."""
        import torch

        folder = root.absolute() / self.name
        self._of_these_images(folder, batch)
        rows = (severity - 1) * SIZE + batch.indices.cpu().numpy()
        chosen = self._read(folder, corruption)[rows]
        return torch.from_numpy(chosen.transpose(0, 3, 1, 2).astype("float32") / 255)

    def _read(self, folder: Path, name: str) -> NDArray[Any]:
        """See `_array`; the error says what to do."""
        try:
            return _array(folder, name)
        except DataError as error:
            remedy = f"delete {folder} and run again, or {self._by_hand(folder.parent)}"
            raise type(error)(f"{error}; {remedy}") from error

    def _of_these_images(self, folder: Path, batch: Batch) -> None:
        """The set has images of this size with these numbers, and they have these labels."""
        numbers = batch.indices.cpu().numpy()
        remedy = "use the test set that it was made of, or source: generated"
        shape = list(batch.x.shape[1:])
        if shape != [3, 32, 32] or numbers.max() >= SIZE:
            raise DataError(
                f"{folder}: {self.name} has {SIZE:,} images of [3, 32, 32], and the data set has image number "
                f"{numbers.max()} of {shape}: the set and the data set do not match; {remedy}"
            )
        theirs, ours = self._read(folder, "labels")[numbers], batch.y.cpu().numpy()
        if (theirs != ours).any():
            first = int((theirs != ours).argmax())
            raise DataError(
                f"{folder / 'labels.npy'}: image {numbers[first]} has label {theirs[first]} in {self.name} and "
                f"{ours[first]} in the data set: the set and the data set do not match; {remedy}"
            )

    def _download(self, root: Path, corruptions: Sequence[str]) -> None:
        """The archive, unpacked, and put in its place only when it is whole; the archive is then deleted."""
        archive = Remote(
            root / f"{self.name}.tar", self.url, check=_archive, error=DataError, missing=DataMissing
        )  # fmt: skip
        archive.ensure(offline=False)
        with TemporaryDirectory(dir=root, prefix=".unpacked-") as part:
            try:
                _unpack(archive.path, Path(part) / self.name)
                for name in ("labels", *corruptions):
                    _array(Path(part) / self.name, name)
            except (tarfile.TarError, OSError, DataError) as error:
                remedy = f"delete it and run again, or {self._by_hand(root)}"
                raise DataError(f"{archive.path}: is not {self.name} ({error}); {remedy}") from error
            (Path(part) / self.name).rename(root / self.name)
        archive.path.unlink()

    def _by_hand(self, root: Path) -> str:
        return f"to get it by hand, unpack {self.url} in {root.absolute()}"


def _archive(path: Path) -> None:
    """Check that ``path`` is an archive, and no web page."""
    if not tarfile.is_tarfile(path):
        raise BadFile("is not a tar archive, or cut short")


def _unpack(archive: Path, folder: Path) -> None:
    """The files that lie in the archive's folder of that name, and nothing else that it may hold."""
    folder.mkdir()
    with tarfile.open(archive) as packed:
        for member in packed:
            inside = Path(member.name)
            if member.isfile() and inside.parent == Path(folder.name) and (content := packed.extractfile(member)):
                with (folder / inside.name).open("wb") as file:
                    copyfileobj(content, file)


def _array(folder: Path, name: str) -> NDArray[Any]:
    """The array in ``<name>.npy``, mapped into memory: labels [50000], or images uint8 [50000, 32, 32, 3].

    Raises:
        DataError: it is not there, or not such an array.
    """
    import numpy as np

    path = folder / f"{name}.npy"
    dtype, shape = (np.integer, (5 * SIZE,)) if name == "labels" else (np.uint8, (5 * SIZE, 32, 32, 3))
    if not path.is_file():
        raise DataMissing(f"{path}: no such file")
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: damaged or cut short ({error})") from error
    if found.shape != shape or not np.issubdtype(found.dtype, dtype):
        raise DataError(f"{path}: expected {dtype.__name__} {list(shape)}, found {found.dtype} {list(found.shape)}")
    return found


@dataclass(frozen=True)
class ImageNetC(CorruptionSource):
    """ImageNet-C or ImageNet-3DCC: ``<root>/<name>/<corruption>/<severity>/<wnid>/<file>.JPEG``.

    Args:
        name: of the set and its folder.
        url: where to get it.
    """

    name: str
    url: str

    @property
    def label(self) -> str:
        """The set's name."""
        return self.name

    def prepare(self, root: Path, stages: Sequence[Stage], batch: Batch | None, offline: bool) -> None:
        """See `CorruptionSource.prepare`; the sets are too large to be downloaded unasked."""
        folder = root.absolute() / self.name
        if batch is not None and len(batch.names) != len(batch):
            raise DataError(
                f"threat.source: {self.name} finds a picture's corrupted twin by the name of its file, and the images "
                "of this data set have none; use dataset: {kind: imagenet, …}"
            )
        missing = [f"{corruption}/{severity}" for corruption, severity in stages
                   if not (folder / corruption / str(severity)).is_dir()]  # fmt: skip
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise DataMissing(f"{folder}: no folder {shown}; {self._by_hand(folder)}")
        for corruption, severity in stages:
            for name in batch.names if batch is not None else ():
                if not (path := folder / corruption / str(severity) / name).is_file():
                    raise DataMissing(f"{path}: no such file; {self._by_hand(folder)}")

    def images(self, root: Path, corruption: str, severity: int, batch: Batch, seed: int) -> Tensor:
        """See `CorruptionSource.images`.

        The pictures were cut to 224×224 when they were corrupted, so they are not cut again, whatever the model's
        preprocessing: as in RobustBench they are at most resized, bilinearly, to what the model takes.
        """
        import torch

        from harness.datasets.sources.image_files import read_image

        folder = root.absolute() / self.name / corruption / str(severity)
        height, width = batch.x.shape[-2:]
        return torch.stack([read_image(folder / name, Preprocessing(resize=(height, width))) for name in batch.names])

    def _by_hand(self, folder: Path) -> str:
        return f"get {self.name} from {self.url} and unpack it so that {folder}/<corruption>/<severity>/<wnid> is there"
