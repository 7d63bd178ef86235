"""Registry of the parts: from the ``kind`` of a YAML mapping to the class that it names.

Classes are found through entry points alone. The built-in parts are registered like those of third parties, in
pyproject.toml.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from traceback import walk_tb
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from harness.api.part import Part
from harness.api.validation import KEY, NESTED, explain
from harness.errors import SpecError
from harness.util.foreign import ANYTHING, told
from harness.util.text import did_you_mean, shown
from harness.util.waiting import noted

OURS = "ct-harness"
"""The package that registers the built-in parts."""
GROUPS = ("models", "datasets", "threats", "executors")


def registered(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of ``group`` by kind, sorted, without importing them."""
    return {point.name: point for point in sorted(_installed(group), key=lambda point: point.name)}


def _installed(group: str) -> EntryPoints:
    return _installed_on(tuple(sys.path), f"ct_harness.{group}")


@cache
def _installed_on(path: tuple[str, ...], name: str) -> EntryPoints:
    """Return a group of the packages on a search path; looking them through takes longer than reading a benchmark."""
    return entry_points(group=name)


def owner_of(point: EntryPoint) -> str:
    """Return the package that has registered a part."""
    return point.dist.name if point.dist else "unknown package"


def part(group: str, kind: str) -> type[Part]:
    """Return the class registered as ``kind``.

    Raises:
        SpecError: the kind is unknown (the message lists those known), registered twice, or its plug-in is broken (it
            names the package).
    """
    points = registered(group)
    if kind not in points:
        raise SpecError(f"unknown kind {shown(kind)}{did_you_mean(kind, points)}; known {group}: {', '.join(points)}")
    point, owner = points[kind], owner_of(points[kind])
    claims = {f"{other.value} (from {owner_of(other)})" for other in _installed(group).select(name=kind)}
    if len(claims) > 1:
        raise SpecError(f"kind {kind!r} is registered twice: {', '.join(sorted(claims))}; uninstall one of them")
    try:
        with redirect_stdout(sys.stderr), _noted(point):  # stdout is the answer
            found = point.load()
    except ANYTHING as error:
        raise SpecError(
            f"kind {kind!r} (from {owner}) cannot be imported: {told(error)}; repair or uninstall it"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Part) and found.kind == kind):
        raise SpecError(f"kind {kind!r} (from {owner}): {point.value} is not a part whose kind is {kind!r}")
    return found


def _noted(point: EntryPoint) -> AbstractContextManager[None]:
    """Say what is waited for where a module is imported for long; a part that is there already needs no thread."""
    if point.module in sys.modules:
        return nullcontext()
    return noted(f"importing kind {point.name!r} (from {owner_of(point)})")


def described(group: str) -> list[tuple[str, str, str]]:
    """Return a row for each kind of ``group``: its name, its keys (``key?`` is optional), and what it is."""
    return [_row(group, kind, point) for kind, point in registered(group).items()]


def _row(group: str, kind: str, point: EntryPoint) -> tuple[str, str, str]:
    try:
        cls = part(group, kind)
    except SpecError as error:
        return kind, "", str(error)
    keys = [name if field.is_required() else f"{name}?" for name, field in cls.model_fields.items()]
    what = next(iter((cls.__doc__ or "").strip().splitlines()), "")
    owner = owner_of(point)
    return kind, ", ".join(keys), what if owner == OURS else f"{what} [{owner}]"


def plugin_behind(error: BaseException) -> str:
    """Return the third party's plug-in in whose code an error was raised, and where; empty where it was in none."""
    points = [point for group in GROUPS for point in _installed(group)]
    owners = {_top(point.module): owner_of(point) for point in points}
    for frame, line in reversed([*walk_tb(error.__traceback__)]):
        owner = owners.get(_top(frame.f_globals.get("__name__", "")), OURS)
        if owner != OURS:
            return f"the plug-in {owner} ({Path(frame.f_code.co_filename).name}, line {line})"
    return ""


def _top(module: str) -> str:
    return module.partition(".")[0]


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
            f"{where}: expected a mapping with a kind (one of {', '.join(registered(group))}), found {shown(value)}"
        )
    fields = {key: entry for key, entry in value.items() if key != "kind"}
    try:
        cls = part(group, value["kind"])
    except SpecError as error:
        raise SpecError(f"{where}.kind: {error}") from error
    try:
        return cls.model_validate(fields)
    except ValidationError as error:
        raise SpecError(explain(error, cls, where, fields)) from error


def build_inside(group: str, value: Any) -> Part:
    """Return the part that a mapping within another part describes, as `build` does; for a pydantic validator.

    Args:
        group: group of entry points in which the kind is looked up, one of `GROUPS`.
        value: the mapping with its ``kind``.

    Raises:
        PydanticCustomError: the mapping does not describe a part; `explain` fills in its key.
    """
    try:
        return build(group, value, KEY)
    except SpecError as error:
        raise PydanticCustomError(NESTED, "{lines}", {"lines": str(error)}) from error
