"""Official datasets of corrupted images: their layout, their checks, and the download of CIFAR's."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api.records import Preprocessing
from harness.errors import DataError, DataMissing
from harness.threats.corruption_sources.base import CorruptionSource, Level
from harness.util.downloads import BadFile, Remote
from harness.util.lockfile import ON_PURPOSE, differs

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from harness.api.records import Batch

TEST_IMAGES = 10_000
"""Number of test images of CIFAR-10, and of CIFAR-100."""


@dataclass(frozen=True)
class CIFARC(CorruptionSource):
    """CIFAR-10-C or CIFAR-100-C: ``<root>/<name>/<corruption>.npy`` holds all test images at severity 1, then at 2, ….

    Args:
        name: name of the dataset and of its directory.
        record: number of its record on Zenodo.
    """

    name: str
    record: str

    @property
    def label(self) -> str:
        """Name of the dataset."""
        return self.name

    @property
    def url(self) -> str:
        """Download URL of the archive."""
        return f"https://zenodo.org/records/{self.record}/files/{self.name}.tar"

    def prepare(self, root: Path, levels: Sequence[Level], batch: Batch | None, offline: bool) -> None:
        """See `CorruptionSource.prepare`; check files against ``models.lock``, download a missing dataset."""
        directory = root.absolute() / self.name
        corruptions = tuple(dict.fromkeys(corruption for corruption, _ in levels))
        if not directory.is_dir():
            if offline:
                raise DataMissing(
                    f"{directory}: no such directory, and offline nothing is downloaded; {self._by_hand(root)}"
                )
            self._download(root.absolute(), corruptions)
        for name in ("labels", *corruptions):
            self._load(directory, name)
            if fault := differs(f"{self.url}#{name}.npy", directory / f"{name}.npy"):
                raise DataError(f"{directory / name}.npy {fault}; {self._by_hand(root)}, or {ON_PURPOSE}")
        if batch is not None:
            self._check_match(directory, batch)

    def images(self, root: Path, corruption: str, severity: int, batch: Batch, seed: int) -> Tensor:
        """See `CorruptionSource.images`; reads only these images from the file."""
        import torch

        directory = root.absolute() / self.name
        self._check_match(directory, batch)
        rows = (severity - 1) * TEST_IMAGES + batch.indices.cpu().numpy()
        chosen = self._load(directory, corruption)[rows]
        return torch.from_numpy(chosen.transpose(0, 3, 1, 2).astype("float32") / 255)

    def _load(self, directory: Path, name: str) -> NDArray[Any]:
        """Load an array of the dataset; see `_array`. An error says what to do."""
        try:
            return _array(directory, name)
        except DataError as error:
            remedy = f"delete {directory} and run again, or {self._by_hand(directory.parent)}"
            raise type(error)(f"{error}; {remedy}") from error

    def _check_match(self, directory: Path, batch: Batch) -> None:
        """Check that the dataset has images of this size with these indices and these labels.

        Raises:
            DataError: it was made from other images.
        """
        indices = batch.indices.cpu().numpy()
        remedy = "use the test set that it was made from, or set threat.source=generated"
        shape = list(batch.x.shape[1:])
        if shape != [3, 32, 32] or indices.max() >= TEST_IMAGES:
            raise DataError(
                f"{directory}: {self.name} has {TEST_IMAGES:,} images of shape [3, 32, 32], but the benchmark's "
                f"dataset has image {indices.max()} of shape {shape}, so they do not match; {remedy}"
            )
        expected, found = batch.y.cpu().numpy(), self._load(directory, "labels")[indices]
        if (found != expected).any():
            first = int((found != expected).argmax())
            raise DataError(
                f"{directory / 'labels.npy'}: image {indices[first]} has label {found[first]} in {self.name} but "
                f"{expected[first]} in the benchmark's dataset, so they do not match; {remedy}"
            )

    def _download(self, root: Path, corruptions: Sequence[str]) -> None:
        """Download and unpack the archive; move it into place only if it is complete, then delete the archive."""
        archive = Remote(
            root / f"{self.name}.tar", self.url, check=_check_archive, error=DataError, missing=DataMissing
        )  # fmt: skip
        archive.ensure(offline=False)
        with TemporaryDirectory(dir=root, prefix=".unpacked-") as temporary:
            unpacked = Path(temporary) / self.name
            try:
                _unpack(archive.path, unpacked)
                for name in ("labels", *corruptions):
                    _array(unpacked, name)
            except (tarfile.TarError, OSError, DataError) as error:
                remedy = f"delete it and run again, or {self._by_hand(root)}"
                raise DataError(f"{archive.path} is not {self.name}, or is damaged ({error}); {remedy}") from error
            unpacked.rename(root / self.name)
        archive.path.unlink()

    def _by_hand(self, root: Path) -> str:
        return f"unpack {self.url} in {root.absolute()} by hand"


def _check_archive(path: Path) -> None:
    """Check that ``path`` is a tar archive, not a web page."""
    if not tarfile.is_tarfile(path):
        raise BadFile("is not a tar archive, or is cut short")


def _unpack(archive: Path, directory: Path) -> None:
    """Unpack the files in the archive's directory of the same name into ``directory``, and nothing else."""
    directory.mkdir()
    with tarfile.open(archive) as packed:
        for member in packed:
            path = Path(member.name)
            if member.isfile() and path.parent == Path(directory.name) and (content := packed.extractfile(member)):
                with (directory / path.name).open("wb") as file:
                    copyfileobj(content, file)


