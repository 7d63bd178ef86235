"""Longest silence of a worker: as given, or from the pace at which the model was seen to classify images."""

from __future__ import annotations

from math import inf
from typing import Annotated, Literal

from pydantic import Field

from harness.api.threat import Passes
from harness.api.work import Portion

LEAST = 3600.0
"""Seconds that any worker may be silent: to load the model, and to compile it."""
FACTOR = 20.0
"""How many times longer than expected a worker may be silent."""
WIDEST = 512
"""Images of a batch, where the benchmark does not say."""
CLASSES = 1000
"""Classes for which the passes of an attack are counted."""

TimeLimit = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"]
"""Seconds that a worker may go without a result; "auto" follows from the pace of the model."""
REMEDY = "look where its code waits, or raise executor.time_limit"


def longest_silence(portion: Portion, time_limit: TimeLimit = "auto") -> float:
    """Return the seconds after which a worker without a result is taken for stuck.

    In the worst case no trial of a batch ends before its budget is spent. Infinite for what nobody can foresee: parts
    that are fitted on training images, and stages that do not say what they cost.
    """
    if time_limit != "auto":
        return time_limit
    task = portion.task
    if not task.pace:
        return inf
    passes = task.threat.passes(portion.stage, CLASSES) if portion.stage in task.threat.stages else Passes(forwards=1)
    if passes is None:
        return inf
    return max(LEAST, FACTOR * task.pace * passes.in_forwards * (task.batch_size or WIDEST))
