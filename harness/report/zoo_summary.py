"""The table of coverage of RobustBench's zoo, summed up by board."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.checks.zoo_coverage import Audit
from harness.util.batching import grouped

SUMMED_UP = (
    "build", "CT applies", "in part", "not", "steered wholly", "wholly by modules", "smooth extension",
)  # fmt: skip
"""Headings of `summed_up`, after the board and its number of entries."""


def summed_up(audits: Sequence[Audit]) -> list[tuple[str, ...]]:
    """Return a row of counts for each board, and for all: its name, its number of entries, then `SUMMED_UP`."""
    boards = grouped(audits, lambda audit: f"{audit.dataset}/{audit.threat}")
    return [_counts(name, part) for name, part in (*boards.items(), ("all", list(audits)))]


def _counts(name: str, audits: Sequence[Audit]) -> tuple[str, ...]:
    def count(keep: Callable[[Audit], bool]) -> str:
        return str(sum(map(keep, audits)))

    return (
        name,
        str(len(audits)),
        count(lambda one: one.builds == "yes"),
        count(lambda one: one.applicability == "yes"),
        count(lambda one: one.applicability.startswith("partial")),
        count(lambda one: one.applicability.startswith("no")),
        count(lambda one: one.sites not in ("", "0") and one.steered == one.sites),
        count(lambda one: one.sites not in ("", "0") and one.by_modules == one.sites),
        count(lambda one: one.smooth.isdecimal() and one.smooth != "0"),
    )
