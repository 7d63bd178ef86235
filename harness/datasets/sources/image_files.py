"""Images in files, of any size, decoded when they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        class_names: name of each class, by number.
    """

    concurrent = True

    root: Path
    files: Sequence[str]
    classes: Sequence[int]
    preprocessing: Preprocessing = AS_STORED
    class_names: Sequence[str] | None = None

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
        DataError: the file is damaged, not an image, or one of floats.
    """
    try:
        with open_image() as opened:
            rgb = _rgb(opened, where)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataMissing(f"{error.filename or where}: no such image; unpack or copy the dataset again") from error
    except Exception as error:  # by format Pillow raises OSError, SyntaxError, ValueError, struct.error, …
        raise _unreadable(where, error) from error
    image: Tensor = _transform(preprocessing)(rgb)
    return image


def _unreadable(where: str, error: Exception) -> DataError:
    """Return the error to be raised for an image: the system's where it has one, such as a missing permission."""
    from PIL.Image import MAX_IMAGE_PIXELS, DecompressionBombError

    if isinstance(error, DecompressionBombError):
        return DataError(f"{where}: has more than {2 * (MAX_IMAGE_PIXELS or 0):,} pixels; scale it down")
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"{where}: cannot be read ({error.strerror}); fix that, and run again")
    return DataError(f"{where}: not an image, or damaged ({error}); copy the file again")


def _rgb(image: Image, where: str) -> Image:
    """Convert an image to 8-bit colours; of 16 bits the upper 8, as Pillow itself does for colours.

    Raises:
        DataError: its numbers do not say what is black and what is white.
    """
    import numpy as np
    from PIL import Image as Images

    if image.mode in UNSCALED:
        raise DataError(
            f"{where}: its pixels are {UNSCALED[image.mode]} (Pillow's mode {image.mode}), which do not say what is "
            "white; save it with 8 or 16 bits a channel"
        )
    if image.mode.startswith("I;16"):
        levels = np.asarray(image)
        if 0 < levels.max() <= DARK:
            raise DataError(
                f"{where}: a 16-bit picture that is never above {levels.max()}, where white is 65535; if its white is "
                "255 or 4095, save it with 8 bits, or multiply its pixels"
            )
        image = Images.fromarray((levels >> 8).astype(np.uint8))
    return image.convert("RGB")


UNSCALED = {"F": "floats", "I": "32-bit integers"}
"""Pillow's modes of one channel that it converts to colours by clipping to 0 … 255."""


DARK = 4095
"""Largest pixel of 16-bit pictures that are nearly black, or hold 12 bits."""


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
