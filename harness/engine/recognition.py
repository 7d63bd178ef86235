"""Recognition of a network in the ledger: are its results of this network, and if not, what has changed? Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.api.records import BASELINE
from harness.api.work import Task
from harness.engine.fingerprint import alike

NETWORK = ("network", "answers")
"""Keys of `Task.identity` that say what a network computes, besides its weights."""

OTHER_ANSWERS = "the network answers otherwise than when these were computed; computing them again"
OTHER_CODE = (
    "its code, or what it holds besides its weights, has changed since these were computed; computing them again"
)
OTHER_THREAT = "the code of the threat has changed since these were computed; computing them again"


def recognised(task: Task, contexts: Sequence[Mapping[str, Any]]) -> tuple[Task, str]:
    """Return the task under the answers that the ledger knows its network by, and why results there are stale.

    Answers differ in their last bits from machine to machine, and an identity must not.

    Args:
        task: what the trials of a model share.
        contexts: identities of the results in the ledger, oldest first.

    Returns:
        The task, and a sentence for people; empty where nothing is stale.
    """
    own = task.identity(BASELINE)
    kept = [context for context in contexts if _agrees(context, own, NETWORK[1:])]
    for context in reversed(kept):
        if alike(context.get("answers", ()), task.answers):
            return replace(task, answers=tuple(map(tuple, context.get("answers", ())))), ""
    if any("answers" in context for context in kept):
        return task, OTHER_ANSWERS
    others = [context for context in contexts if _agrees(context, own, NETWORK)]
    if others:
        same = alike(others[-1].get("answers", ()), task.answers)
        return task, OTHER_CODE if same else OTHER_ANSWERS
    return task, OTHER_THREAT if any(_agrees(context, own, (*NETWORK, "code")) for context in contexts) else ""


def _agrees(context: Mapping[str, Any], own: Mapping[str, Any], aside: Sequence[str]) -> bool:
    """Return whether two identities are of the same question, some keys and the steering aside."""
    keys = (context.keys() | own.keys()) - {"steering", *aside}
    return all(context.get(key) == own.get(key) for key in keys)
