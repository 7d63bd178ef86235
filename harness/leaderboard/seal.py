"""Digests that show that a board is as it was written, at the end of its question file.

They are taken of values, not of bytes: a spreadsheet or git that writes the same numbers in other digits, quotes or
line ends has edited nothing. Whoever edits a board and its digests is not noticed: this is no signature. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.leaderboard import outcomes
from harness.leaderboard.row import FORMATS, LeaderboardRow
from harness.util.hashing import sha256

if TYPE_CHECKING:
    import pandas as pd

SEALED = ("question", "board", "outcomes")
END = re.compile("sha256:\n" + "".join(f"  {name}: ([0-9a-f]{{64}})\n" for name in SEALED) + r"\Z")


def digests(question: str, rows: Sequence[LeaderboardRow], marks: pd.DataFrame | None) -> dict[str, str]:
    """Return the digests by `SEALED`; without that of the outcomes where there are none.

    Args:
        question: text of the question file without its digests.
        rows: rows of the board, in order.
        marks: content of the outcome file.
    """
    found = {"question": sha256(question), "board": sha256([[row.written(name) for name in FORMATS] for row in rows])}
    if marks is not None:
        found["outcomes"] = sha256([[*key, [*texts.items()]] for key, texts in outcomes.stages(marks).items()])
    return found


def sealed(question: str, found: Mapping[str, str]) -> str:
    """Return the text of the question file, digests included."""
    return question + "sha256:\n" + "".join(f"  {name}: {found[name]}\n" for name in SEALED)


def parted(text: str) -> tuple[str, dict[str, str]]:
    """Return the question and the digests of a question file; no digests where it does not end with them."""
    text = text.replace("\r\n", "\n")
    end = END.search(text)
    return (text[: end.start()], dict(zip(SEALED, end.groups(), strict=True))) if end else (text, {})
