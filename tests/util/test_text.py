"""Text for messages: values in brief, whatever their size, and keys as paths."""

from __future__ import annotations

from typing import Any

import pytest

from harness.util.text import BRIEF, did_you_mean, key_path, shown


@pytest.mark.parametrize("value", ["x", 3, 0.5, None, True, [], [1, "a"], {}, {"a": [1, {}]}, (), (1,), (1, 2), b"x"])
def test_a_small_value_is_shown_as_python_writes_it(value: Any) -> None:
    assert shown(value) == repr(value)


def laughs() -> Any:
    value: Any = ["lol"]
    for _ in range(40):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, ["x" * 1000] * 10**5, {str(i): i for i in range(10**5)}, laughs(), [[["x"] * 900] * 900] * 900],
)
def test_a_large_value_is_cut_before_it_is_built(value: Any) -> None:
    text = shown(value)
    assert len(text) == BRIEF + 2
    assert text.endswith(" …")


@pytest.mark.parametrize(
    ("steps", "path"),
    [
        (["models", 0, "train", "n"], "models[0].train.n"),
        ([], ""),
        (["a b"], "'a b'"),
        (["a", "b.c", "d\n"], "a.'b.c'.'d\\n'"),
        (["x" * 1000], "x" * 60),
    ],
)
def test_a_key_is_one_path(steps: list[Any], path: str) -> None:
    assert key_path(steps) == path


def test_a_path_goes_on_from_a_key() -> None:
    assert key_path([2, "n"], "models") == "models[2].n"


def test_a_word_of_any_length_is_compared() -> None:
    assert did_you_mean("treat", ["threat"]) == " (did you mean 'threat'?)"
    assert did_you_mean("x" * 10**6, ["threat"] * 100) == ""
