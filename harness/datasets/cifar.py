"""The test sets of CIFAR-10 and CIFAR-100, as torchvision keeps them."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.contracts import Dataset
from harness.errors import DataError, DataMissing

if TYPE_CHECKING:
    from harness.datasets.images import Images


class CIFAR10(Dataset):
    """The 10,000 test images of CIFAR-10, in the file ``<root>/cifar-10-batches-py/test_batch``."""

    kind: ClassVar[str] = "cifar10"
    whereabouts: ClassVar[frozenset[str]] = frozenset({"root"})

    root: str = "data"

    def open(self, *, offline: bool = False) -> Images:
        """See `Dataset.open`; downloads the archive when the file is not there."""
        return _test_set("CIFAR10", Path(self.root), offline)


class CIFAR100(Dataset):
    """The 10,000 test images of CIFAR-100, with fine labels, in the file ``<root>/cifar-100-python/test``."""

    kind: ClassVar[str] = "cifar100"
    whereabouts: ClassVar[frozenset[str]] = frozenset({"root"})

    root: str = "data"

    def open(self, *, offline: bool = False) -> Images:
        """See `Dataset.open`; downloads the archive when the file is not there."""
        return _test_set("CIFAR100", Path(self.root), offline)


def _test_set(name: Literal["CIFAR10", "CIFAR100"], root: Path, offline: bool) -> Images:
    import numpy as np
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    from harness.datasets.images import Images

    official: Any = getattr(datasets, name)

    class TestBatch(official):  # type: ignore[misc]
        """The test batch alone: neither the training batches nor the names of the classes need be there."""

        train_list: ClassVar[list[list[str]]] = []

        def _load_meta(self) -> None:
            pass

    [(batch, md5)] = official.test_list
    file = root.absolute() / official.base_folder / batch
    archive = root.absolute() / official.filename
    by_hand = f"to do it by hand, save {official.url} as {archive}"
    if file.is_file() and not check_integrity(file, md5):
        raise DataError(f"{file}: damaged, its MD5 is not {md5}; delete it and run again, or {by_hand}")
    if offline and not file.is_file() and not check_integrity(archive, official.tgz_md5):
        raise DataMissing(f"{file}: no such file, and offline nothing is downloaded; {by_hand}")
    try:
        with redirect_stdout(sys.stderr):
            found = TestBatch(root, train=False, download=True)  # does nothing where the batch is there
    except Exception as error:  # urllib, tarfile, pickle and torchvision have no common base
        raise DataError(f"{file}: cannot be had from {official.url} ({error}); {by_hand}") from error
    return Images(np.ascontiguousarray(found.data.transpose(0, 3, 1, 2)), np.asarray(found.targets))
