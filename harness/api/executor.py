"""The contract of an executor: where cells are computed."""

from __future__ import annotations

from abc import abstractmethod
from concurrent.futures import Future

from harness.api.part import Part
from harness.api.work import Cell, Outcome


class Executor(Part):
    """Where cells are computed. Use as a context manager; a lost worker costs at most its own cells."""

    @abstractmethod
    def __enter__(self) -> Executor:
        """Get ready."""

    @abstractmethod
    def __exit__(self, *exception: object) -> None:
        """Let go of the workers, without waiting for cells in flight."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many cells to hold in flight: enough to keep every worker busy."""

    @abstractmethod
    def submit(self, cell: Cell) -> Future[Outcome]:
        """Compute ``cell`` some time: `harness.engine.evaluate.evaluate` of it, wherever that runs."""
