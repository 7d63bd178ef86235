"""``--set key.path=value``: one value deep in a benchmark's mapping."""

from __future__ import annotations

from typing import Any

import yaml

from harness.errors import SpecError


def _override(data: Any, override: str) -> None:
    """Set one value deep in ``data``, in place; mappings on the way are made where they are missing."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise SpecError(f"--set {override}: expected key=value, such as dataset.n=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {override}: the value is not valid YAML: {text!r}") from error
    *parents, last = path.split(".")
    node = data
    for step in parents:
        place = _place(node, step, override)
        if isinstance(node, dict):
            node.setdefault(place, {})
        node = node[place]
    node[_place(node, last, override)] = value


def _place(node: Any, step: str, override: str) -> str | int:
    """The key or the number that ``step`` is in ``node``."""
    if isinstance(node, dict):
        return step
    if not isinstance(node, list):
        raise SpecError(f"--set {override}: there is nothing under {step!r}; its parent is {node!r}")
    if not (step.isdecimal() and int(step) < len(node)):
        raise SpecError(f"--set {override}: {step!r} is not one of the entries 0 … {len(node) - 1}")
    return int(step)
