"""The course of a computation: rounds of trials, each decided by the answers to those before. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from harness.api.trial import Answer, Trial


class Course(Protocol):
    """Rounds of trials.

    A round depends on the answers told before and on nothing else: neither on who computes them, nor in which order
    they come, nor on what else is known.
    """

    def ask(self) -> list[Trial]:
        """Return the trials of the next round in canonical order, each asked for once; empty when it is over."""

    def tell(self, answers: Mapping[Trial, Answer]) -> None:
        """Take note of the answers to all trials of the round that was asked for; others are ignored."""

    def remaining(self) -> float:
        """Estimate how many passes of an image through the network are still to come, if no more image is fooled."""
