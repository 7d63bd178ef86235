"""Scheduler: sends the cells of a policy to an executor, and their outcomes to the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Protocol

from harness.api.executor import Executor
from harness.api.work import Cell, Outcome
from harness.engine.candidates import with_candidates
from harness.engine.ledger import Ledger
from harness.errors import HarnessError, LedgerError, ModelError
from harness.scheduling.policies import FullGridPolicy, SchedulingPolicy
from harness.scheduling.state import RunProgress, T


class ProgressListener(Protocol):
    """Receives the events of a run, to display its progress."""

    def started(self, policy: SchedulingPolicy, known: int, slots: int) -> None:
        """Take note that computation starts.

        Args:
            policy: chooses the cells.
            known: number of cells whose outcome the ledger holds.
            slots: number of cells computed at a time.
        """

    def advanced(self, policy: SchedulingPolicy, cell: Cell, outcome: Outcome) -> None:
        """Take note that ``cell`` is computed and in the ledger."""

    def failed(self, label: str, error: ModelError) -> None:
        """Take note that the model ``label`` cannot be scored; the others go on."""


@dataclass
class Scheduler:
    """Keeps an executor busy with the cells that a policy asks for, and the ledger up to date.

    Args:
        executor: computes the cells; its context has been entered.
        ledger: receives every outcome.
        listener: receives the events.
        failures: errors of the models that have failed, by label.
        in_flight: cells being computed, each with the progress that it belongs to and the number of its chain.
    """

    executor: Executor
    ledger: Ledger
    listener: ProgressListener
    failures: dict[str, ModelError] = field(default_factory=dict)
    in_flight: dict[Future[Outcome], tuple[object, int, Cell]] = field(default_factory=dict)

    def progress(self, chains: Sequence[T]) -> RunProgress[T]:
        """Return the progress of ``chains`` as the ledger has it; models that have failed make none."""
        return RunProgress(chains, self.ledger.get, self.failures)

    def compute_all(self, chains: Sequence[T]) -> RunProgress[T]:
        """Compute every cell of ``chains``, and return the outcomes."""
        progress = self.progress(chains)
        self.compute(progress, FullGridPolicy(progress))
        return progress

    def compute(self, progress: RunProgress[T], policy: SchedulingPolicy) -> None:
        """Compute every cell that ``policy`` asks for, and add the outcomes to ``progress``.

        Each outcome goes to the ledger before the next is collected, so nothing computed is lost. A cell started ahead
        of being asked for stays in flight if it never is, and its outcome goes to the ledger all the same.
        """
        if not policy.is_done():
            self.listener.started(policy, sum(map(len, progress.done)), self.executor.slots)
        while not policy.is_done():
            self._submit(progress, policy)
            for future in wait(self.in_flight, return_when=FIRST_COMPLETED).done:
                self._collect(future, progress, policy)

    def _submit(self, progress: RunProgress[T], policy: SchedulingPolicy) -> None:
        """Start cells until all slots are taken, or none is ready."""
        while len(self.in_flight) < self.executor.slots:
            number = policy.next_ready({number for owner, number, _ in self.in_flight.values() if owner is progress})
            if number is None:
                return
            cell = progress.next(number)
            assert cell is not None
            future = self.executor.submit(with_candidates(cell, progress, number, self.ledger))
            self.in_flight[future] = (progress, number, cell)

    def _collect(self, future: Future[Outcome], progress: RunProgress[T], policy: SchedulingPolicy) -> None:
        """Record the outcome of a finished cell, or that its model has failed."""
        owner, number, cell = self.in_flight.pop(future)
        if owner is not progress:  # started ahead by an earlier policy, which did not ask for it in the end
            if future.exception() is None:
                self.ledger.append(cell, future.result())
            return
        try:
            outcome = future.result()
        except LedgerError:
            raise
        except HarnessError as error:
            self._fail(progress, cell, error if isinstance(error, ModelError) else ModelError(str(error)))
        except Exception as error:  # whatever a network or an attack raises in the middle of a run
            self._fail(progress, cell, ModelError(f"stage {cell.stage}: {type(error).__name__}: {error}"))
        else:
            self.ledger.append(cell, outcome)
            progress.done[number].append(outcome)
            self.listener.advanced(policy, cell, outcome)

    def _fail(self, progress: RunProgress[T], cell: Cell, failure: ModelError) -> None:
        label = cell.task.label
        if label not in progress.failures:
            progress.failures[label] = failure
            self.listener.failed(label, failure)
