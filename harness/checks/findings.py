"""What a check found, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from harness.errors import HarnessError, NothingToSteer

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        check: its name, one word.
        subject: the model's label, or the key or option, that it is about.
        level: a "problem" keeps the benchmark, or this model, from being scored as it should.
        text: what was found.
        remedy: what to do; empty where nothing is to be done.
    """

    check: str
    subject: str
    level: Level
    text: str
    remedy: str = ""


def problem(check: str, subject: str, error: Exception) -> Finding:
    """What an error says; in those of the harness the remedy mostly stands after a semicolon."""
    if isinstance(error, NothingToSteer):
        return Finding(check, subject, "problem", str(error), "take it out of the benchmark, or steer what it does use")
    if isinstance(error, HarnessError):
        text, *remedies = re.split(r"; (?![^(]*\))", str(error), maxsplit=1)  # not within brackets
    else:
        text, remedies = f"{type(error).__name__}: {error}", []
    return Finding(check, subject, "problem", text, *(remedies or [f"mend it, or take {subject} out of the benchmark"]))
