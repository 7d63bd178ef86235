"""What the compiler makes of a network: graphs, the time they take, and copies between layouts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from time import perf_counter

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from gpu_sections.section import Finding, Place, expect, needs_a_gpu, table
from gpu_sections.subjects import demo, noise, resnet
from gpu_sections.timing import launches, wait
from harness.engine.acceleration import ROUNDING, compiled
from harness.engine.numerics import reproducible

WIDTHS = (8, 128)
"""Those of the engine for this network on a GPU."""
TRANSPOSE = re.compile(r"nchw|nhwc|transpose", re.IGNORECASE)
"""Names of kernels that copy from one layout to another."""


def fast(network: nn.Module) -> nn.Module:
    """Compile a network as the engine does for attacks."""
    return compiled(network)


def forward(network: nn.Module, x: Tensor) -> Tensor:
    """Return the logits alone."""
    with torch.no_grad():
        return network(x)  # type: ignore[no-any-return]


def both(network: nn.Module, x: Tensor) -> Tensor:
    """Return the gradient of the sum of the logits."""
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(network(leaf).sum(), leaf)[0]


PASSES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {"forward": forward, "forward + backward": both}


def compile(place: Place) -> Iterator[Finding]:
    """Compile a ResNet-18: count its graphs, time them, compare with eager, and look for transposes."""
    network, shape = (resnet(place.device), (3, 32, 32)) if place.is_gpu else (demo(place.device), (1, 8, 8))
    torch._dynamo.reset()
    own, close, rows = fast(network), ROUNDING["float32"], []
    for name, run in list(PASSES.items())[0 if place.is_gpu else 1 :]:
        for width in WIDTHS:
            x = noise(width, shape).to(place.device)
            counters.clear()
            started = perf_counter()
            with reproducible(), torch._inductor.config.patch(force_disable_caches=True):
                found, expected = run(own, x), run(network, x)
            wait(place.device)
            took, graphs = perf_counter() - started, counters["stats"]["unique_graphs"]
            error = float((found - expected).norm() / expected.norm())
            rows.append(
                {"pass": name, "width": width, "graphs": graphs, "seconds a graph": took / graphs if graphs else None}
                | {"breaks": sum(counters["graph_break"].values()), "error": error}
            )
            if place.is_gpu:
                with reproducible():  # other settings would be another program
                    names = launches(lambda run=run, x=x: run(own, x), 1).names  # type: ignore[misc]
                rows[-1] |= {"kernels": len(names), "transposes": sum(bool(TRANSPOSE.search(one)) for one in names)}
            yield from expect(error <= close, f"compiled, {name}: expected errors up to {close:g}, found {error:.2g}")
    yield table(rows)
    yield "Target: no transposes." if place.is_gpu else needs_a_gpu("transposes")
