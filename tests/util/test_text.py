"""Names of others are disarmed once: no terminal, XML or spreadsheet takes them for a command."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.datasets.hugging_face import HuggingFace
from harness.models.checkpoint import Checkpoint
from harness.util.text import BRIEF, cleaned, did_you_mean, disarmed, key_path, shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("resnet18 β=0.9", "resnet18 β=0.9"),
        ("net\x1b[31;1mred\x1b[0m", "netred"),
        ("\x1b]0;title\x07net", "net"),
        ("\x1b]8;;http://evil\x1b\\net", "net"),
        ("good\rbad", "good bad"),
        ("a\tb\nc", "a b c"),
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("\x1b[0m+1", "'+1"),
        (" -1", "'-1"),
        ("@cmd", "'@cmd"),
        ("\u202egnp", "gnp"),
        ("\ud800", ""),
    ],
)
def test_a_name_is_disarmed(name: str, shown: str) -> None:
    assert disarmed(name) == shown


@given(st.text(st.characters()))
def test_what_is_disarmed_stays_as_it_is_and_goes_into_xml(name: str) -> None:
    shown = disarmed(name)
    assert disarmed(shown) == shown
    assert not shown.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert shown.isprintable()
    element = ElementTree.Element("case", name=shown)
    assert ElementTree.fromstring(ElementTree.tostring(element)).get("name") == shown
    assert "\x1b" not in cleaned(name)


def test_names_are_disarmed_where_they_enter() -> None:
    assert Checkpoint(builder="a:b", name="=1+1\x1b[2J").label == "'=1+1"
    assert HuggingFace(path="=x\x1b[2J/sets", split="test", n=3).label.startswith("'=x/sets")


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
