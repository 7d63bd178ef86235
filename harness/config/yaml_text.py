"""YAML text to plain values: text, numbers, true and false, null, lists and mappings.

The one door for text from outside, with one budget. Scalars follow YAML 1.2, in which ``yes``, ``1:30`` and dates are
text and ``010`` is ten; numbers may be fractions, see `harness.util.numbers`.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

import yaml

from harness.errors import SpecError
from harness.util.numbers import NUMBER, as_number
from harness.util.text import key_path, shown

LARGEST_TEXT = 100_000
"""Most bytes of a text; the largest benchmark of ours has 1,500."""
BUDGET = 200_000
"""Most characters of all values, aliases written out; each value counts `OVERHEAD` more."""
OVERHEAD = 10
LONGEST_TEXT, LONGEST_NAME = 1000, 255
"""Most characters of a text, and bytes of a name in it if it is a path: what file systems can take."""
DEEPEST = 30
"""Most lists and mappings within each other; ours have six."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters of no name and no path: controls but for tab and newline, and halves of characters."""

TOO_LARGE = f"larger than {LARGEST_TEXT // 1000} kB, which no benchmark is; give the benchmark's own file"


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text. It is a tree: what has an alias is there several times.

    Args:
        text: one document, without tags.

    Raises:
        SpecError: it is not valid YAML, gives a key twice, or is over the budget; the message has the line.
    """
    if len(text) > LARGEST_TEXT:
        raise SpecError(TOO_LARGE)
    try:
        return _copied(_Loader(text).get_single_data())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        why = ", ".join(filter(None, (error.context, error.problem)))
        raise SpecError(f"not valid YAML: {where}{why}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(f"not valid YAML: line {line}: the character {chr(error.character)!r}") from error
    except (ValueError, OverflowError) as error:  # what PyYAML makes of "\UFFFFFFFF"
        raise SpecError("not valid YAML: an escaped character that there is none of") from error


def _copied(value: Any) -> Any:
    """Return a value without the entries that aliases share, so that setting one leaves the others."""
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    return [_copied(entry) for entry in value] if isinstance(value, list) else value


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses what is over the budget before it is made."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._path: list[Any] = []
        self._used = 0
        self._used_by: dict[str, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a value; ``index`` is the number of an entry of a list, the node of a value's key, or None."""
        event: yaml.NodeEvent = self.peek_event()  # type: ignore[no-untyped-call]
        self._path.append(index.value if isinstance(index, yaml.ScalarNode) else index)
        before = self._used
        self._spend(event)
        node: yaml.Node | None = super().compose_node(parent, index)
        if event.anchor and not isinstance(event, yaml.AliasEvent):
            self._used_by[event.anchor] = self._used - before
        self._path.pop()
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping, each key of which is text and is given once."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if key.tag not in (TEXT, MERGE):
                found = shown(key.value) if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
                self._refuse(key, f"expected text as a key, found {found}")
            if key.value in first:
                line = _line(first[key.value])
                self._refuse(key, f"given twice, first on line {line}; leave one out", key.value)
            first[key.value] = key
        return node

    def construct_number(self, node: yaml.ScalarNode) -> object:
        """Return the number that is written; text where it is out of range, which its key will refuse."""
        return as_number(node.value)

    def _spend(self, event: yaml.NodeEvent) -> None:
        """Take what a value needs from the budget."""
        if isinstance(event, yaml.AliasEvent):
            name = str(event.anchor)
            if name in self.anchors and name not in self._used_by:
                self._refuse(event, f"*{name} stands within &{name} itself; leave it out")
            self._used += self._used_by.get(name, 0)
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            self._refuse(event, f"found the tag {shown(event.tag)}; leave it out, a benchmark has none")
        text = event.value if isinstance(event, yaml.ScalarEvent) else ""
        if found := CONTROL.search(text):
            self._refuse(event, f"found the control character {found[0]!r}; leave it out")
        if len(text) > LONGEST_TEXT or any(len(name.encode()) > LONGEST_NAME for name in text.split("/")):
            self._refuse(event, f"text of {len(text):,} characters is too long, for a name or a path; shorten it")
        self._used += OVERHEAD + len(text)
        if self._used > BUDGET:
            self._refuse(event, "too many values, aliases written out, for a benchmark; shorten it")
        if len(self._path) > DEEPEST:
            self._refuse(event, f"more than {DEEPEST} lists and mappings within each other; nest fewer")

    def _refuse(self, place: yaml.Node | yaml.Event, why: str, *keys: str) -> NoReturn:
        key = key_path([step for step in self._path if step is not None] + list(keys))
        raise SpecError(f"{key}{': ' if key else ''}line {_line(place)}: {why}")


def _line(place: yaml.Node | yaml.Event) -> int:
    assert place.start_mark is not None
    return int(place.start_mark.line) + 1


TEXT, MERGE, NUMERIC = (f"tag:yaml.org,2002:{name}" for name in ("str", "merge", "float"))
_Loader.yaml_implicit_resolvers = {}  # not YAML 1.1's
_Loader.add_implicit_resolver(NUMERIC, NUMBER, list("-+.0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(MERGE, re.compile("<<$"), ["<"])
_Loader.add_constructor(NUMERIC, _Loader.construct_number)
