"""Text for the reader of a message: suggestions for misspelt words, values in brief, keys as paths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import islice
from typing import Any

BRIEF = 120
"""Most characters of a value in a message."""
LONGEST_WORD = 60
"""Most characters of a word that a suggestion is looked for, and of a key in a message."""


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` if a known word is close, otherwise the empty string."""
    close = get_close_matches(word[:LONGEST_WORD], list(words), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def shown(value: object) -> str:
    """Return a value as Python writes it, cut to `BRIEF` characters; what is cut is never built."""
    text = "".join(_pieces(value, BRIEF + 1))
    return text if len(text) <= BRIEF else f"{text[:BRIEF]} …"


def _pieces(value: object, room: int) -> Iterable[str]:
    """Return the beginning of a value's text, of ``room`` characters or a few more."""
    if isinstance(value, str | bytes):
        return [repr(value[:room])]
    if isinstance(value, Mapping):
        entries = [f"{shown(key)}: {shown(entry)}" for key, entry in islice(value.items(), room // 4)]
        return ["{", ", ".join(entries), "}"]
    if isinstance(value, list | tuple):
        entries = [shown(entry) for entry in islice(value, room // 2)]
        brackets = ("[", "]") if isinstance(value, list) else ("(", ",)" if len(entries) == 1 else ")")
        return [brackets[0], ", ".join(entries), brackets[1]]
    return [repr(value)]


def key_path(steps: Iterable[Any], start: str = "") -> str:
    """Return keys and numbers of entries as one key: ``models[0].train.n``.

    Args:
        steps: the keys, and the entries' numbers as int.
        start: key in front of them.
    """
    path = start
    for step in steps:
        name = step if isinstance(step, str) and len(step) <= LONGEST_WORD else str(step)[:LONGEST_WORD]
        path += f"[{step}]" if isinstance(step, int) else f".{name}" if path else name
    return path
