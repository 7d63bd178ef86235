"""Your own image files: a folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from harness.api.dataset import Dataset
from harness.errors import DataError, DataMissing
from harness.util.text import listed

if TYPE_CHECKING:
    from harness.datasets.sources.image_files import ImageFileSource


class ImageFolder(Dataset):
    """The images ``<root>/<class>/*``, in the order of torchvision's ``ImageFolder``: by folder, then by name.

    Labels are the numbers of the class folders in their order.

    Args:
        root: directory of the class folders.
        order: order of the class folders, "alphabetical" as in torchvision, or "numerical"; to be given where the
            folders are numbers for which the two differ, such as 10 and 2.
        size: height and width of the images for a model without preprocessing of its own; by default they are taken
            as stored, and must have one size.
    """

    kind: ClassVar[str] = "image_folder"
    location_fields: ClassVar[frozenset[str]] = frozenset({"root"})

    root: str
    order: Literal["alphabetical", "numerical"] | None = None
    size: Annotated[int, Field(strict=True, gt=0, le=10_000)] | None = None

    def open(self, *, offline: bool = False) -> ImageFileSource:
        """See `Dataset.open`; downloads nothing."""
        from torchvision import datasets

        from harness.datasets.sources.image_files import ImageFileSource, square

        root = Path(self.root).absolute()
        if not root.is_dir():
            raise DataMissing(f"dataset.root: no directory {root}; give one that holds a folder for each class")
        try:
            folder = datasets.ImageFolder(str(root), allow_empty=True)
        except FileNotFoundError as error:
            raise DataError(f"{root}: no class folder in it; expected a folder of images for each class") from error
        files = [Path(file).relative_to(root).as_posix() for file, _ in folder.samples]
        _refuse_hidden([*folder.classes, *files], root)
        _refuse_empty(files, folder.classes, root)
        _refuse_splits(files, folder.classes, root)
        names = self._ordered(folder.classes)
        numbers = {name: number for number, name in enumerate(names)}
        by_class = sorted(files, key=lambda file: numbers[PurePosixPath(file).parts[0]])  # stable
        labels = [numbers[PurePosixPath(file).parts[0]] for file in by_class]
        return ImageFileSource(root, by_class, labels, square(self.size), names)

    def _ordered(self, classes: Sequence[str]) -> Sequence[str]:
        """Return the classes, which are in alphabetical order, in that of their numbers.

        Raises:
            DataError: they are no numbers; or the two orders differ, and ``order`` does not say which it is.
        """
        if not all(name.isdecimal() for name in classes):
            if self.order != "numerical":
                return classes
            other = next(name for name in classes if not name.isdecimal())
            raise DataError(
                f"dataset.order: numerical goes with folders that are numbers, found {other!r}; leave it out"
            )
        numerical = sorted(classes, key=int)
        if self.order is None and numerical != list(classes):
            first, second = next((a, b) for a, b in pairwise(classes) if int(a) > int(b))
            raise DataError(
                f"{self.root}: the class folders are numbers, and in alphabetical order {first} comes before {second}; "
                "set dataset.order as in training: alphabetical (torchvision's ImageFolder) or numerical"
            )
        return numerical if self.order == "numerical" else classes


def _refuse_hidden(paths: Sequence[str], root: Path) -> None:
    """Refuse what tools leave behind, such as .ipynb_checkpoints or ._0.png: it would be a class, or an image twice."""
    for path in paths:
        steps = PurePosixPath(path).parts
        if steps[0].startswith("__") or any(step.startswith(".") for step in steps):
            raise DataError(f"{root / path}: hidden, and it would be a class or an image; delete it or move it away")


def _refuse_empty(files: Sequence[str], classes: Sequence[str], root: Path) -> None:
    """Refuse class folders without an image: each would be a class that nothing is scored on."""
    if empty := sorted(set(classes) - {PurePosixPath(file).parts[0] for file in files}):
        raise DataError(
            f"{root}: no image in {listed(empty)}; expected some for each class, as .jpg, .png, .ppm, .bmp, .pgm, .tif "
            "or .webp; add them, or delete the folder"
        )


def _refuse_splits(files: Sequence[str], classes: Sequence[str], root: Path) -> None:
    """Refuse a directory one level too high, whose folders hold class folders, and no image themselves."""
    if all(len(PurePosixPath(file).parts) > 2 for file in files):
        some = ", ".join(classes[:3])
        raise DataError(
            f"{root}: one level too high, as its folders ({some}) hold folders of images, and no image; give one of "
            f"them, such as dataset.root: {root / classes[-1]}"
        )
