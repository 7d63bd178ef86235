"""Measured cost of an image: at the width of a run's batches, on the network that a run attacks.

On a GPU a narrow batch takes as long as a wide one, so the time of an image means something at one width alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor, nn

from harness.api.attack import Attack, Trials
from harness.api.records import Batch, Steering
from harness.api.threat import Passes, Threat
from harness.checks.cost import Costs
from harness.engine.acceleration import attacking
from harness.engine.computation import Computation
from harness.engine.fixed_width import ON_A_CPU
from harness.engine.footprint import kept_bytes
from harness.engine.session import OneSteering
from harness.engine.slots import enough_slots
from harness.util.noise import Noise

WITH_GRAPH, WITHOUT_GRAPH = 1.5, 0.25
"""Peak memory of a pass, relative to the activations that a backward pass keeps: with the backward pass (measured:
1.45), and without (a few layers at a time; generous)."""
COPIES = 40
"""Arrays of the size of a batch that an attack holds besides the activations; FAB holds the most."""
FEW = 2
"""Images of a first pass, which says how much more can be measured within seconds."""
QUICK = 0.05
"""Seconds of a forward and a backward pass of `FEW` images, beyond which a CPU gains nothing from a wider batch; and of
a measurement."""
SPARE = 1.1
"""Memory of a GPU to reckon with, relative to the most that was held in a few steps (seen in a run: 1.02)."""
STAGES = 8
"""Stages that are timed of a threat with reduction "mean"."""


def measure(computation: Computation, steering: Steering, batch: Batch, trials: int) -> Costs:
    """Measure the cost of one image.

    Args:
        computation: any trial of the model; says how its networks are called.
        steering: a point of the grid, or another method.
        batch: a few images as the network takes them, at least one; as many as are needed are made of them.
        trials: trials of one stage that a worker has at once; a batch has no more.
    """
    threat, x = computation.portion.task.threat, batch.x
    plain = computation.session.steered(steering, x[:1])
    few = batch.part(range(min(FEW, len(batch))))
    kept, image = kept_bytes(plain, few.x), x[0].numel() * x.element_size()
    estimated = COPIES * image + int(kept * (WITH_GRAPH if threat.attacks else WITHOUT_GRAPH))
    with attacking(computation.portion.task.precision):
        times = _slow(computation, plain, few) or _at_width(computation, steering, batch, trials)
    state = [*plain.parameters(), *plain.buffers()]
    return Costs(
        times.width, times.forward, times.gradient, times.attacks, times.own_step,
        stage=_making(threat, plain, batch),
        working=estimated if times.held is None else times.held,
        kept=kept,
        image=image,
        weights=sum(tensor.numel() * tensor.element_size() for tensor in state),
        classes=times.classes,
    )  # fmt: skip


class Times(NamedTuple):
    """Times of an image; the first five and `classes` are those of `Costs`.

    Args:
        held: bytes of a GPU that were held at most, for each image of a batch; None on a CPU.
    """

    width: int
    forward: float
    gradient: float
    attacks: Mapping[str, float]
    own_step: float
    classes: int
    held: int | None


def _slow(computation: Computation, plain: nn.Module, few: Batch) -> Times | None:
    """Time a network that is slow on a CPU, on a few images; None if it is not.

    It gains nothing from a wide batch, and beside it an attack's own work is nothing.
    """
    if few.x.is_cuda or (gradient := _seconds(lambda: _both_ways(plain, few), few.x)) <= QUICK:
        return None
    narrowest = ON_A_CPU.references[0]
    width = min(computation.portion.task.batch_size or narrowest, narrowest)
    return _timed(computation, plain, few, gradient, {})._replace(width=width)


def _at_width(computation: Computation, steering: Steering, batch: Batch, trials: int) -> Times:
    """Time the network that a run attacks, and a step of each attack, in batches as wide as those of a run."""
    threat = computation.portion.task.threat
    lane = computation.lane(steering, attacked=bool(threat.attacks))
    network, width = OneSteering(lane), enough_slots(computation.width(lane.network), trials)
    wide = batch.part([place % len(batch) for place in range(width)])
    held = _begin_to_count(wide.x)
    attacks = {stage: _attack(threat, stage, network, wide, lane.network.classes) for stage in threat.stages}
    known = {stage: seconds for stage, seconds in attacks.items() if seconds is not None}
    gradient = _seconds(lambda: _both_ways(network, wide), wide.x)
    times = _timed(computation, network, wide, gradient, known)
    return times if held is None else times._replace(held=int(SPARE * _most_held(wide.x, held)) // width)


def _timed(
    computation: Computation, network: nn.Module, batch: Batch, gradient: float, attacks: Mapping[str, float]
) -> Times:
    """Time a forward pass and an attack's own work; ``gradient`` is the seconds of the batch both ways."""
    x, n = batch.x, len(batch)
    with torch.no_grad():
        classes = network(x).shape[1]
        forward = _seconds(lambda: network(x), x) / n
    own_step = _seconds(lambda: computation.portion.task.threat.own_work(x), x) / n
    return Times(n, forward, gradient / n, attacks, own_step, classes, None)


