"""Your own image files: a folder for each class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from harness.api.dataset import Dataset
from harness.errors import DataError, DataMissing

if TYPE_CHECKING:
    from harness.datasets.sources.image_files import ImageFileSource


class ImageFolder(Dataset):
    """The images ``<root>/<class>/*``, in the order of torchvision's ``ImageFolder``: by folder, then by name.

    Labels are the numbers of the class folders in alphabetical order.

    Args:
        root: directory of the class folders.
        size: height and width of the images for a model without preprocessing of its own; by default they are taken
            as stored, and must have one size.
    """

    kind: ClassVar[str] = "image_folder"
    location_fields: ClassVar[frozenset[str]] = frozenset({"root"})

    root: str
    size: Annotated[int, Field(strict=True, gt=0, le=10_000)] | None = None

    def open(self, *, offline: bool = False) -> ImageFileSource:
        """See `Dataset.open`; downloads nothing."""
        from torchvision import datasets

        from harness.datasets.sources.image_files import ImageFileSource, square

        root = Path(self.root).absolute()
        if not root.is_dir():
            raise DataMissing(f"dataset.root: no directory {root}; give one that holds a folder for each class")
        try:
            samples = datasets.ImageFolder(str(root)).samples
        except FileNotFoundError as error:  # no class folder, or one without an image
            why = " ".join(str(error).split())
            raise DataError(f"{root}: {why} Expected a folder of images for each class in it") from error
        files = [Path(file).relative_to(root).as_posix() for file, _ in samples]
        return ImageFileSource(root, files, [label for _, label in samples], square(self.size))
