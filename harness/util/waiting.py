"""Lines on stderr that say what is waited for, so that no silence is long."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

FIRST_NOTE = 15.0
"""Seconds of silence after which a line says what is awaited; the next comes after twice as many."""


@contextmanager
def noted(what: str) -> Iterator[None]:
    """Say from time to time that what the block does has not ended.

    Args:
        what: what it does, such as "importing x".
    """
    ended = threading.Event()
    threading.Thread(target=_note, args=(what, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _note(what: str, ended: threading.Event) -> None:
    waited, note = 0.0, FIRST_NOTE
    while not ended.wait(note - waited):
        say(f"{what}: no end for {note:.0f} s; still waiting")
        waited, note = note, 2 * note


def say(line: str) -> None:
    """Print a line on stderr, be it read by anybody or not."""
    with suppress(OSError, ValueError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
