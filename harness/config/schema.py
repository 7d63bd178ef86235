"""JSON Schema of the benchmark file, for editors; made from the classes that parse it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from harness.api import registry
from harness.api.part import Part
from harness.api.threat import Threat
from harness.config.benchmark import PARTS, Benchmark
from harness.errors import SpecError
from harness.util.foreign import ANYTHING, told
from harness.util.numbers import FRACTION


def schema(warn: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Return the schema, with every registered kind, built-in and third-party.

    Args:
        warn: is told of each kind that is left out, as its plug-in is broken.
    """
    result = Benchmark.model_json_schema(ref_template="#/$defs/{model}")
    parts = {"Model", "Dataset", "Threat", "Executor"}  # abstract: their registered kinds take their place
    definitions = {name: entry for name, entry in result["$defs"].items() if name not in parts}
    for group in registry.GROUPS:
        definitions[group] = {"oneOf": list(_kinds(group, definitions, warn))}
    for key, group in PARTS.items():
        result["properties"][key] = _any_of(group)
    result["properties"]["models"]["items"] = _any_of("models")
    optional = {"name", "executor"}  # they default to the file's name and to this machine
    whole: dict[str, Any] = _written(result | {"$defs": definitions})
    return whole | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ct-harness benchmark",
        "required": [key for key in result["required"] if key not in optional],
    }


def _kinds(group: str, definitions: dict[str, Any], warn: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Yield the schema of each kind of ``group``; see `_kind`."""
    for kind in registry.registered(group):
        try:
            yield _kind(registry.part(group, kind), definitions)
        except SpecError as error:
            warn(str(error))
        except ANYTHING as error:  # of a third party's fields, which pydantic may not know how to describe
            warn(f"kind {kind!r} has no schema: {told(error)}; repair or uninstall it")


def _written(schema: Any) -> Any:
    """Return a schema in which each number may be a fraction too, which is text to YAML: 8/255."""
    if isinstance(schema, list):
        return [_written(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "number":
        said = {key: schema[key] for key in ("title", "description", "default") if key in schema}
        number = {key: entry for key, entry in schema.items() if key not in said}
        return said | {"anyOf": [number, {"type": "string", "pattern": f"^{FRACTION}$"}]}
    return {key: _written(entry) for key, entry in schema.items()}


def _any_of(group: str) -> dict[str, str]:
    """Return a reference to any kind of ``group``."""
    return {"$ref": f"#/$defs/{group}"}


def _kind(cls: type[Part], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one kind, moving what it defines into ``definitions``."""
    result = cls.model_json_schema(ref_template="#/$defs/{model}")
    definitions |= result.pop("$defs", {})
    optional = set()
    if issubclass(cls, Threat):  # keys that some dataset has a default for
        optional = {key for dataset in registry.registered("datasets") for key in cls.defaults(dataset)}
    required = [key for key in result.get("required", []) if key not in optional]
    properties = {
        key: _any_of(entry["group"]) if "group" in entry else entry  # a part within a part names its group
        for key, entry in result.get("properties", {}).items()
    }
    return result | {"properties": {"kind": {"const": cls.kind}} | properties, "required": ["kind", *required]}
