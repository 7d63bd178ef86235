"""Validation errors of pydantic in the words of the benchmark file: the key, what was expected, what was found."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo

from harness.util.numbers import as_number
from harness.util.text import did_you_mean, disarmed, key_path, shown

Name = Annotated[str, AfterValidator(disarmed)]
"""A name of a part, as the user gives it and as it is shown."""

KEY, NESTED = "\0", "nested"
"""Placeholder for the key in the message of a part within a part; and pydantic's type of such a fault."""

WRITTEN = BeforeValidator(as_number)
"""Annotates a number that may be quoted, as ``"8/255"``; see `harness.util.numbers`."""

Count = Annotated[int, Field(strict=True, gt=0, le=1_000_000)]
"""A number of things to be done, such as steps: beyond a million it is a slip."""

Few = Annotated[int, Field(strict=True, gt=0, le=1_000)]
"""A number of repetitions of what takes many steps itself."""

MOST_LINES = 10
"""Most faults of one mapping that are told."""


def spelt(pattern: str, words: str) -> tuple[AfterValidator, FieldInfo]:
    """Annotate a text of some form, which a message tells in words and the JSON Schema as a pattern.

    Args:
        pattern: regular expression of the whole text.
        words: what is expected.
    """

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"expected {words}")
        return text

    return AfterValidator(check), Field(json_schema_extra={"pattern": f"^{pattern}$"})


EXPECTED = {
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:,.10g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:,.10g}",
    "multiple_of": "a multiple of {multiple_of:g}",
    "finite_number": "a finite number",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "path_type": "text",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length:,}",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "union_tag_not_found": "a mapping with a kind",
    "union_tag_invalid": "one of the kinds {expected_tags}",
}
"""Expected value by pydantic's type of fault; for other types the library's own message has to do."""

Fault = Mapping[str, Any]
Steps = tuple[Any, ...]


def explain(error: ValidationError, cls: type[Any], where: str, fields: Mapping[str, Any]) -> str:
    """Return a line for each fault of a mapping: the key, what was expected, and what was found.

    Args:
        error: pydantic's error.
        cls: class that the mapping was to become.
        where: key of the mapping in the YAML; empty for the whole file.
        fields: the mapping.
    """
    faults = [(_steps(fault["loc"], fields, fault["type"]), fault) for fault in error.errors(include_url=False)]
    outer = {steps[:length] for steps, _ in faults for length in range(len(steps))}
    innermost = [
        (steps, fault) for steps, fault in faults if steps not in outer
    ]  # a bad entry also makes its list too short: report it once, at the entry
    groups = [(steps, [fault for _, fault in group]) for steps, group in groupby(innermost, key=lambda found: found[0])]
    lines = [_line(group, key_path(steps, where), _owner(cls, steps, fields)) for steps, group in groups[:MOST_LINES]]
    more = [f"{where or 'the file'}: {len(groups) - MOST_LINES} more faults"] if len(groups) > MOST_LINES else []
    return "\n".join(lines + more)


def _steps(loc: Sequence[Any], fields: Any, kind: str) -> Steps:
    """Return the keys and indices of a fault's location; pydantic also puts in the branches of unions."""
    steps: list[Any] = []
    for step in loc:
        if isinstance(step, int) or (isinstance(fields, Mapping) and step in fields):
            steps.append(step)
            fields = _entry(fields, step)
    return (*steps, loc[-1]) if kind in ("missing", "invalid_key") else tuple(steps)


def _entry(fields: Any, step: Any) -> Any:
    """Return an entry of a mapping or list; None where a number stands for a list of one."""
    try:
        return fields[step]
    except (TypeError, LookupError):
        return None


def _line(faults: Sequence[Fault], key: str, owner: type[BaseModel] | None) -> str:
    """Return the line for the faults at one key: several if each branch of a union has one of its own."""
    fault = next((fault for fault in faults if fault["type"] == "value_error"), faults[0])  # ours says most
    if fault["type"] in ("extra_forbidden", "invalid_key"):
        return f"{key}: unknown key{_known(str(fault['loc'][-1]), owner)}"
    if fault["type"] == "missing":
        return f"{key}: missing, and it has no default"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == NESTED:  # a line for each fault of the nested part
        return "\n".join(line.replace(KEY, key, 1) for line in message.splitlines())
    if not key:  # a fault of the whole file, whose message names the key
        return message
    if all(each["type"] in EXPECTED for each in faults):
        expected = [EXPECTED[each["type"]].format(**each.get("ctx", {})) for each in faults]
        message = f"expected {' or '.join(dict.fromkeys(expected))}"
    found = "" if _is_parsed(fault["input"]) else f", found {shown(fault['input'])}"
    return f"{key}: {message[0].lower() + message[1:]}{found}"


def _is_parsed(value: Any) -> bool:
    """Return whether a value is no longer what was written, but a part or a list of parts."""
    return isinstance(value[0] if isinstance(value, list | tuple) and value else value, BaseModel)


def _known(key: str, owner: type[BaseModel] | None) -> str:
    """Return the keys that there are in place of an unknown one, the likeliest first."""
    if owner is None:
        return ""
    names = [field.alias or name for name, field in owner.model_fields.items()]
    return f"{did_you_mean(key, names)}; known keys: {', '.join(names) or 'none but kind'}"


def _owner(cls: type[BaseModel], steps: Steps, fields: Any) -> type[BaseModel] | None:
    """Return the class of the mapping that the last of ``steps`` is a key of, if it can be of one class only."""
    owners = [cls]
    for step in steps[:-1]:
        fields = _entry(fields, step)
        if not isinstance(step, int):  # the classes of a list are those of its entries
            annotations = [owner.model_fields[step].annotation for owner in owners if step in owner.model_fields]
            owners = [found for annotation in annotations for found in _classes(annotation)]
    kind = _entry(fields, "kind")
    owners = [
        owner for owner in owners if "kind" not in owner.model_fields or owner.model_fields["kind"].default == kind
    ]
    return owners[0] if len(owners) == 1 else None


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    """Return the classes of the mappings that an annotation admits, as itself, a branch of a union or an entry."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _classes(argument)
