"""Classes by name: those of the scored images, numbered as a model numbers its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from harness.api.dataset import Source
from harness.api.records import Batch
from harness.errors import DataError
from harness.util.text import listed, shown

UNKNOWN = -1
"""Number of a class that the model does not have."""


class Renumbered(Source):
    """Images whose classes have the numbers that a model gives to the same names.

    Args:
        source: the images; their classes have names.
        class_names: names of the model's classes, by number.
    """

    def __init__(self, source: Source, class_names: Sequence[str]) -> None:
        assert source.class_names is not None
        self._source, self.class_names, self.concurrent = source, tuple(class_names), source.concurrent
        numbers = {name: number for number, name in enumerate(class_names)}
        self._numbers = torch.tensor([numbers.get(name, UNKNOWN) for name in source.class_names])

    def __len__(self) -> int:
        return len(self._source)

    def labels(self) -> list[int]:
        """See `Source.labels`; images of a class without a number have `UNKNOWN`."""
        numbers: list[int] = self._numbers[torch.tensor(self._source.labels())].tolist()
        return numbers

    def read(self, indices: tuple[int, ...]) -> Batch:
        """See `Source.read`.

        Raises:
            DataError: the model has no class of an image's name.
        """
        batch = self._source.read(indices)
        y = self._numbers[batch.y]
        if (y == UNKNOWN).any():
            raise self._no_such_class(int(batch.y[y == UNKNOWN][0]))
        return replace(batch, y=y)

    def _no_such_class(self, number: int) -> DataError:
        assert self._source.class_names is not None
        assert self.class_names is not None
        strangers = [name for name in self._source.class_names if name not in self.class_names]
        return DataError(
            f"dataset: it has images of class {shown(self._source.class_names[number])}, and the model has no class of "
            f"that name (a probe has those of train). Classes of dataset alone: {listed(strangers)}; classes of the "
            f"model: {listed(self.class_names)}. Give the classes the same names on both sides, or choose images of "
            "the model's classes alone"
        )


def names_to_match(model: Sequence[str], images: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of a pretrained model's classes, unless the images have as many classes, all named otherwise.

    Those are taken for the same classes in the same order, such as ImageNet's in words.

    Args:
        model: names of the model's classes, by number.
        images: names of the images' classes; None if they have none.
    """
    others = set(images or ())
    return () if len(others) == len(model) and others.isdisjoint(model) else tuple(model)


def numbered_as(source: Source, class_names: Sequence[str]) -> Source:
    """Return ``source`` with its classes numbered as in ``class_names``, where both sides have names.

    Args:
        source: opened dataset.
        class_names: names of the model's classes, by number; empty if they have none.
    """
    if not class_names or source.class_names is None or tuple(source.class_names) == tuple(class_names):
        return source
    return Renumbered(source, class_names)
