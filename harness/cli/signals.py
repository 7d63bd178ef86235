"""Ctrl-C, SIGTERM and SIGHUP: each ends a command in order, and the exit code says which it was.

While there is nothing to end in order, the process ends at once: an exception in the middle of a long import may be
swallowed by it, or told as another one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from os import _exit  # which may be replaced later; see harness.util.foreign
from types import FrameType

ANSWERED = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(BaseException):
    """The process was asked to end. No KeyboardInterrupt, which a plug-in may raise as well.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number
        """Exit code, as a shell has it."""


_received: int | None = None
"""The signal that ended the block, while it ends."""
_orderly = False
"""Whether a signal raises `Interrupted`, to end what was begun in order; otherwise the process ends at once."""


def answer() -> None:
    """Answer the signals from now on, but for those that whoever started this process has it ignore, as nohup does."""
    for number in ANSWERED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _answer)


@contextmanager
def ended(orderly: bool) -> Iterator[None]:
    """Say how a signal within the block ends the process: in order by `Interrupted`, or at once.

    A second signal always ends it at once.
    """
    global _orderly, _received  # noqa: PLW0603
    before, _orderly, _received = _orderly, orderly, None
    try:
        yield
    except Exception as error:
        if _received is None:
            raise
        raise Interrupted(_received) from error  # which a library has told as an error of its own
    finally:
        _orderly = before


def _answer(number: int, frame: FrameType | None) -> None:
    global _orderly, _received
    if not _orderly:
        os.write(2, b"interrupted\n")
        _exit(128 + number)
    _orderly, _received = False, number
    raise Interrupted(number)
