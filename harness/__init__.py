"""Curvature Tuning, benchmarked: from a benchmark YAML to a β leaderboard that can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.curvature.phi import phi
    from harness.curvature.steering import steer
    from harness.pipeline import run

__version__ = "0.1.0"
__all__ = ["phi", "run", "steer"]

_HOMES = {"phi": "harness.curvature.phi", "run": "harness.pipeline", "steer": "harness.curvature.steering"}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch takes seconds, ``--help`` should not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the function, also where a module of that name has just been imported
    return value
