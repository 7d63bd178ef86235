"""Validation errors of pydantic in the words of the benchmark file: the key, what was expected, what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ValidationError

from harness.util.text import did_you_mean, disarmed

Name = Annotated[str, AfterValidator(disarmed)]
"""A name of a part, as the user gives it and as it is shown."""

KEY, NESTED = "\0", "nested"
"""Placeholder for the key in the message of a part within a part; and pydantic's type of such a fault."""

EXPECTED = {
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "finite_number": "a finite number",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_too_short": "text of at least {min_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "literal_error": "{expected}",
    "tuple_type": "a list",
    "too_short": "a list of at least {min_length}",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "union_tag_not_found": "a mapping with a kind",
    "union_tag_invalid": "one of the kinds {expected_tags}",
}
"""Expected value by pydantic's type of fault; for other types the library's own message has to do."""


def explain(error: ValidationError, cls: type[Any], where: str, fields: Mapping[str, Any]) -> str:
    """Return a line for each fault of a mapping: the key, what was expected, and what was found.

    Args:
        error: pydantic's error.
        cls: class that the mapping was to become.
        where: key of the mapping in the YAML; empty for the whole file.
        fields: the mapping.
    """
    faults = [(_steps(fault["loc"], fields, fault["type"]), dict(fault)) for fault in error.errors()]
    innermost = [
        (steps, fault)  # a bad entry also makes its list too short: report it once, at the entry
        for steps, fault in faults
        if not any(other[: len(steps)] == steps != other for other, _ in faults)
    ]
    return "\n".join(
        _line([fault for _, fault in group], _joined(where, steps), cls, steps)
        for steps, group in groupby(innermost, key=lambda found: found[0])
    )


def _steps(loc: Sequence[Any], fields: Any, kind: str) -> tuple[Any, ...]:
    """Return the keys and indices of a fault's location; pydantic also puts in the branches of unions."""
    steps: list[Any] = []
    for step in loc:
        if isinstance(step, int) or (isinstance(fields, Mapping) and step in fields):
            steps.append(step)
            fields = _entry(fields, step)
    return (*steps, loc[-1]) if kind == "missing" else tuple(steps)


def _entry(fields: Any, step: Any) -> Any:
    """Return an entry of a mapping or list; None where a number stands for a list of one."""
    try:
        return fields[step]
    except (TypeError, LookupError):
        return None


def _joined(where: str, steps: Sequence[Any]) -> str:
    key = where
    for step in steps:
        key += f"[{step}]" if isinstance(step, int) else f".{step}" if key else str(step)
    return key


def _line(faults: Sequence[dict[str, Any]], key: str, cls: type[Any], steps: Sequence[Any]) -> str:
    """Return the line for the faults at one key: several if each branch of a union has one of its own."""
    fault = faults[0]
    if fault["type"] == "extra_forbidden":
        owner = _class_at(cls, steps[:-1])
        names = [field.alias or name for name, field in owner.model_fields.items()] if owner else []
        known = f"; known keys: {', '.join(names)}" if owner else ""
        return f"{key}: unknown key{did_you_mean(str(steps[-1]), names)}{known}"
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
    return f"{key}: {message[0].lower() + message[1:]}, found {fault['input']!r}"


def _class_at(cls: type[Any], steps: Sequence[Any]) -> type[BaseModel] | None:
    """Return the class of the mapping at ``steps`` below ``cls``, if it can be of one class only."""
    for step in steps:
        field = cls.model_fields.get(step)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        cls = field.annotation
    return cls
