"""A section of the report: what it looks at, and what it may say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Miss:
    """A finding that is not as it must be.

    Args:
        text: what was expected, and what was found.
    """

    text: str


@dataclass(frozen=True)
class Skipped:
    """A part of a section that was left out.

    Args:
        text: the part, and why.
    """

    text: str


Finding = str | pd.DataFrame | Miss | Skipped


@dataclass(frozen=True)
class Place:
    """Where a section runs.

    Args:
        device: device under test, such as "cuda" or "cpu".
        home: empty folder for the section's files.
        images: CIFAR-10 test images, an .npz with ``x`` and ``y``; None if there are none.
        until: `perf_counter` time at which the section should end.
    """

    device: str
    home: Path
    images: Path | None = None
    until: float = float("inf")

    @property
    def is_gpu(self) -> bool:
        """False under ``--pretend``."""
        return self.device.startswith("cuda")

    @property
    def is_late(self) -> bool:
        """True once the section should end."""
        return perf_counter() > self.until


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Args:
        name: its name on the command line.
        question: its heading.
        find: yields the findings as they come.
        seconds: time after which it should end.
    """

    name: str
    question: str
    find: Callable[[Place], Iterator[Finding]]
    seconds: int


def needs_a_gpu(what: str) -> Skipped:
    """Return the line in place of what only a GPU can show."""
    return Skipped(f"{what}: needs a GPU")


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as a table; a row that lacks a column has it empty."""
    return pd.DataFrame(rows)


def expect(holds: bool, text: str) -> Iterator[Miss]:
    """Yield a miss unless ``holds``."""
    if not holds:
        yield Miss(text)
