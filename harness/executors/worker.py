"""The worker's side: a portion is computed, and every answer is sent as soon as it is there.

A worker that has lost its device says so with its last answer, a `DeviceLost`; it is of no use after that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from harness.errors import DeviceLost, ModelError
from harness.util.foreign import told
from harness.util.process import is_ours

if TYPE_CHECKING:
    from harness.api.work import Portion, Report

TAKEN = ("busy or unavailable", "prohibited")
"""Words by which CUDA refuses a GPU on account of its compute mode."""

Answer: TypeAlias = "Sequence[Report] | Exception | None"
"""Results, of which more may follow; or the last answer: None after all results, or the error that ended them."""


def answers(portion: Portion) -> Iterator[Answer]:
    """Compute ``portion`` and yield its answers; an error of the harness is one too, so that its type travels."""
    try:
        yield from _reports(portion)
    except Exception as error:
        yield _portable(error, f"stage {portion.stage}")
    else:
        yield None


def _reports(portion: Portion) -> Iterator[Sequence[Report]]:
    """Compute ``portion`` and yield its results.

    Raises:
        DeviceLost: this process can no longer use its device, whatever it was that failed first.
    """
    from harness.engine.evaluate import evaluate
    from harness.util.device_errors import is_lost

    try:
        yield from evaluate(portion)
    except Exception as error:
        if is_lost(error):
            raise DeviceLost(explain_loss(error)) from error
        raise


def explain_loss(error: Exception) -> str:
    """Return what has happened to a device and what to do, from the error that was raised when it was lost."""
    first = next(iter(str(error).splitlines()), type(error).__name__)
    if any(words in first for words in TAKEN):
        return (
            f"The worker was refused its GPU ({first}). It may be in EXCLUSIVE_PROCESS mode with another process on "
            "it: set executor.workers to the number of GPUs"
        )
    return (
        f"The GPU failed ({first}). If it fails on this model alone, set device=cpu to see the operation; otherwise "
        "have the GPU checked"
    )


def _portable(error: Exception, where: str) -> Exception:
    """Return the error, or its text if whoever unpickles it would have to import the code of others."""
    known = is_ours(error) or type(error).__module__.startswith("submitit.")  # by which a job's time-out is known
    return error if known else ModelError(f"{where}: {told(error)}")
