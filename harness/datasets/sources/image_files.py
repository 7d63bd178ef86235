"""Pictures that lie in files of any size, opened when they are read."""

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
    """Labelled picture files.

    Args:
        root: the folder that they lie in.
        files: each one's path below ``root``.
        classes: the label of each, ≥ 0.
        preprocessing: how they become images of one size.
    """

    root: Path
    files: Sequence[str]
    classes: Sequence[int]
    preprocessing: Preprocessing = AS_STORED

    def __len__(self) -> int:
        return len(self.files)

    def labels(self) -> Sequence[int]:
        """See `Source.labels`; opens no picture."""
        return self.classes

    def read(self, indices: tuple[int, ...]) -> Batch:
        """See `Source.read`; opens these pictures and no others.

        Raises:
            DataError: one is not there or damaged, or they have different sizes.
        """
        import torch

        names = tuple(self.files[index] for index in indices)
        images = [read_picture(self.root / name, self.preprocessing) for name in names]
        y = torch.tensor([self.classes[index] for index in indices], dtype=torch.int64)
        return Batch(stacked(images, names, self.root), y, torch.tensor(indices, dtype=torch.int64), names)

    def prepared(self, preprocessing: Preprocessing) -> ImageFileSource:
        """The same pictures as a model wants them; a model that does not say gets them as they are here."""
        return self if preprocessing == AS_STORED else replace(self, preprocessing=preprocessing)


def square(size: int | None) -> Preprocessing:
    """ImageNet's custom for images of ``size``×``size``: the shorter side to 8/7 of it (224: 256), the centre cut."""
    return AS_STORED if size is None else Preprocessing(round(size * 8 / 7), size)


def read_picture(path: Path, preprocessing: Preprocessing) -> Tensor:
    """A picture file as an image: float32 [3, h, w] in [0, 1].

    Args:
        path: anything that Pillow can open.
        preprocessing: done before its 8-bit colours become floats.

    Raises:
        DataMissing: there is no such file.
        DataError: it is damaged, or no picture.
    """
    from PIL import Image

    if not path.is_file():
        raise DataMissing(f"{path}: no such picture; unpack or copy the data set again")
    return decoded(lambda: Image.open(path), str(path), preprocessing)


def decoded(opened: Callable[[], Image], where: str, preprocessing: Preprocessing) -> Tensor:
    """A picture as an image: float32 [3, h, w] in [0, 1].

    Args:
        opened: opens the picture.
        where: which it is, for errors.
        preprocessing: done before its 8-bit colours become floats.

    Raises:
        DataMissing: there is no such file.
        DataError: it is damaged, or no picture.
    """
    try:
        with opened() as picture:
            colours = picture.convert("RGB")
    except FileNotFoundError as error:
        raise DataMissing(f"{error.filename or where}: no such picture; unpack or copy the data set again") from error
    except Exception as error:  # by format Pillow raises OSError, SyntaxError, ValueError, struct.error, …
        raise DataError(f"{where}: no picture, or damaged ({error}); copy the file again") from error
    image: Tensor = _transform(preprocessing)(colours)
    return image


def stacked(images: Sequence[Tensor], names: Sequence[str], where: object) -> Tensor:
    """The images as one tensor.

    Args:
        images: each [c, h, w].
        names: what each is called, for errors.
        where: the data set, for errors.

    Raises:
        DataError: they have different sizes.
    """
    import torch

    for name, image in zip(names, images, strict=True):
        if image.shape != images[0].shape:
            one, other = (f"{found.shape[2]}×{found.shape[1]}" for found in (images[0], image))
            raise DataError(
                f"{where}: pictures of different sizes ({names[0]} is {one}, {name} is {other}), and the model "
                "does not say how to prepare them; set dataset.size: 224, or whatever the model takes"
            )
    return torch.stack(list(images))


def _transform(preprocessing: Preprocessing) -> Any:
    from torchvision import transforms

    resize, crop, interpolation = preprocessing
    steps: list[Any] = []
    if resize is not None:
        steps.append(transforms.Resize(resize, transforms.InterpolationMode(interpolation)))
    if crop is not None:
        steps.append(transforms.CenterCrop(crop))
    return transforms.Compose([*steps, transforms.ToTensor()])
