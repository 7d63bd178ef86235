"""The contract of an executor: a place where cells are computed."""

from __future__ import annotations

from abc import abstractmethod
from concurrent.futures import Future

from harness.api.part import Part
from harness.api.work import Cell, Outcome


class Executor(Part):
    """A place where cells are computed, used as a context manager. A lost worker costs at most its own cells."""

    @abstractmethod
    def __enter__(self) -> Executor:
        """Start the workers, or prepare to start them."""

    @abstractmethod
    def __exit__(self, *exception: object) -> None:
        """Release the workers, without waiting for cells in flight."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """Number of cells to keep in flight: enough to keep every worker busy."""

    @abstractmethod
    def submit(self, cell: Cell) -> Future[Outcome]:
        """Run `harness.engine.evaluate.evaluate` on ``cell`` on a worker; the future holds its result or its error."""
