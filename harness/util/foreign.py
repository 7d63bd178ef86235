"""Code of others, such as a builder, a network's forward pass or a plug-in: what it may raise, and how to tell it."""

from __future__ import annotations

from harness.util.text import cleaned

ANYTHING: tuple[type[BaseException], ...] = (Exception, SystemExit, GeneratorExit)
"""Everything that such code may raise, but for a KeyboardInterrupt, which is the user's."""


def told(error: BaseException) -> str:
    """Return what was raised, as a clause of a message: its type and its text.

    Example:
        >>> told(SystemExit(0))
        'it called sys.exit(0)'
        >>> told(ValueError("no such layer"))
        'ValueError: no such layer'
    """
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    text = cleaned(str(error))
    return f"{type(error).__name__}: {text}" if text else f"it raised {type(error).__name__}"
