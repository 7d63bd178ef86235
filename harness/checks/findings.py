"""Findings of the checks before a run, each with its remedy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from harness.errors import HarnessError, NothingToSteer
from harness.util.foreign import told

Severity = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """Finding of one check.

    Args:
        check: name of the check, one word.
        subject: label of the model, or key or option, that was checked.
        level: "ok", "warning", or "problem" if the benchmark or this model cannot be scored.
        text: what was found.
        remedy: what to do; empty if there is nothing to do.
    """

    check: str
    subject: str
    level: Severity
    text: str
    remedy: str = ""


def problem(check: str, subject: str, error: BaseException) -> Finding:
    """Return the finding for an error. In the harness's own messages the remedy comes after a semicolon."""
    if isinstance(error, NothingToSteer):
        remedies = ["remove it from the benchmark, or set steering.family to activations that it runs"]
        return Finding(check, subject, "problem", str(error), *remedies)
    if isinstance(error, HarnessError):
        text, *remedies = re.split(r"; (?![^(]*\))", str(error), maxsplit=1)  # no semicolon within brackets
    else:
        text, remedies = told(error), []
    return Finding(check, subject, "problem", text, *(remedies or [f"fix it, or remove {subject} from the benchmark"]))
