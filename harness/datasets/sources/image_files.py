"""Images in files, of any size, decoded when they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api.dataset import Source
from harness.api.records import AS_STORED, Batch, Preprocessing
from harness.errors import DataError, DataMissing

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageFileSource(Source):
    """Labelled image files.

    Args:
        root: directory of the files.
        files: path of each file below ``root``.
        classes: label of each file, ≥ 0.
        preprocessing: resizing and cropping applied to every image.
    """

    concurrent: ClassVar[bool] = True

    root: Path
    files: Sequence[str]
    classes: Sequence[int]
    preprocessing: Preprocessing = AS_STORED

    def __len__(self) -> int:
        return len(self.files)

    def labels(self) -> Sequence[int]:
        """See `Source.labels`; opens no file."""
        return self.classes

    def read(self, indices: tuple[int, ...]) -> Batch:
        """See `Source.read`; opens no other files.

        Raises:
            DataError: an image is missing or damaged, or they differ in size.
        """
        import torch

        names = tuple(self.files[index] for index in indices)
        images = [read_image(self.root / name, self.preprocessing) for name in names]
        y = torch.tensor([self.classes[index] for index in indices], dtype=torch.int64)
        return Batch(stack(images, names, self.root), y, torch.tensor(indices, dtype=torch.int64), names)

    def prepared(self, preprocessing: Preprocessing) -> ImageFileSource:
        """Apply the model's preprocessing in place of the dataset's, which stays if the model has none."""
        return self if preprocessing == AS_STORED else replace(self, preprocessing=preprocessing)


def square(size: int | None) -> Preprocessing:
    """Return ImageNet's usual preprocessing: the shorter side to 8/7 of ``size`` (256 for 224), then a centre crop."""
    return AS_STORED if size is None else Preprocessing(round(size * 8 / 7), size)


def read_image(path: Path, preprocessing: Preprocessing) -> Tensor:
    """Read an image file as float32 [3, h, w] in [0, 1].

    Args:
        path: file in any format that Pillow can open.
        preprocessing: resizing and cropping, done on the 8-bit colours.

    Raises:
        DataMissing: there is no such file.
        DataError: the file is damaged, or not an image.
    """
    from PIL import Image

    if not path.is_file():
        raise DataMissing(f"{path}: no such image; unpack or copy the dataset again")
    return decode(lambda: Image.open(path), str(path), preprocessing)


def decode(open_image: Callable[[], Image], where: str, preprocessing: Preprocessing) -> Tensor:
    """Decode an image to float32 [3, h, w] in [0, 1].

    Args:
        open_image: opens the image.
        where: name of the image, for error messages.
        preprocessing: resizing and cropping, done on the 8-bit colours.

    Raises:
        DataMissing: there is no such file.
        DataError: the file is damaged, not an image, or not of 8 bits a colour.
    """
    try:
        with open_image() as opened:
            mode = opened.mode
            rgb = opened.convert("RGB")
    except FileNotFoundError as error:
        raise DataMissing(f"{error.filename or where}: no such image; unpack or copy the dataset again") from error
    except Exception as error:  # by format Pillow raises OSError, SyntaxError, ValueError, struct.error, …
        raise DataError(f"{where}: not an image, or damaged ({error}); copy the file again") from error
    if mode not in EIGHT_BITS:
        raise DataError(
            f"{where}: expected an image of 8 bits a colour, found Pillow's mode {mode}, whose white is not known; "
            "convert it to grey levels 0 … 255, or to RGB"
        )
    image: Tensor = _transform(preprocessing)(rgb)
    return image


EIGHT_BITS = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
"""Pillow's modes of 8 bits a colour. The others, of 16 bits or floats, it clips at 255: all white, or all black."""


def stack(images: Sequence[Tensor], names: Sequence[str], where: object) -> Tensor:
    """Stack images of one size into a tensor [n, c, h, w].

    Args:
        images: images [c, h, w].
        names: name of each image, for error messages.
        where: location of the dataset, for error messages.

    Raises:
        DataError: the images differ in size.
    """
    import torch

    for name, image in zip(names, images, strict=True):
        if image.shape != images[0].shape:
            first, other = (f"{each.shape[2]}×{each.shape[1]}" for each in (images[0], image))
            raise DataError(
                f"{where}: images of different sizes ({names[0]} is {first}, {name} is {other}), and the model has no "
                "preprocessing of its own; set dataset.size: 224, or whatever the model takes"
            )
    return torch.stack(list(images))


def _transform(preprocessing: Preprocessing) -> Any:
    """Return the preprocessing as a torchvision transform from a PIL image to a tensor."""
    from torchvision import transforms

    resize, crop, interpolation = preprocessing
    steps: list[Any] = []
    if resize is not None:
        steps.append(transforms.Resize(resize, transforms.InterpolationMode(interpolation)))
    if crop is not None:
        steps.append(transforms.CenterCrop(crop))
    return transforms.Compose([*steps, transforms.ToTensor()])
