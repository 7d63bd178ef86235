"""The test sets of CIFAR-10 and CIFAR-100, in torchvision's layout."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.api.dataset import Dataset
from harness.errors import DataError, DataMissing
from harness.util.downloads import BadFile, Remote

if TYPE_CHECKING:
    from harness.datasets.sources.in_memory import ArraySource


class CIFAR10(Dataset):
    """The 10,000 test images of CIFAR-10, in the file ``<root>/cifar-10-batches-py/test_batch``.

    Args:
        root: directory of torchvision's datasets.
    """

    kind: ClassVar[str] = "cifar10"
    location_fields: ClassVar[frozenset[str]] = frozenset({"root"})

    root: str = "data"

    def open(self, *, offline: bool = False) -> ArraySource:
        """See `Dataset.open`; downloads the archive if the file is missing."""
        return _test_set("CIFAR10", Path(self.root), offline)


class CIFAR100(Dataset):
    """The 10,000 test images of CIFAR-100 with fine labels, in the file ``<root>/cifar-100-python/test``.

    Args:
        root: directory of torchvision's datasets.
    """

    kind: ClassVar[str] = "cifar100"
    location_fields: ClassVar[frozenset[str]] = frozenset({"root"})

    root: str = "data"

    def open(self, *, offline: bool = False) -> ArraySource:
        """See `Dataset.open`; downloads the archive if the file is missing."""
        return _test_set("CIFAR100", Path(self.root), offline)


def _test_set(name: Literal["CIFAR10", "CIFAR100"], root: Path, offline: bool) -> ArraySource:
    import numpy as np
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    from harness.datasets.sources.in_memory import ArraySource

    official: Any = getattr(datasets, name)

    class TestBatch(official):  # type: ignore[misc]
        """The dataset without its training batches and class names, whose files may be missing."""

        train_list: ClassVar[list[list[str]]] = []

        def _load_meta(self) -> None:
            pass

    def check_archive(path: Path) -> None:
        if not check_integrity(path, official.tgz_md5):
            raise BadFile(f"is damaged, its MD5 is not {official.tgz_md5}")

    [(batch, md5)] = official.test_list
    file = root.absolute() / official.base_folder / batch
    path = root.absolute() / official.filename
    archive = Remote(path, official.url, check_archive, error=DataError, missing=DataMissing)
    if not file.is_file():
        archive.ensure(offline)
    elif not check_integrity(file, md5):
        remedy = f"delete it and run again, or {archive.by_hand}"
        raise DataError(f"{file}: damaged, its MD5 is not {md5}; {remedy}")
    with redirect_stdout(sys.stderr):
        dataset = TestBatch(root, train=False, download=True)  # unpacks the archive if the batch is missing
    return ArraySource(np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2)), np.asarray(dataset.targets))
