"""The catalogue of small public networks: where each is published, and all that it takes to run it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Entry:
    """A network of the catalogue.

    Args:
        name: name in a benchmark.
        dataset: kind of the dataset that it was trained for, such as "cifar10".
        repository: repository on GitHub that publishes it.
        commit: full hash of the commit.
        path: path of the file in the repository.
        sha256: hash of that file.
        key: place of the state dict in the file, where several fit.
        architecture: ``module:callable`` in `harness.models.architectures`.
        parameters: number of trainable parameters.
        mean: mean that is subtracted from each channel, in pixels in [0, 1].
        std: number by which each channel is then divided.
        resize: height and width to which a picture is resized; None for images of one size.
        crop: side of the square that is cut from its centre; None for images of one size.
        licence: licence of the repository.
        training: description of the training.
        clean: published clean accuracy, in [0, 1]; None if there is none.
        source: publication of that accuracy.
    """

    name: str
    dataset: str
    repository: str
    commit: str
    path: str
    sha256: str
    key: str | None
    architecture: str
    parameters: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: tuple[int, int] | None
    crop: int | None
    licence: str
    training: str
    clean: float | None
    source: str

    @property
    def url(self) -> str:
        """Address of the file."""
        return f"https://raw.githubusercontent.com/{self.repository}/{self.commit}/{self.path}"

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.path.rpartition("/")[2]

    def build(self) -> nn.Module:
        """Build the network, untrained."""
        module, _, name = self.architecture.partition(":")
        network: nn.Module = getattr(import_module(f"harness.models.architectures.{module}"), name)()
        return network


@cache
def catalogue() -> Mapping[str, Entry]:
    """Read ``catalogue.csv``: the entries by name."""
    text = files("harness.models").joinpath("catalogue.csv").read_text(encoding="utf-8")
    return {row["name"]: _entry(row) for row in csv.DictReader(text.splitlines())}


def _entry(row: Mapping[str, str]) -> Entry:
    resize = tuple(map(int, row["resize"].split()))
    return Entry(
        **{column: row[column] for column in ("name", "dataset", "repository", "commit", "path", "sha256")},
        **{column: row[column] for column in ("architecture", "licence", "training", "source")},
        key=row["key"] or None,
        parameters=int(row["parameters"]),
        mean=_numbers(row["mean"]),
        std=_numbers(row["std"]),
        resize=(resize[0], resize[1]) if resize else None,
        crop=int(row["crop"]) if row["crop"] else None,
        clean=float(Fraction(row["clean"]) / 100) if row["clean"] else None,  # in percent, as published
    )


def _numbers(cell: str) -> tuple[float, ...]:
    return tuple(float(Fraction(number)) for number in cell.split())
