"""A place to run the code of models before a run: a process that it may end, without the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from harness.api.executor import Executor
from harness.util.process import Awaited, Process

T = TypeVar("T")


class Call(Protocol):
    """Calls a function that runs a model's code."""

    def __call__(self, label: str, function: Callable[..., T], *arguments: Any) -> T:
        """Return what a function returns.

        Args:
            label: the model's name on the leaderboard.
            function: the function, importable; it and its arguments are pickled.
            arguments: its arguments.

        Raises:
            ModelError: the model has ended the process, took too long, or raised something.
        """


@contextmanager
def apart(executor: Executor) -> Iterator[Call]:
    """Within the block, call functions in another process; in this one if the executor computes here anyway.

    Each model has a process of its own: whatever its code leaves behind there, such as another default dtype or a
    patched ``torch.relu``, is not the next one's.
    """
    if executor.in_process:
        yield _here
        return
    with Process({}, preload="harness.engine.prepare") as process:
        labels = set[str]()

        def call(label: str, function: Callable[..., T], *arguments: Any) -> T:
            if labels - {label}:
                process.kill()
            labels.clear()
            labels.add(label)
            awaited = Awaited(label, "loaded and tried", executor.loading_limit)
            return process.call(function, *arguments, awaited=awaited)

        yield call


def _here(label: str, function: Callable[..., T], *arguments: Any) -> T:
    return function(*arguments)
