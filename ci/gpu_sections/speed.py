"""How many images a second: a CIFAR ResNet-18, eager, compiled and as a CUDA graph, in three precisions."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from gpu_sections.compiling import PASSES, fast
from gpu_sections.section import Finding, Place, Skipped, needs_a_gpu, table
from gpu_sections.subjects import demo, noise, resnet
from gpu_sections.timing import graphed, seconds
from harness.api.records import Precision, Steering
from harness.curvature.steering import steered_network
from harness.engine.acceleration import attacking
from harness.engine.half_precision import half_precision, with_low_weights
from harness.engine.numerics import reproducible

WIDTHS = (250, 1000, 64, 16)
"""Widths of a batch, those of most interest first."""
STEERED_AT = 250
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
TARGETS = {"float32": "28–33 and 57–65", "tf32": "8–10 and 18–22", "bfloat16": "3.6–4.5 and 8–10"}
"""Microseconds an image, forward, and forward and backward, of the compiled network on an H100, by precision."""


def speed(place: Place) -> Iterator[Finding]:
    """Time every way, width and precision, and the steered network against the plain one."""
    rows: list[dict[str, Any]] = []
    try:
        for row in _rows(place):
            rows.append(row)
            if place.is_late:
                yield Skipped("what comes after the last row, as the time is up")
                break
    finally:  # what was measured before an error is worth having
        if rows:
            yield table(rows)
    if place.is_gpu:
        targets = "; ".join(f"{precision} {target}" for precision, target in TARGETS.items())
        yield f"Targets on an H100, compiled, µs an image forward, and forward and backward: {targets}; steered ≤ 1.1."
    else:
        yield needs_a_gpu("compiled networks, CUDA graphs, TF32 and bf16")


def _rows(place: Place) -> Iterator[dict[str, Any]]:
    """Time eager networks first, since each width and precision is compiled anew."""
    subjects = [_Subject(place.device, precision) for precision in (PRECISIONS if place.is_gpu else PRECISIONS[:1])]
    for width in WIDTHS if place.is_gpu else WIDTHS[2:]:
        for subject in subjects:
            yield subject.timed("eager", width)
    for width in WIDTHS if place.is_gpu else ():
        for subject in subjects:
            plain = subject.timed("compiled", width)
            yield plain
            yield subject.timed("CUDA graph", width)
            if width == STEERED_AT:
                yield subject.steered(width, plain)


class _Subject:
    """A network in a precision, laid out as its kernels want it.

    Args:
        device: device to compute on.
        precision: precision of the network.
    """

    def __init__(self, device: str, precision: Precision) -> None:
        network, shape = (resnet(device), (3, 32, 32)) if device == "cuda" else (demo(device), (1, 8, 8))
        self.precision, self.network = precision, deepcopy(network)
        self.layout = torch.contiguous_format if precision == "float32" else torch.channels_last
        self.network.to(memory_format=self.layout)
        self.images = noise(max(WIDTHS), shape).to(device)
        self.eager = half_precision(with_low_weights(self.network, precision), precision)
        self.compiled = self._fast(self.network)

    def _fast(self, network: nn.Module) -> nn.Module:
        """Return a network compiled for attacks in this precision."""
        return half_precision(fast(with_low_weights(network, self.precision)), self.precision)

    def timed(self, way: str, width: int, network: nn.Module | None = None) -> dict[str, Any]:
        """Return a row: microseconds an image, by the kind of pass."""
        x = self.images[:width].contiguous(memory_format=self.layout)
        own = self.eager if way == "eager" else self.compiled if network is None else network
        row: dict[str, Any] = {"way": way, "precision": self.precision, "width": width}
        for name, run in PASSES.items():

            def step(run: Any = run) -> object:
                return run(own, x)

            with reproducible(), attacking(self.precision):  # as the engine runs attacks
                took = seconds(graphed(step) if way == "CUDA graph" else step, str(x.device))
            row[f"{name}, µs"] = 1e6 * took / width
        return row

    def steered(self, width: int, plain: dict[str, Any]) -> dict[str, Any]:
        """Return the row of the steered network, and its times as multiples of the plain one's."""
        steered = self._fast(steered_network(self.network, Steering(0.9), self.images[:1]))
        row = self.timed("compiled, steered", width, steered)
        return row | {f"{name}, of ReLU": row[f"{name}, µs"] / plain[f"{name}, µs"] for name in PASSES}
