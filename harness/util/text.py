"""Text for the reader: suggestions for misspelt words, and foreign text made safe to show."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-_]?)")
"""Escape sequences of a terminal (ECMA-48): for colours and the cursor, for its title, and the rest."""


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` if a known word is close, otherwise the empty string."""
    close = get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def cleaned(text: str) -> str:
    """Return a line of foreign text without what a terminal, XML or a spreadsheet would take for a command.

    Escape sequences go, other characters that do not print are spaces.
    """
    printable = (char if char.isprintable() else " " for char in ESCAPES.sub("", text))
    return "".join(printable).rstrip()