def _attack(threat: Threat, stage: str, network: nn.Module, batch: Batch, classes: int) -> float | None:
    """Return the seconds that a stage takes for an image that survives it, its work outside the network included.

    Those of a step, times the steps that `Threat.passes` says. None if it has no step machine, or does not say.
    """
    x, n = batch.x, len(batch)
    passes = threat.passes(stage, classes)
    attempts = threat.attempts(stage, tuple(range(1, classes)))
    machine = threat.attack_machine(stage, n, tuple(x.shape[1:]), classes, str(x.device))
    if machine is None or passes is None:
        return None
    if not attempts:
        return 0.0
    slots = torch.arange(n, device=x.device)
    variants = torch.full_like(slots, threat.variant(attempts[0]))
    machine.start(slots, Trials(x, batch.y, (batch.y + 1) % classes, keys=slots, variants=variants))

    def step() -> None:
        machine.prepare()
        machine.step(network)

    return steps(passes, machine) * _seconds(step, x) / n


def steps(passes: Passes, machine: Attack) -> float:
    """Return the steps of a step machine in which an image makes so many passes."""
    return passes.gradients / machine.backwards if machine.backwards else passes.forwards / machine.forwards


def _making(threat: Threat, network: nn.Module, batch: Batch) -> float:
    """Return the mean seconds to make an image, over evenly spaced stages: corruptions differ much in their cost."""
    if threat.reduction != "mean" or not threat.stages:
        return 0.0
    few = batch.part(range(min(FEW, len(batch))))
    stages = threat.stages[:: max(len(threat.stages) // STAGES, 1)][:STAGES]
    started = perf_counter()
    for stage in stages:
        threat.perturb(stage, network, few, Noise(0, few.indices))
    return (perf_counter() - started) / len(stages) / len(few)


def _both_ways(network: nn.Module, batch: Batch) -> None:
    """Run a forward and a backward pass; only the forward one if the network cuts the gradient."""
    with torch.enable_grad():
        x = batch.x.detach().clone().requires_grad_()
        total = network(x).sum()
        if total.requires_grad:
            torch.autograd.grad(total, x, allow_unused=True)


def _seconds(step: Callable[[], object], x: Tensor) -> float:
    """Return the seconds of one ``step``, as the mean of several if it is quick."""

    def wait() -> None:
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    step()  # the first call also allocates
    wait()
    started, number = perf_counter(), 0
    while perf_counter() - started < QUICK:
        step()
        number += 1
    wait()
    return (perf_counter() - started) / number


def _begin_to_count(x: Tensor) -> int | None:
    """Begin to count the bytes that torch holds on the GPU of ``x``, and return them; None on a CPU."""
    if not x.is_cuda:
        return None
    torch.cuda.reset_peak_memory_stats(x.device)
    return torch.cuda.memory_allocated(x.device)


def _most_held(x: Tensor, before: int) -> int:
    """Return the most bytes that torch has held at once since `_begin_to_count`, without those from before."""
    return torch.cuda.max_memory_allocated(x.device) - before
