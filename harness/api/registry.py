"""Registry of the parts: from the ``kind`` of a YAML mapping to the class that it names.

Classes are found through entry points alone. The built-in parts are registered like those of third parties, in
pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from harness.api.part import Part
from harness.errors import SpecError
from harness.util.text import did_you_mean

GROUPS = ("models", "datasets", "threats", "executors")


def registered(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of ``group`` by kind, sorted, without importing them."""
    found = entry_points(group=f"ct_harness.{group}")
    return {point.name: point for point in sorted(found, key=lambda point: point.name)}


def part(group: str, kind: str) -> type[Part]:
    """Return the class registered as ``kind``.

    Raises:
        SpecError: the kind is unknown (the message lists those known), or the plug-in is broken (it names the package).
    """
    points = registered(group)
    if kind not in points:
        raise SpecError(f"unknown kind {kind!r}{did_you_mean(kind, points)}; known {group}: {', '.join(points)}")
    point = points[kind]
    owner = point.dist.name if point.dist else "unknown package"
    try:
        found = point.load()
    except Exception as error:  # whatever a third party's import raises
        raise SpecError(
            f"kind {kind!r} (from {owner}) cannot be imported: {error!r}; repair or uninstall it"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Part) and found.kind == kind):
        raise SpecError(f"kind {kind!r} (from {owner}): {point.value} is not a part whose kind is {kind!r}")
    return found


def described(group: str) -> list[tuple[str, str, str]]:
    """Return a row for each kind of ``group``: its name, its keys (``key?`` is optional), and what it is."""
    rows = []
    for kind, point in registered(group).items():
        owner = point.dist.name if point.dist else ""
        origin = "" if owner == "ct-harness" else f" [{owner}]"
        try:
            cls = part(group, kind)
        except SpecError as error:
            rows.append((kind, "", str(error)))
            continue
        keys = [name if field.is_required() else f"{name}?" for name, field in cls.model_fields.items()]
        rows.append((kind, ", ".join(keys), (cls.__doc__ or "").strip().splitlines()[0] + origin))
    return rows


def build(group: str, value: Any, where: str) -> Part:
    """Return the part that a mapping describes.

    Args:
        group: group of entry points in which the kind is looked up, one of `GROUPS`.
        value: the mapping with its ``kind``; a part is returned as it is.
        where: key of the mapping in the YAML, for error messages.

    Raises:
        SpecError: the mapping does not describe a part; one line for each fault.
    """
    if isinstance(value, Part):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        raise SpecError(
            f"{where}: expected a mapping with a kind (one of {', '.join(registered(group))}), found {value!r}"
        )
    fields = {key: entry for key, entry in value.items() if key != "kind"}
    try:
        cls = part(group, value["kind"])
    except SpecError as error:
        raise SpecError(f"{where}.kind: {error}") from error
    try:
        return cls.model_validate(fields)
    except ValidationError as error:
        raise SpecError(explain(error, cls, where)) from error


def explain(error: ValidationError, cls: type[Any], where: str) -> str:
    """Return a line for each fault of a mapping: the key, what was expected, and what was found.

    Args:
        error: pydantic's error.
        cls: class that the mapping was to become.
        where: key of the mapping in the YAML; empty for the whole file.
    """
    faults: list[dict[str, Any]] = [dict(fault) for fault in error.errors()]
    keys = [fault["loc"] for fault in faults]  # a bad entry also makes its list too short: report it once, at the entry
    innermost = [fault for fault in faults if not any(key[: len(fault["loc"])] == fault["loc"] != key for key in keys)]
    return "\n".join(_explain_one(fault, cls, where) for fault in innermost)


def _explain_one(fault: dict[str, Any], cls: type[Any], where: str) -> str:
    """Return the line for one fault; a nested part brings a line for each of its own."""
    key = where
    for step in fault["loc"]:
        key += f"[{step}]" if isinstance(step, int) else f".{step}" if key else str(step)
    if fault["type"] == "extra_forbidden":
        owner = _class_at(cls, fault["loc"][:-1])
        names = [field.alias or name for name, field in owner.model_fields.items()] if owner else []
        known = f"; known keys: {', '.join(names)}" if owner else ""
        return f"{key}: unknown key{did_you_mean(str(fault['loc'][-1]), names)}{known}"
    if fault["type"] == "missing":
        return f"{key}: missing, and it has no default"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == NESTED:
        return "\n".join(line.replace(KEY, key, 1) for line in message.splitlines())
    if not key:  # a fault of the whole file, whose message names the key
        return str(message)
    return f"{key}: {message[0].lower() + message[1:]}, found {fault['input']!r}"


KEY, NESTED = "\0", "nested"
"""Placeholder for the key in the message of a nested part; and pydantic's type of such a fault."""


def build_inside(group: str, value: Any) -> Part:
    """Return the part that a mapping within another part describes, as `build` does; for a pydantic validator.

    Args:
        group: group of entry points in which the kind is looked up, one of `GROUPS`.
        value: the mapping with its ``kind``.

    Raises:
        PydanticCustomError: the mapping does not describe a part; `explain` puts in its key, which pydantic knows.
    """
    try:
        return build(group, value, KEY)
    except SpecError as error:
        raise PydanticCustomError(NESTED, "{lines}", {"lines": str(error)}) from error


def _class_at(cls: type[Any], steps: Sequence[Any]) -> type[BaseModel] | None:
    """Return the class of the mapping at ``steps`` below ``cls``, if it is a single one."""
    for step in steps:
        field = cls.model_fields.get(step)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        cls = field.annotation
    return cls
