"""Overrides of the benchmark file: ``--set key.path=value``."""

from __future__ import annotations

from typing import Any

from harness.config.yaml_text import CONTROL, DEEPEST, parse_yaml
from harness.errors import SpecError
from harness.util.text import BRIEF, shown


def apply_override(data: Any, override: str) -> None:
    """Set one value of a benchmark's mapping, in place. Mappings on its path are created where they are missing.

    Args:
        data: mapping of the whole file.
        override: ``key.path=value``, the value in YAML; entries of a list are numbered from 0.

    Raises:
        SpecError: the override is malformed, or there is no such place.
    """
    where = f"--set {CONTROL.sub('?', override)[:BRIEF]}"
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise SpecError(f"{where}: expected key=value, such as dataset.n=100")
    if CONTROL.search(path) or path.count(".") >= DEEPEST:
        raise SpecError(f"{where}: expected a key of at most {DEEPEST} steps, without control characters")
    try:
        value = parse_yaml(text)
    except SpecError as error:
        raise SpecError(
            f"{where}: expected a value in YAML, found {shown(text)} ({error}); quote it if need be"
        ) from error
    *parents, last = path.split(".")
    node = data
    for step in parents:
        key = _key(node, step, where)
        if isinstance(node, dict):
            node.setdefault(key, {})
        node = node[key]
    node[_key(node, last, where)] = value


def _key(node: Any, step: str, where: str) -> str | int:
    """Return ``step`` of the path as a key of the mapping, or an index of the list, ``node``."""
    if isinstance(node, dict):
        return step
    if not isinstance(node, list):
        raise SpecError(f"{where}: expected a mapping or a list to set {shown(step)} in, found {shown(node)}")
    if not (step.isdecimal() and len(step) < 10 and int(step) < len(node)):
        raise SpecError(f"{where}: expected the number of an entry, 0 … {len(node) - 1}, found {shown(step)}")
    return int(step)
