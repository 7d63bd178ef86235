"""Names of others are disarmed once: no terminal, XML or spreadsheet takes them for a command."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.datasets.hugging_face import HuggingFace
from harness.models.checkpoint import Checkpoint
from harness.util.text import cleaned, disarmed


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
