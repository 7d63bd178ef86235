"""Compute the cells that are missing: from lanes to outcomes, through an executor and into the ledger."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Protocol

from harness.api.executor import Executor
from harness.api.work import Cell, Outcome
from harness.engine.candidates import packed
from harness.engine.ledger import Ledger
from harness.errors import HarnessError, LedgerError, ModelError
from harness.scheduling.policies import SchedulingPolicy
from harness.scheduling.state import RunProgress, T


class ProgressListener(Protocol):
    """Told of what happens, for a progress display."""

    def started(self, policy: SchedulingPolicy, known: int, slots: int) -> None:
        """The cells are about to be computed, ``slots`` at a time; ``known`` were before."""

    def advanced(self, policy: SchedulingPolicy, cell: Cell, outcome: Outcome) -> None:
        """``cell`` is done and in the ledger."""

    def failed(self, label: str, error: ModelError) -> None:
        """The model ``label`` cannot be scored; the others go on."""


@dataclass
class Scheduler:
    """Who computes cells, where the outcomes go, and who is told.

    Args:
        executor: has been entered.
        in_flight: the cells that are being computed, each with the state that wants it and the number of its lane.
    """

    executor: Executor
    ledger: Ledger
    listener: ProgressListener
    in_flight: dict[Future[Outcome], tuple[object, int, Cell]] = field(default_factory=dict)

    def compute(self, state: RunProgress[T], policy: SchedulingPolicy) -> None:
        """Compute every cell that ``policy`` asks for.

        Each outcome is in the ledger before the next is looked at, so nothing computed is lost. What was begun in the
        hope that it would be asked for, and was not, goes on flying.
        """
        if not policy.is_done():
            self.listener.started(policy, sum(map(len, state.done)), self.executor.slots)
        while not policy.is_done():
            while len(self.in_flight) < self.executor.slots:
                number = policy.next_ready({number for origin, number, _ in self.in_flight.values() if origin is state})
                if number is None:
                    break
                cell = state.next(number)
                assert cell is not None
                self.in_flight[self.executor.submit(packed(cell, state, number, self.ledger))] = (state, number, cell)
            for future in wait(self.in_flight, return_when=FIRST_COMPLETED).done:
                origin, number, cell = self.in_flight.pop(future)
                if origin is not state:  # of an earlier agenda, which did not ask for it in the end
                    if future.exception() is None:
                        self.ledger.append(cell, future.result())
                    continue
                outcome = _land(future, cell, state, self.listener)
                if outcome is not None:
                    self.ledger.append(cell, outcome)
                    state.done[number].append(outcome)
                    self.listener.advanced(policy, cell, outcome)


def _land(future: Future[Outcome], cell: Cell, state: RunProgress[T], listener: ProgressListener) -> Outcome | None:
    """The outcome, or None after noting that the model has failed."""
    try:
        return future.result()
    except LedgerError:
        raise
    except HarnessError as error:
        failure = error if isinstance(error, ModelError) else ModelError(str(error))
    except Exception as error:  # whatever a network or an attack raises in the middle of a run
        failure = ModelError(f"stage {cell.stage}: {type(error).__name__}: {error}")
    label = cell.task.label
    if label not in state.failures:
        state.failures[label] = failure
        listener.failed(label, failure)
    return None
