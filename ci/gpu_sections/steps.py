"""What a step of an attack costs besides the network: milliseconds, kernels, and times that the host waits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import product
from typing import Any, get_args

import torch
from helpers import hyperplanes
from helpers.pretend_gpu import PretendGpu
from helpers.pretend_graph import PretendGraphs
from torch import Tensor

from gpu_sections.section import Finding, Miss, Place, Skipped, expect, needs_a_gpu, table
from gpu_sections.subjects import Linear, noise
from gpu_sections.timing import launches, seconds
from harness.api.attack import Attack, Network, Trials
from harness.attacks import autoattack
from harness.attacks.fab import PROJECT, projection
from harness.attacks.norms import Norm
from harness.engine.step_graph import WARM_UP, CudaRecorder, Recorder, Replayed, state_of

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
SLOTS = (25, 1000)
STEPS = 10
"""Steps whose kernels are counted."""
EPS: dict[Norm, float] = {"Linf": 1 / 255, "L2": 0.15, "L1": 2.0}
CLOSE = 5e-3
"""Largest difference of a projection from float64: rounding of sums over 3,072 coordinates, over one small weight, and
in L1 of sums of sums (seen: 5e-4 on a CPU, 2.3e-3 on an H200)."""
TARGETS = "Targets, L∞, ms a step: Square on 25 slots 0.15–0.25 as a graph, APGD 0.35, FAB 0.5."


def steps(place: Place) -> Iterator[Finding]:
    """Time a step of every attack on a network that costs next to nothing, and count what it asks of the GPU."""
    slots = SLOTS if place.is_gpu else SLOTS[:1]
    rows: list[dict[str, Any]] = []
    try:
        for norm, stage, n in product(get_args(Norm), STAGES, slots):
            if place.is_late:
                yield Skipped(f"{stage}, {norm}, {n} slots, and what comes after it, as the time is up")
                break
            row = _on_gpu(stage, norm, n, place.device) if place.is_gpu else _pretended(stage, norm, n)
            if why := row.pop("unrecorded", ""):
                yield Miss(f"{stage}, {norm}, {n} slots: {why}")
            rows.append({"attack": stage, "norm": norm, "slots": n} | row)
    finally:  # what was measured before an error is worth having
        if rows:
            yield table(rows)
    yield TARGETS if place.is_gpu else needs_a_gpu("a CUDA graph of a step, and times that mean something")


def _machine(stage: str, norm: Norm, slots: int, shape: tuple[int, ...], device: str) -> Attack:
    """Return the step machine of an attack, with AutoAttack's own budgets."""
    return autoattack.machine(
        stage, "standard", norm=norm, eps=EPS[norm], slots=slots, shape=shape, classes=10, device=device
    )


def _trials(stage: str, slots: int, shape: tuple[int, ...]) -> Trials:
    """Return a trial for each slot, of images of noise that the network classifies as the trials say."""
    x = noise(slots, shape)
    ranking = Linear(shape)(x).argsort(dim=1, descending=True)
    variant = autoattack.variant(autoattack.attempts(stage, "standard", "Linf", range(9))[0])
    return Trials(x, ranking[:, 0], ranking[:, 1], torch.arange(slots), torch.full((slots,), variant))


def _step(attack: Attack, network: Network) -> Callable[[], object]:
    """Return a step as the engine takes it."""

    def step() -> None:
        attack.prepare()
        attack.step(network)

    return step


def _recorded(attack: Attack, network: Network, recorder: Recorder) -> tuple[Callable[[], object], str]:
    """Return a step as the engine repeats it once it is recorded, and why it is not, if so."""
    repeat = Replayed(lambda: attack.step(network), state_of(attack), recorder)

    def step() -> None:
        attack.prepare()
        repeat()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(WARM_UP + 1):
            step()
    return step, "" if recorder.usable else str(caught[-1].message)


def _on_gpu(stage: str, norm: Norm, slots: int, device: str) -> dict[str, Any]:
    shape = (3, 32, 32)
    attack, network = _machine(stage, norm, slots, shape, device), Linear(shape).to(device)
    trials = Trials(*(tensor.to(device) for tensor in _trials(stage, slots, shape) if tensor is not None))
    attack.start(torch.arange(slots, device=device), trials)
    step = _step(attack, network)
    counted = launches(step, STEPS)
    row: dict[str, Any] = {"ms": 1e3 * seconds(step, device), "kernels": counted.kernels, "waits": counted.waits}
    if attack.capturable:
        step, why = _recorded(attack, network, CudaRecorder(device))
        row |= {"unrecorded": why} if why else {"ms, graph": 1e3 * seconds(step, device)}
    return row


def _pretended(stage: str, norm: Norm, slots: int) -> dict[str, Any]:
    """Time a step on the CPU, and count kernels and waits on a pretended GPU."""
    shape = (1, 8, 8)
    network, trials = Linear(shape), _trials(stage, slots, shape)
    attack = _machine(stage, norm, slots, shape, "cpu")
    attack.start(torch.arange(slots), trials)
    row: dict[str, Any] = {"ms": 1e3 * seconds(_step(attack, network), "cpu", least=0.02)}
    gpu = PretendGpu()
    with gpu:
        there = gpu.module(deepcopy(network))
        attack = _machine(stage, norm, slots, shape, "meta")
        kept = Trials(*(gpu.tensor(tensor) for tensor in trials if tensor is not None))
        attack.start(gpu.tensor(torch.arange(slots)), kept)
        gpu.forget()
        for _ in range(STEPS):
            attack.prepare()
            attack.step(there)
        row |= {"kernels": gpu.kernels.total() / STEPS, "waits": gpu.waits.total() / STEPS}
        row["unrecorded"] = _recorded(attack, there, PretendGraphs())[1]
    return row


def projections(place: Place) -> Iterator[Finding]:
    """Time FAB's projections, eager and as the kernel that a GPU gets, and compare them with float64 on the CPU."""
    device, rows = torch.device(place.device), []
    for norm in get_args(Norm):
        for slots in SLOTS if place.is_gpu else SLOTS[:1]:
            given = _hyperplanes(slots)
            expected = PROJECT[norm](*given)
            ways = {"eager": PROJECT[norm], "kernel": projection(norm, device)}
            for way, project in ways.items() if ways["kernel"] is not ways["eager"] else [("eager", PROJECT[norm])]:
                here = [tensor.float().to(device) for tensor in given]
                apart = float((project(*here).cpu().double() - expected).abs().max())
                took = seconds(lambda project=project, here=here: project(*here), place.device)  # type: ignore[misc]
                rows.append({"norm": norm, "slots": slots, "way": way, "ms": 1e3 * took, "largest difference": apart})
                yield from expect(apart <= CLOSE, f"projection, {norm}, {way}: off by {apart:.2g}, expected {CLOSE:g}")
    yield table(rows)
    if not place.is_gpu:
        yield needs_a_gpu("the kernel")


def _hyperplanes(slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return two points for each hyperplane [2, n, d], normals [n, d] and offsets [n], float64."""
    points, normals, offsets = hyperplanes.rows(slots, 3 * 32 * 32, seed=0)
    return torch.stack([points, points.flip(1)]), normals, offsets
