"""The validation images of ImageNet (ILSVRC 2012): RobustBench's 5,000, or all 50,000."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from harness.api.dataset import Dataset
from harness.errors import DataError, DataMissing

if TYPE_CHECKING:
    from harness.datasets.sources.image_files import ImageFileSource

PER_CLASS = 50
"""Images in each class."""
HOW_TO_GET = (
    "ImageNet cannot be downloaded for you: register at https://image-net.org, get ILSVRC2012_img_val.tar, and sort "
    "its images into a folder for each class"
)


class ImageNet(Dataset):
    """The images ``<root>/val/<class>/ILSVRC2012_val_*.JPEG``, read from their files when needed.

    Labels are the numbers 0 … 999 of the class folders (``n01440764``, …) in alphabetical order.

    Args:
        root: directory that holds ``val``.
        ids: ``robustbench`` for the 5,000 images of its boards in its order, of which only those that are scored need
            exist; or ``all`` 50,000 images, by class folder and then by name.
        size: height and width of the images for a model without preprocessing of its own.
    """

    kind: ClassVar[str] = "imagenet"
    location_fields: ClassVar[frozenset[str]] = frozenset({"root"})

    root: str = "data/imagenet"
    ids: Literal["robustbench", "all"] = "robustbench"
    size: Annotated[int, Field(strict=True, gt=0, le=10_000)] | None = None

    def open(self, *, offline: bool = False) -> ImageFileSource:
        """See `Dataset.open`; downloads nothing."""
        from harness.datasets.sources.image_files import ImageFileSource, square

        val = Path(self.root).absolute() / "val"
        folders = class_folders()
        classes = {name: number for number, name in enumerate(folders)}
        files = _robustbench_ids() if self.ids == "robustbench" else None
        needed = set(classes)
        if files is not None and self.per_class is None:
            needed = {Path(files[i]).parts[0] for i in self.subset(len(files))}
        _check_layout(val, classes, needed)
        if files is None:
            files = _all_files(val, classes)
        labels = [classes[Path(file).parts[0]] for file in files]
        return ImageFileSource(val, files, labels, square(self.size), folders)


def _helper(name: str) -> Path:
    """Return the path of a file that RobustBench ships, without importing RobustBench."""
    spec = find_spec("robustbench")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "helper_files" / name


def class_folders() -> tuple[str, ...]:
    """Return the name of each class folder, by number: ``n01440764``, …."""
    numbers: dict[str, int] = json.loads(_helper("imagenet_class_to_id_map.json").read_text())
    return tuple(sorted(numbers, key=lambda name: numbers[name]))


def _robustbench_ids() -> list[str]:
    """List RobustBench's 5,000 images, each as class folder and file name."""
    return _helper("imagenet_test_image_ids.txt").read_text().split()


def _check_layout(val: Path, classes: dict[str, int], needed: set[str]) -> None:
    """Check that the needed class folders exist.

    Raises:
        DataError: they do not; the message describes what the directory holds instead.
    """
    if not val.is_dir():
        raise DataMissing(
            f"dataset.root: no directory {val}; {HOW_TO_GET}, as {val}/n01440764/ILSVRC2012_val_00000293.JPEG"
        )
    found = {entry.name for entry in val.iterdir()}
    if needed <= found:
        return
    loose = sorted(name for name in found if name.lower().endswith(".jpeg"))
    if loose:
        raise DataError(
            f"{val}: {len(loose):,} images directly in it, such as {loose[0]}; sort them into a folder for each "
            f"class, as {val}/n01440764/ILSVRC2012_val_00000293.JPEG: labels are read from the folders' names"
        )
    missing = sorted(needed - found)
    present = len(found & set(classes))
    raise DataMissing(
        f"{val}: {present:,} of 1000 class folders, first missing {missing[0]}; unpack it again: "
        "it must hold the class folders themselves (n01440764, …)"
    )


def _all_files(val: Path, classes: dict[str, int]) -> list[str]:
    """List every image by class folder and name; refuse incomplete classes, which would shift the indices."""
    files: list[str] = []
    for name in sorted(classes):
        images = sorted(file.name for file in (val / name).iterdir() if file.suffix.lower() == ".jpeg")
        if len(images) != PER_CLASS:
            raise DataError(f"{val / name}: {len(images)} images, expected {PER_CLASS}; unpack it again")
        files += [f"{name}/{image}" for image in images]
    return files
