"""Names of the activations that each family steers; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from harness.api.records import FamilyName

STEERED: Mapping[FamilyName, frozenset[str]] = {
    "relu": frozenset({"relu", "leaky_relu", "prelu", "rrelu", "relu6", "hardtanh"}),
    "smooth": frozenset({"silu", "gelu"}),
}
"""Activations that each family steers; `harness.curvature.families` holds the functions themselves."""

GATES = frozenset({"sigmoid", "tanh", "hardsigmoid", "logsigmoid"})
"""Gates of attention and squeeze-and-excitation layers, which are not activations to steer."""
