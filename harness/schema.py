"""The JSON Schema of the benchmark file, for editors: made from the same classes that parse it."""

from __future__ import annotations

from typing import Any

from harness import plugins
from harness.contracts import Part, Threat
from harness.spec import PARTS, Benchmark


def schema() -> dict[str, Any]:
    """The schema, with every registered kind, built-in and third-party."""
    result = Benchmark.model_json_schema(ref_template="#/$defs/{model}")
    parts = {"Model", "Dataset", "Threat", "Executor"}  # interfaces: their kinds stand in their place
    definitions = {name: entry for name, entry in result["$defs"].items() if name not in parts}
    for key, group in PARTS.items():
        result["properties"][key] = _any_kind(group, definitions)
    result["properties"]["models"]["items"] = _any_kind("models", definitions)
    optional = {"name", "executor"}  # the file's name and the local machine
    return result | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ct-harness benchmark",
        "required": [key for key in result["required"] if key not in optional],
        "$defs": definitions,
    }


def _any_kind(group: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """One of the kinds of ``group``; what their schemas define goes into ``definitions``."""
    return {"oneOf": [_kind(plugins.part(group, kind), definitions) for kind in plugins.registered(group)]}


def _kind(cls: type[Part], definitions: dict[str, Any]) -> dict[str, Any]:
    result = cls.model_json_schema(ref_template="#/$defs/{model}")
    definitions |= result.pop("$defs", {})
    given = set()
    if issubclass(cls, Threat):  # what a data set may fill in need not be there
        given = {key for dataset in plugins.registered("datasets") for key in cls.defaults(dataset)}
    required = [key for key in result.get("required", []) if key not in given]
    properties = {"kind": {"const": cls.kind}} | result.get("properties", {})
    return result | {"properties": properties, "required": ["kind", *required]}
