"""One rule for numbers: what is written as one is that number exactly, and everything else stays text."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.util.numbers import LARGEST, as_number, parse_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.03", 0.03), ("1e-2", 0.01), ("9e-1", 0.9), ("8/255", 8 / 255), (" 8 / 255 ", 8 / 255), (".5", 0.5),
        ("1.", 1.0), ("-0.5", -0.5), ("+3", 3), ("010", 10), ("5e3", 5000), ("1.5E+1", 15.0), ("0e5", 0),
        ("1000000000000000000", LARGEST), ("-9007199254740993", -9007199254740993),
    ],
)  # fmt: skip
def test_a_number(text: str, number: float) -> None:
    assert parse_number(text) == number
    assert type(parse_number(text)) is type(number)


@pytest.mark.parametrize(
    "text",
    [
        "", "e", ".", "1e", "e5", "1/", "/2", "1//2", "1/2/3", "0x10", "0b1", "1_000", "1:30", "2024-99-99", "nan",
        "inf", ".inf", "1,5", "٣", "1/0", "1e4000",
        "1000000000000000001", "1e400", "1e-400", "1e-999999999", "1e999999999", "9" * 5000,
        "1/" + "9" * 5000, "--1", "1 2",
    ],
)  # fmt: skip
def test_text(text: str) -> None:
    assert parse_number(text) is None
    assert as_number(text) == text


@given(st.floats(1e-300, 1e18))
def test_a_float_as_python_writes_it_is_itself(value: float) -> None:
    assert parse_number(repr(value)) == value


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**6))
def test_a_fraction_is_the_nearest_float(numerator: int, denominator: int) -> None:
    assert parse_number(f"{numerator}/{denominator}") == float(Fraction(numerator, denominator))


@pytest.mark.parametrize("value", [None, True, 3, 0.5, [], {}])
def test_what_is_no_text_stays_as_it_is(value: Any) -> None:
    assert as_number(value) is value
