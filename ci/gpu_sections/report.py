"""Sections are run one after the other, within a budget, and what they find becomes a report."""

from __future__ import annotations

import gc
import re
import signal
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import pandas as pd
import torch

from gpu_sections.section import Finding, Miss, Place, Section, Skipped
from harness.engine.session import model_session
from harness.util.device_errors import give_back_memory

GRACE = 15
"""Seconds beyond its time after which a section that goes on is ended, so that what it has found is told."""
LONGEST = 1e6
"""Seconds that a timer takes at most."""


@dataclass(frozen=True)
class Outcome:
    """A section that has ended.

    Args:
        section: the section.
        findings: what it has found.
        seconds: time that it took.
    """

    section: Section
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def misses(self) -> int:
        """Number of findings that are not as they must be."""
        return sum(isinstance(finding, Miss) for finding in self.findings)

    @property
    def text(self) -> str:
        """The section as Markdown."""
        verdict = f"{self.misses} missed" if self.misses else "nothing missed"
        head = f"## {self.section.name}\n\n{self.section.question} {self.seconds:.0f} s, {verdict}."
        return "\n\n".join([head, *map(_said, self.findings)]) + "\n"


def outcomes(sections: Sequence[Section], place: Place) -> Iterator[Outcome]:
    """Run sections one after the other; one that would start when the budget is spent is left out."""
    for section in sections:
        if place.is_late:
            yield Outcome(section, (Skipped("all of it, as the time is up"),), 0.0)
            continue
        with tempfile.TemporaryDirectory() as home:
            until = min(place.until, perf_counter() + section.seconds)
            yield _outcome(section, replace(place, home=Path(home), until=until))
        model_session.cache_clear()
        gc.collect()
        give_back_memory()


def _outcome(section: Section, place: Place) -> Outcome:
    """Run a section; what it raises is a miss, and so is a section that does not end by itself."""
    started, findings = perf_counter(), list[Finding]()
    try:
        with _ended_at(place.until + GRACE):
            for finding in section.find(place):
                findings.append(finding)  # one by one, so that what came before an error is kept
    except TimeIsUp:
        findings.append(Miss(f"it did not end within {perf_counter() - started:.0f} s"))
    except Exception:  # whatever a device or a library raises
        findings.append(Miss(f"it raised\n\n```\n{traceback.format_exc()}```"))
    return Outcome(section, tuple(findings), perf_counter() - started)


class TimeIsUp(BaseException):
    """A section has taken too long; no handler of what it runs takes this for an error of its own."""


@contextmanager
def _ended_at(until: float) -> Iterator[None]:
    """Raise `TimeIsUp` in the block at a `perf_counter` time, once Python has its turn again."""

    def end(*_: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, min(max(until - perf_counter(), 0.001), LONGEST))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def report(ended: Sequence[Outcome], place: Place) -> str:
    """Return the whole report as Markdown."""
    missed = [outcome.section.name for outcome in ended if outcome.misses]
    verdict = f"Missed: {', '.join(missed)}." if missed else "Nothing missed."
    title = f"# {device_name(place)}\n\nWritten by `ci/gpu.py`, torch {torch.__version__}. {verdict}\n"
    return "\n".join([title, *(outcome.text for outcome in ended)])


def file_name(place: Place) -> str:
    """Return the name of the report's file, such as ``nvidia-h100-80gb-hbm3.md``."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(place).lower()).strip("-") + ".md"


def device_name(place: Place) -> str:
    """Return the GPU's name, or "pretend" on a CPU."""
    return torch.cuda.get_device_name(0) if place.is_gpu else "pretend"


def _said(finding: Finding) -> str:
    """Return a finding as Markdown."""
    if isinstance(finding, Miss):
        return f"**Missed**: {finding.text}"
    if isinstance(finding, Skipped):
        return f"Left out: {finding.text}."
    return finding if isinstance(finding, str) else markdown(finding)


def markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown; numbers with three digits that count."""
    lines = [f"| {' | '.join(table.columns)} |", f"|{'---|' * len(table.columns)}"]
    for row in table.astype(object).where(table.notna(), "").to_dict("records"):
        lines.append(f"| {' | '.join(map(_cell, row.values()))} |")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
