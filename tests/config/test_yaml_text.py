"""YAML text: plain values by one rule, a key once, aliases written out, and every fault on its line."""

from __future__ import annotations

from typing import Any

import pytest

from harness.config.yaml_text import parse_yaml
from harness.errors import SpecError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-2", 0.01), ("9e-1", 0.9), ("8/255", 8 / 255), ("010", 10), ("5e3", 5000), ("0.70", 0.7), ("'3'", "3"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("yes", "yes"), ("no", "no"), ("1:30:00", "1:30:00"), ("2024-99-99", "2024-99-99"), ("1_000", "1_000"),
        ("=", "="), (".inf", ".inf"), ("1e-999999999", "1e-999999999"), ("12e4567", "12e4567"),
        ("[1, {a: b}]", [1, {"a": "b"}]), ("größe", "größe"), ('"a\\tb"', "a\tb"),
    ],
)  # fmt: skip
def test_a_value(text: str, value: Any) -> None:
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


def test_aliases_are_written_out_so_that_setting_one_leaves_the_others() -> None:
    value = parse_yaml("a: &x {n: 1, m: [1]}\nb: *x\nc: {<<: *x, n: 2}\n")
    assert value == {"a": {"n": 1, "m": [1]}, "b": {"n": 1, "m": [1]}, "c": {"n": 2, "m": [1]}}
    value["a"]["m"].append(2)
    assert value["b"]["m"] == value["c"]["m"] == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nname: x\nseed: 2\n", "seed: line 3: given twice, first on line 1; leave one out"),
        ("threat: {kind: Linf, eps: 8/255,\n  eps: 0.3}", "threat.eps: line 2: given twice, first on line 1"),
        ("models:\n- {a: 1}\n- {a: 1, 'a': 2}\n", "models[1].a: line 3: given twice, first on line 3"),
        ("a:\n  1: 2\n", "a: line 2: expected text as a key, found '1'"),
        ("? [a]\n: b\n", "line 1: expected text as a key, found a list or a mapping"),
        ("a: !!int 3\n", "a: line 1: found the tag 'tag:yaml.org,2002:int'; leave it out"),
        ("a: !!python/object:os.system x\n", "a: line 1: found the tag"),
        ('a: "\\e[31m"', "a: line 1: found the control character '\\x1b'; leave it out"),
        ('a: "\\ud800"', "a: line 1: found the control character '\\ud800'"),
        ("a: &x [1, *x]\n", "a[1]: line 1: *x stands within &x itself; leave it out"),
        ("a: 1\nb: " + "/".join(["x" * 256] * 2), "b: line 2: text of 513 characters is too long"),
        ("a: " + "x/" * 501, "a: line 1: text of 1,002 characters is too long"),
        ("a: 1\nb: [1\nc: 2", "not valid YAML: line 3, column 2: "),
        ("a: *x\n", "not valid YAML: line 1, column 4: found undefined alias 'x'"),
        ("a\n\x00", "not valid YAML: line 2: the character '\\x00'"),
        ('a: "\\UFFFFFFFF"', "not valid YAML: an escaped character"),
        ("--- 1\n--- 2\n", "not valid YAML: line 2, column 1: expected a single document"),
    ],
)  # fmt: skip
def test_a_fault_has_its_key_and_its_line(text: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_yaml(text)
    (line,) = str(error.value).splitlines()
    assert line.startswith(message)


def test_what_fits_the_budget_is_read() -> None:
    assert parse_yaml("[" + "12345, " * 10_000 + "]") == [12345] * 10_000
    assert parse_yaml("- " * 29 + "x") != "x"