def _array(directory: Path, name: str) -> NDArray[Any]:
    """Map the array in ``<name>.npy`` into memory: labels [50000], or images uint8 [50000, 32, 32, 3].

    Raises:
        DataMissing: the file does not exist.
        DataError: the file is damaged, or holds another array.
    """
    import numpy as np

    path = directory / f"{name}.npy"
    dtype, shape = (np.integer, (5 * TEST_IMAGES,)) if name == "labels" else (np.uint8, (5 * TEST_IMAGES, 32, 32, 3))
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
        name: name of the dataset and of its directory.
        url: web page of the download.
    """

    concurrent: ClassVar[bool] = True

    name: str
    url: str

    @property
    def label(self) -> str:
        """Name of the dataset."""
        return self.name

    def prepare(self, root: Path, levels: Sequence[Level], batch: Batch | None, offline: bool) -> None:
        """See `CorruptionSource.prepare`; these datasets are too large to be downloaded unasked."""
        directory = root.absolute() / self.name
        if batch is not None and len(batch.names) != len(batch):
            raise DataError(
                f"threat.source: {self.name} finds the corrupted version of an image by its file name, but the images "
                "of this dataset have none; use dataset: {kind: imagenet, …}"
            )
        missing = [f"{corruption}/{severity}" for corruption, severity in levels
                   if not (directory / corruption / str(severity)).is_dir()]  # fmt: skip
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise DataMissing(f"{directory}: no directory {shown}; {self._by_hand(directory)}")
        for corruption, severity in levels:
            for name in batch.names if batch is not None else ():
                if not (path := directory / corruption / str(severity) / name).is_file():
                    raise DataMissing(f"{path}: no such file; {self._by_hand(directory)}")

    def images(self, root: Path, corruption: str, severity: int, batch: Batch, seed: int) -> Tensor:
        """See `CorruptionSource.images`.

        The images were cropped to 224×224 when they were corrupted, so they are not cropped again, whatever the model's
        preprocessing: as in RobustBench they are at most resized, bilinearly, to the model's input size.
        """
        import torch

        from harness.datasets.sources.image_files import read_image

        directory = root.absolute() / self.name / corruption / str(severity)
        height, width = batch.x.shape[-2:]
        resized = Preprocessing(resize=(height, width))
        return torch.stack([read_image(directory / name, resized) for name in batch.names])

    def _by_hand(self, directory: Path) -> str:
        return (
            f"get {self.name} from {self.url} and unpack it so that {directory}/<corruption>/<severity>/<wnid> exists"
        )
