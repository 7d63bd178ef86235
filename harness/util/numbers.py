"""Numbers as they are written in a benchmark file, by one rule: 0.03, 1e-2, 9e-1, 8/255."""

from __future__ import annotations

import re

DECIMAL = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
FRACTION = r"[-+]?[0-9]+ */ *[0-9]+"
NUMBER = re.compile(f"(?:{DECIMAL}|{FRACTION})$")
"""A number; leading zeros mean nothing, and 0x10, 1_000 and 1:30 are text."""

LONGEST, LARGEST = 40, 10**18
"""Most characters of a number, and the largest; what is beyond is text."""


def parse_number(text: str) -> int | float | None:
    """Return the number that a text is; None if it is none, or none that can be computed with.

    Args:
        text: such as ``0.03``, ``1e-2`` or ``8/255``. Whole numbers without a point are exact: ``5e3`` is 5000.
    """
    text = text.strip()
    if len(text) > LONGEST or not NUMBER.match(text):
        return None
    if "/" in text:
        numerator, denominator = map(int, text.split("/"))
        value = numerator / denominator if denominator else float("inf")
    else:
        value = float(text)
    vanished = value == 0 and re.search("[1-9]", re.split("[eE/]", text)[0])
    if vanished or abs(value) > LARGEST:
        return None
    return value if re.search("[./]", text) or not value.is_integer() else _whole(text, value)


def _whole(text: str, value: float) -> int | None:
    """Return a whole number exactly, beyond the 53 bits of a float too."""
    whole = int(value) if "e" in text.lower() else int(text)
    return whole if abs(whole) <= LARGEST else None


def as_number(value: object) -> object:
    """Return the number that a text is; anything else as it is."""
    number = parse_number(value) if isinstance(value, str) else None
    return value if number is None else number
