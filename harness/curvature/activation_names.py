"""Names of activations: which ones each family steers. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping

from harness.api.records import FamilyName

STEERED: Mapping[FamilyName, frozenset[str]] = {
    "relu": frozenset({"relu", "leaky_relu", "prelu", "rrelu", "relu6", "hardtanh"}),
    "smooth": frozenset({"silu", "gelu"}),
}
"""What each family steers; `harness.curvature.families` has it too, with torch."""


GATES = frozenset({"sigmoid", "tanh", "hardsigmoid", "logsigmoid"})
"""Attention and squeeze gates, which are no activations to steer."""
