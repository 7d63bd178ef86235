"""Robustness benchmark of Curvature Tuning: from a YAML file to a β leaderboard that can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.curvature.phi import phi
    from harness.curvature.steering import steer
    from harness.pipeline import run

__version__ = "0.1.0"
__all__ = ["phi", "run", "steer"]

_MODULES = {"phi": "harness.curvature.phi", "run": "harness.pipeline", "steer": "harness.curvature.steering"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds to import, and ``--help`` should not."""
    if name not in _MODULES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value  # so that the name is the function, even if a module of the same name was imported
    return value
