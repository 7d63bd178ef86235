"""Code of others, such as a builder, a network's forward pass or a plug-in: what it may raise, and how to tell it."""

from __future__ import annotations

import os
from typing import NoReturn

from harness.errors import LONGEST
from harness.util.text import cleaned

ENDINGS: tuple[type[BaseException], ...] = (SystemExit, GeneratorExit, KeyboardInterrupt)
"""What such code may raise to end more than itself. A signal to the command is another: see `harness.cli.signals`."""
ANYTHING: tuple[type[BaseException], ...] = (Exception, *ENDINGS)
"""Everything that such code may raise."""


class Exited(SystemExit):
    """Code of others has called ``os._exit`` in the process of the command."""


def refuse_exit() -> None:
    """From now on, have ``os._exit`` raise `Exited` in this process: no plug-in ends it as if all were done.

    In processes that are forked from it, ``os._exit`` still exits.
    """
    pid, leave = os.getpid(), os._exit

    def refuse(status: int) -> NoReturn:
        if os.getpid() != pid:
            leave(status)
        raise Exited(status)

    os._exit = refuse


def told(error: BaseException) -> str:
    """Return what was raised, as a clause of a message: its type and its text.

    Example:
        >>> told(SystemExit(0))
        'it called sys.exit(0)'
        >>> told(ValueError("no such layer"))
        'ValueError: no such layer'
    """
    if isinstance(error, SystemExit):
        return f"it called {'os._exit' if isinstance(error, Exited) else 'sys.exit'}({error.code!r})"
    try:
        text = cleaned(str(error)[:LONGEST])
    except ANYTHING:  # its text is their code too
        text = ""
    return f"{type(error).__name__}: {text}" if text else f"it raised {type(error).__name__}"
