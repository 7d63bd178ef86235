"""The worker's side: a portion is computed, and every answer is sent as soon as it is there.

A worker that has lost its device says so with its last answer, a `DeviceLost`; it is of no use after that.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections import ChainMap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any, ClassVar, TypeAlias

from harness.errors import DeviceLost, ModelError

if TYPE_CHECKING:
    from harness.api.work import Portion, Report

TAKEN = ("busy or unavailable", "prohibited")
"""Words by which CUDA refuses a GPU on account of its compute mode."""

Answer: TypeAlias = "Sequence[Report] | Exception | None"
"""Results, of which more may follow; or the last answer: None after all results, or the error that ended them."""


def answers(portion: Portion) -> Iterator[Answer]:
    """Compute ``portion`` and yield its answers; an exception is one too, so that its type travels."""
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


def is_last(answer: Answer) -> bool:
    """Return whether no other answer follows."""
    return answer is None or isinstance(answer, Exception)


def _portable(error: Exception, where: str) -> Exception:
    """Return the error, or its text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # a library's own: no two fail alike
        return ModelError(f"{where}: {type(error).__name__}: {error}")
    return error


def packed(value: Answer | Portion) -> bytes:
    """Return the pickle of an answer or a portion, with the parts that a script defines, and with images as arrays.

    Arrays take a tenth of the time of tensors, and leave behind the batch that an image was cut out of.
    """
    stream = BytesIO()
    _pickler()(stream, pickle.HIGHEST_PROTOCOL).dump(value)
    return stream.getvalue()


@cache
def _pickler() -> Any:
    """Return a class of picklers that store tensors as arrays."""
    import cloudpickle
    from torch import Tensor, from_numpy

    class ArrayPickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: ClassVar[ChainMap[Any, Any]] = ChainMap(
            {Tensor: lambda tensor: (from_numpy, (tensor.numpy(),))}, cloudpickle.Pickler.dispatch_table
        )

    return ArrayPickler


def serve(parent: int) -> None:
    """Answer the portions that come in on standard input, until it ends or the process ``parent`` does."""
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    incoming, outgoing = _claim_streams()
    with suppress(Exception):  # while the parent pickles the portion; if it fails, the answer says so
        import harness.engine.evaluate  # noqa: F401
    with suppress(EOFError):
        while True:
            for answer in _answers_to(pickle.load(incoming)):
                outgoing.write(packed(answer))
                outgoing.flush()


def _answers_to(message: bytes) -> Iterator[Answer]:
    """Return the answers to a pickled portion."""
    try:
        portion = pickle.loads(message)
    except Exception as error:  # a module that is not installed here, say
        return iter([_portable(error, "a portion cannot be unpickled in a worker")])
    return answers(portion)


def _claim_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Return standard input and output; what others print goes to standard error from now on."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return incoming, outgoing


def _exit_with(parent: int) -> None:
    """Exit when the process ``parent`` has, even if it was killed and could not release its workers."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
