"""How many images a second: a CIFAR ResNet-18, eager, compiled and as a CUDA graph, in three precisions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any

import torch
from gpu_sections.compiling import PASSES, fast
from gpu_sections.section import Finding, Place, Skipped, needs_a_gpu, table
from gpu_sections.subjects import demo, noise, resnet
from gpu_sections.timing import graphed, seconds
from torch import nn

from harness.api.records import Precision, Steering
from harness.curvature.steering import steered_network
from harness.engine.acceleration import attacking, half_precision

WIDTHS = (250, 1000, 64, 16)
"""Widths of a batch, those of most interest first."""
STEERED_AT = 250
TARGETS = {"float32": "28–33 and 57–65", "tf32": "8–10 and 18–22", "bfloat16": "3.6–4.5 and 8–10"}
"""Microseconds an image, forward, and forward and backward, of the compiled network on an H100, by precision."""


def speed(place: Place) -> Iterator[Finding]:
    """Time every way, precision and width; then the steered network against the plain one."""
    rows: list[dict[str, Any]] = []
    for precision in ("float32", "tf32", "bfloat16") if place.is_gpu else ("float32",):
        for row in _rows(place, precision):  # type: ignore[arg-type]
            rows.append(row)
            if place.is_late:
                break
    yield table(rows)
    if place.is_gpu:
        targets = "; ".join(f"{precision} {target}" for precision, target in TARGETS.items())
        yield f"Targets on an H100, compiled, µs an image forward, and forward and backward: {targets}; steered ≤ 1.1."
    else:
        yield needs_a_gpu("compiled networks, CUDA graphs, TF32 and bf16")
    if place.is_late:
        yield Skipped("what comes after the last row, as the time is up")


def _rows(place: Place, precision: Precision) -> Iterator[dict[str, Any]]:
    """Time a precision; TF32 and bf16 with the channels last."""
    network, shape = (resnet(place.device), (3, 32, 32)) if place.is_gpu else (demo(place.device), (1, 8, 8))
    layout = torch.contiguous_format if precision == "float32" else torch.channels_last
    network = deepcopy(network).to(memory_format=layout)
    images = noise(max(WIDTHS), shape).to(place.device).contiguous(memory_format=layout)
    ways = {"eager": half_precision(network, precision)}
    if place.is_gpu:
        ways["compiled"] = half_precision(fast(network), precision)
    with _in(precision):
        for width in WIDTHS if place.is_gpu else WIDTHS[2:]:
            x = images[:width].contiguous(memory_format=layout)
            plain: dict[str, Any] = {}
            for way, own in ways.items():
                plain = _timed(own, x, graph=False)
                yield {"precision": precision, "width": width, "way": way} | plain
            if place.is_gpu:
                yield {"precision": precision, "width": width, "way": "CUDA graph"} | _timed(own, x, graph=True)
            if width == STEERED_AT or not place.is_gpu:
                steered = _timed(_steered(network, x, precision), x, graph=False)
                ratios = {f"{name}, of ReLU": steered[name] / plain[name] for name in steered}
                yield {"precision": precision, "width": width, "way": f"{way}, steered"} | steered | ratios


def _in(precision: Precision) -> AbstractContextManager[None]:
    """Return a block in which float32 is rounded as the precision says."""
    return attacking(precision)


def _steered(network: nn.Module, x: torch.Tensor, precision: Precision) -> nn.Module:
    steered = steered_network(network, Steering(0.9), x[:1])
    return half_precision(fast(steered) if x.is_cuda else steered, precision)


def _timed(network: nn.Module, x: torch.Tensor, graph: bool) -> dict[str, float]:
    """Return the microseconds an image takes, by the kind of pass."""
    took = {}
    for name, run in PASSES.items():

        def step(run: Any = run) -> object:
            return run(network, x)

        took[f"{name}, µs"] = 1e6 * seconds(graphed(step) if graph else step, str(x.device)) / len(x)
    return took
