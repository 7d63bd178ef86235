"""The contract of an executor: a place where trials are computed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import ClassVar

from harness.api.part import Part
from harness.api.work import Portion, Report

Deliver = Callable[[Sequence[Report]], None]
"""Takes the results of some trials of a portion; called from any thread, for one portion from one at a time."""
LOADING = 3600.0
"""Seconds that a model may take to be loaded, downloads included, and tried on a few images."""


class Executor(Part):
    """A place where portions of trials are computed, used as a context manager.

    Results come back while a portion is computed, about every second. A lost worker costs at most what it had not
    delivered; that is computed again by another one.
    """

    elsewhere: ClassVar[bool] = False
    """True if the workers are on other machines, so that this one needs none of their devices."""

    in_process: ClassVar[bool] = False
    """True if trials are computed in the process of the run. Models are then loaded there too, before the run; others
    are first tried in a process of their own, which they may end."""

    @property
    def loading_limit(self) -> float:
        """Seconds that a model may take to be loaded and tried, before the run."""
        return LOADING

    def worker_device(self, device: str) -> str:
        """Return the device that the benchmark's ``device`` is to its workers; each of them finds out about "auto".

        Raises:
            SpecError: the workers have no such device.
        """
        return device

    @abstractmethod
    def __enter__(self) -> Executor:
        """Start the workers, or prepare to start them."""

    @abstractmethod
    def __exit__(self, *exception: object) -> None:
        """Release the workers, without waiting for portions in flight."""

    @abstractmethod
    def capacity(self, device: str) -> int:
        """Return the number of portions to keep in flight on a device: enough to keep every worker busy."""

    @abstractmethod
    def submit(self, portion: Portion, deliver: Deliver) -> Future[None]:
        """Run `harness.engine.evaluate.evaluate` on ``portion`` on a worker.

        Args:
            portion: trials to compute.
            deliver: called with what the worker has yielded, in order, each result once.

        Returns:
            A future that is resolved once everything is delivered; it holds the error if there was one.
        """
