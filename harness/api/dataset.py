"""The contract of a dataset: labelled images that are read by number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from harness.api.part import Part
from harness.api.records import Batch, Preprocessing, Target
from harness.api.validation import Count
from harness.errors import DataError
from harness.util.hashing import sha256
from harness.util.text import disarmed

if TYPE_CHECKING:
    import numpy as np


class Dataset(Part):
    """Labelled images, of which a benchmark scores a subset, or all if none is chosen.

    Args:
        n: number of images to score, the first of the dataset.
        indices: numbers of the images to score, in this order.
        per_class: number of images to score of each class, the first of each, in the order of the data.
    """

    n: Count | None = None
    indices: Annotated[tuple[Annotated[int, Field(strict=True, ge=0)], ...], Field(min_length=1)] | None = None
    per_class: Count | None = None

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        given = [key for key in ("n", "indices", "per_class") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} each choose the images; give one of them alone")
        return self

    @abstractmethod
    def open(self, *, offline: bool = False) -> Source:
        """Return the images, ready to be read.

        Args:
            offline: whether to refuse every download.

        Raises:
            DataError: they are missing or damaged; the message says what to do.
        """

    @property
    def target(self) -> Target:
        """Type of the labels: classes, attributes or values."""
        return "class"

    @property
    def title(self) -> str:
        """Name of the dataset, without the subset."""
        return self.kind

    @property
    def label(self) -> str:
        """Name on the leaderboard: the title with the subset."""
        title = disarmed(self.title)  # the name of a file, say
        if self.indices is not None:
            return f"{title}[{len(self.indices)} by index {sha256(self.indices)[:8]}]"
        if self.per_class is not None:
            return f"{title}[{self.per_class} per class]"
        return f"{title}[:{self.n}]" if self.n else title

    def chosen(self, source: Source) -> tuple[int, ...]:
        """Return the numbers of the chosen images of ``source``.

        Raises:
            DataError: the subset asks for more images than there are, for one twice, or for classes where there are
                none.
        """
        if self.per_class is None:
            return self.subset(len(source))
        if self.target != "class":
            raise DataError(
                f"dataset.per_class: the labels of {self.title} are {self.target}, so there are no classes to take "
                f"{self.per_class} images of; give n or indices instead"
            )
        members: dict[int, list[int]] = {}
        for image, label in enumerate(source.labels()):
            members.setdefault(label, []).append(image)
        fewest = min(members, key=lambda label: len(members[label]))
        if len(members[fewest]) < self.per_class:
            raise DataError(
                f"dataset.per_class: class {fewest} of {self.kind} has {len(members[fewest])} images, but per_class = "
                f"{self.per_class}; lower per_class"
            )
        return tuple(sorted(image for images in members.values() for image in images[: self.per_class]))

    def subset(self, size: int) -> tuple[int, ...]:
        """Return the numbers of the chosen images, where ``per_class`` is not used and so no label is needed.

        Args:
            size: number of images in the dataset.

        Raises:
            DataError: the subset asks for more images than there are, or for one twice.
        """
        name = self.kind
        if self.indices is None:
            if self.n is not None and self.n > size:
                raise DataError(f"dataset.n: {name} has {size} images, but n = {self.n} were asked for; lower n")
            return tuple(range(self.n or size))
        if max(self.indices) >= size:
            raise DataError(
                f"dataset.indices: {name} has {size} images (0 … {size - 1}), found {max(self.indices)}; leave it out"
            )
        if len(set(self.indices)) < len(self.indices):
            raise DataError("dataset.indices: an image is named twice; name each once")
        return self.indices


class Source(ABC):
    """Images that can be read by number."""

    concurrent: bool = False
    """True if several threads may call `read` at once. It is worth it where images are decoded."""

    class_names: Sequence[str] | None = None
    """Name of each class, by number; None where classes have numbers alone. Images that a model is fitted on and images
    that it is scored on are matched by these names."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def read(self, indices: tuple[int, ...]) -> Batch:
        """Return the images ``indices``, in that order: x float32 [n, c, h, w] in [0, 1], y as in `Batch`."""

    def labels(self) -> Sequence[int]:
        """Return the class of every image. Reads all images; override it where labels can be had without."""
        slices = (tuple(range(start, min(start + 256, len(self)))) for start in range(0, len(self), 256))
        return [label for part in slices for label in self.read(part).y.tolist()]

    def prepared(self, preprocessing: Preprocessing) -> Source:
        """Return the same images with a model's preprocessing; by default they have one size, and stay as they are."""
        return self


@dataclass(frozen=True)
class Data:
    """Hashes and labels of the chosen images.

    Args:
        digests: a hash of each image's pixels and label, by image number, in the order of the images.
        labels: int [n] of classes, int [n, k] of attributes, or float [n, k] of values.
        pixels: hashes of the pixels alone.
        class_names: name of each class, by number; empty where classes have numbers alone.
    """

    digests: Mapping[int, str]
    labels: np.ndarray
    pixels: frozenset[str] = frozenset()
    class_names: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of the whole subset, order included."""
        return sha256([[image, digest] for image, digest in self.digests.items()])

    @property
    def strata(self) -> np.ndarray:
        """Strata by which folds are balanced, int [n]; see `harness.api.dataset.strata`."""
        return strata(self.labels)


def strata(labels: np.ndarray) -> np.ndarray:
    """Return the strata by which folds are balanced, int [n]: the classes, or a single stratum for other labels."""
    import numpy as np

    return labels if labels.ndim == 1 else np.zeros(len(labels), np.int64)
