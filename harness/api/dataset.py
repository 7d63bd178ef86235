"""The contract of a data set: labelled images that are read by number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from harness.api.part import Part
from harness.api.records import Batch, Preprocessing, Target
from harness.errors import DataError
from harness.util.hashing import sha256

if TYPE_CHECKING:
    import numpy as np


class Dataset(Part):
    """Labelled images, of which a benchmark takes the first ``n``, those named by ``indices``, or all.

    Args:
        n: the first so many.
        indices: these, in this order.
        per_class: the first so many of each class, in the order of the data.
    """

    n: Annotated[int, Field(strict=True, gt=0)] | None = None
    indices: Annotated[tuple[Annotated[int, Field(strict=True, ge=0)], ...], Field(min_length=1)] | None = None
    per_class: Annotated[int, Field(strict=True, gt=0)] | None = None

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.per_class is not None and (self.n is not None or self.indices is not None):
            raise ValueError("per_class: give it alone, without n or indices")
        return self

    @abstractmethod
    def open(self, *, offline: bool = False) -> Source:
        """The images, ready to be read.

        Raises:
            DataError: they are not there or damaged; says what to do.
        """

    @property
    def target(self) -> Target:
        """What its labels are."""
        return "class"

    @property
    def title(self) -> str:
        """Its name, whichever images are chosen."""
        return self.kind

    @property
    def label(self) -> str:
        """Its name on the leaderboard: the title and the subset."""
        if self.indices is not None:
            return f"{self.title}[{len(self.indices)} by index {sha256(self.indices)[:8]}]"
        if self.per_class is not None:
            return f"{self.title}[{self.per_class} per class]"
        return f"{self.title}[:{self.n}]" if self.n else self.title

    def chosen(self, source: Source) -> tuple[int, ...]:
        """The numbers of the chosen images of ``source``.

        Raises:
            DataError: more are asked for than there are, or one twice, or so many of each class where there are none.
        """
        if self.per_class is None:
            return self.subset(len(source))
        if self.target != "class":
            raise DataError(
                f"dataset.per_class: the labels of {self.title} are {self.target}, and it has no classes to take "
                f"{self.per_class} images of each from; give n or indices in its place"
            )
        members: dict[int, list[int]] = {}
        for image, label in enumerate(source.labels()):
            members.setdefault(label, []).append(image)
        fewest = min(members, key=lambda label: len(members[label]))
        if len(members[fewest]) < self.per_class:
            raise DataError(
                f"dataset.per_class: class {fewest} of {self.kind} has {len(members[fewest])} images, but per_class = "
                f"{self.per_class} were asked for; lower per_class"
            )
        return tuple(sorted(image for images in members.values() for image in images[: self.per_class]))

    def subset(self, size: int) -> tuple[int, ...]:
        """The numbers of the chosen images, out of ``size``, where no label need be known.

        Raises:
            DataError: more are asked for than there are, or one twice.
        """
        name = self.kind
        if self.indices is None:
            if self.n is not None and self.n > size:
                raise DataError(f"dataset.n: {name} has {size} images, but n = {self.n} were asked for; lower n")
            return tuple(range(self.n or size))
        if max(self.indices) >= size:
            raise DataError(f"dataset.indices: {name} has {size} images (0 … {size - 1}), no {max(self.indices)}")
        if len(set(self.indices)) < len(self.indices):
            raise DataError("dataset.indices: an image is named twice; name each once")
        return self.indices


class Source(ABC):
    """Images that can be read by number."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def read(self, indices: tuple[int, ...]) -> Batch:
        """The images ``indices``, in that order: x float32 [n, c, h, w] in [0, 1], and y as `Batch` has it."""

    def labels(self) -> Sequence[int]:
        """The class of every image; reads them all where a source does not know better."""
        slices = (tuple(range(start, min(start + 256, len(self)))) for start in range(0, len(self), 256))
        return [label for part in slices for label in self.read(part).y.tolist()]

    def prepared(self, preprocessing: Preprocessing) -> Source:
        """The same images as a model wants them; images that have one size are taken as they are."""
        return self


@dataclass(frozen=True)
class Data:
    """The chosen images: their numbers, in order, with a hash of each one's pixels and label; and the labels.

    Args:
        labels: int [n] of classes, int [n, k] of attributes, float [n, k] of values.
        pixels: a hash of each one's pixels alone.
    """

    digests: Mapping[int, str]
    labels: np.ndarray
    pixels: frozenset[str] = frozenset()

    @property
    def sha256(self) -> str:
        """Names the whole subset."""
        return sha256([[image, digest] for image, digest in self.digests.items()])

    @property
    def strata(self) -> np.ndarray:
        """What folds are balanced by, int [n]; see `harness.api.dataset.strata`."""
        return strata(self.labels)


def strata(labels: np.ndarray) -> np.ndarray:
    """What folds are balanced by, int [n]: the classes, where labels are that."""
    import numpy as np

    return labels if labels.ndim == 1 else np.zeros(len(labels), np.int64)
