"""From the ``kind`` of a YAML mapping to the class that it names, through entry points alone.

The built-in parts are registered in pyproject.toml, third parties' in theirs, in the same way.
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
    """The entry points of ``group`` by kind, sorted; nothing is imported yet."""
    found = entry_points(group=f"ct_harness.{group}")
    return {point.name: point for point in sorted(found, key=lambda point: point.name)}


def part(group: str, kind: str) -> type[Part]:
    """The class registered as ``kind``.

    Raises:
        SpecError: there is none (says what there is), or the plug-in is broken (says whose it is).
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
    """For each kind of ``group``: its name, its keys (``key?`` may be left out), and its first sentence and owner."""
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
    """The part that the mapping ``value`` describes.

    Args:
        group: one of `GROUPS`.
        value: the mapping, with its ``kind``.
        where: the key it stands under, for errors.
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
    """What is wrong with the mapping at ``where``, one line a fault: the key, what was expected, what was found."""
    faults: list[dict[str, Any]] = [dict(fault) for fault in error.errors()]
    inner = [fault["loc"] for fault in faults]  # a bad entry also makes its list too short: told once, at the entry
    told = [fault for fault in faults if not any(loc[: len(fault["loc"])] == fault["loc"] != loc for loc in inner)]
    return "\n".join(_fault(fault, cls, where) for fault in told)


def _fault(fault: dict[str, Any], cls: type[Any], where: str) -> str:
    key = where
    for step in fault["loc"]:
        key += f"[{step}]" if isinstance(step, int) else f".{step}" if key else str(step)
    if fault["type"] == "extra_forbidden":
        inner = _inner(cls, fault["loc"][:-1])
        names = [field.alias or name for name, field in inner.model_fields.items()] if inner else []
        known = f"; known keys: {', '.join(names)}" if inner else ""
        return f"{key}: unknown key{did_you_mean(str(fault['loc'][-1]), names)}{known}"
    if fault["type"] == "missing":
        return f"{key}: missing, and it has no default"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == INSIDE:
        return "\n".join(line.replace(HERE, key, 1) for line in message.splitlines())
    if not key:  # of the whole mapping, which says itself what it is about
        return str(message)
    return f"{key}: {message[0].lower() + message[1:]}, found {fault['input']!r}"


HERE, INSIDE = "\0", "inside"
"""Where the key of a part inside of a part belongs in a message; and the type of such a fault."""


def build_inside(group: str, value: Any) -> Part:
    """As `build`, for a part inside of another one, whose key pydantic knows."""
    try:
        return build(group, value, HERE)
    except SpecError as error:
        raise PydanticCustomError(INSIDE, "{lines}", {"lines": str(error)}) from error


def _inner(cls: type[Any], steps: Sequence[Any]) -> type[BaseModel] | None:
    """The class of the mapping that lies there, if it is one of ours."""
    for step in steps:
        field = cls.model_fields.get(step)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        cls = field.annotation
    return cls
