"""Overrides of the benchmark file: ``--set key.path=value``."""

from __future__ import annotations

from typing import Any

import yaml

from harness.errors import SpecError


def apply_override(data: Any, override: str) -> None:
    """Set one value of a benchmark's mapping, in place. Mappings on its path are created where they are missing.

    Args:
        data: mapping of the whole file.
        override: ``key.path=value``, the value in YAML; entries of a list are numbered from 0.

    Raises:
        SpecError: the override is malformed, or there is no such place.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise SpecError(f"--set {override}: expected key=value, such as dataset.n=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {override}: expected a value in YAML, found {text!r}; quote it if need be") from error
    *parents, last = path.split(".")
    node = data
    for step in parents:
        key = _key(node, step, override)
        if isinstance(node, dict):
            node.setdefault(key, {})
        node = node[key]
    node[_key(node, last, override)] = value


def _key(node: Any, step: str, override: str) -> str | int:
    """Return ``step`` of the path as a key of the mapping, or an index of the list, ``node``."""
    if isinstance(node, dict):
        return step
    if not isinstance(node, list):
        raise SpecError(f"--set {override}: expected a mapping or a list to set {step!r} in, found {node!r}")
    if not (step.isdecimal() and int(step) < len(node)):
        raise SpecError(f"--set {override}: expected the number of an entry, 0 … {len(node) - 1}, found {step!r}")
    return int(step)
