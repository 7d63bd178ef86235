"""Text for the reader: suggestions for misspelt words, values in brief, keys as paths, foreign text made safe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

BRIEF = 120
"""Most characters of a value in a message."""
SHOWN = 10
"""Most names in a message."""
LONGEST_WORD = 60
"""Most characters of a word that a suggestion is looked for, and of a key in a message."""

ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-_]?)")
"""Escape sequences of a terminal (ECMA-48): for colours and the cursor, for its title, and the rest."""

FORMULA = ("=", "+", "-", "@")
"""Characters with which a cell of a spreadsheet starts a formula."""


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` if a known word is close, otherwise the empty string."""
    close = get_close_matches(word[:LONGEST_WORD], list(words), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def cleaned(text: str) -> str:
    """Return a line of foreign text without what a terminal, XML or a spreadsheet would take for a command.

    Escape sequences go, other characters that do not print are spaces.
    """
    printable = (char if char.isprintable() else " " for char in ESCAPES.sub("", text))
    return "".join(printable).rstrip()


def disarmed(name: str) -> str:
    """Return a name of others as it is shown everywhere: cleaned, and never a formula in a spreadsheet.

    Example:
        >>> disarmed("=1+1")
        "'=1+1"
    """
    shown = cleaned(name).strip()
    return f"'{shown}" if shown.startswith(FORMULA) else shown


def shown(value: object) -> str:
    """Return a value as Python writes it, cut to `BRIEF` characters; what is cut is never built."""
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > BRIEF:
            return f"{text[:BRIEF]} …"
    return text


def _pieces(value: object) -> Iterator[str]:
    """Yield a value's text piece by piece."""
    if isinstance(value, str | bytes):
        yield repr(value[: BRIEF + 1])
    elif isinstance(value, Mapping):
        yield "{"
        for place, (key, entry) in enumerate(value.items()):
            yield ", " if place else ""
            yield from _pieces(key)
            yield ": "
            yield from _pieces(entry)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "[" if isinstance(value, list) else "("
        for place, entry in enumerate(value):
            yield ", " if place else ""
            yield from _pieces(entry)
        yield "]" if isinstance(value, list) else ",)" if len(value) == 1 else ")"
    else:
        yield repr(value)


def listed(names: Sequence[str]) -> str:
    """Return the first names and the number of the others. One that does not print, or ends with a space, is quoted.

    Example:
        >>> listed(["dog", "dog "])
        "dog, 'dog '"
    """
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    brief = [name[:LONGEST_WORD] for name in names[:SHOWN]]
    return ", ".join(name if name and name == cleaned(name).strip() else repr(name) for name in brief) + more


def key_path(steps: Iterable[Any], start: str = "") -> str:
    """Return keys and numbers of entries as one key: ``models[0].train.n``. A key that is no word is quoted.

    Args:
        steps: the keys, and the entries' numbers as int.
        start: key in front of them.
    """
    path = start
    for step in steps:
        name = str(step)[:LONGEST_WORD]
        name = name if re.fullmatch(r"[\w<-]+", name) else repr(name)
        path += f"[{step}]" if isinstance(step, int) else f".{name}" if path else name
    return path
