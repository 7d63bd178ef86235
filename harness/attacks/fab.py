"""FAB as a step machine (Croce & Hein 2020, arXiv 1907.02044, Algorithm 1): the nearest adversarial image.

An iterate goes a little over the boundary that the network's gradient promises, drawn to the clean image on the way;
if that is adversarial, it returns a tenth of the way to the clean image. AutoAttack steers it to target classes one by
one (arXiv 2003.01690), or, in its version "plus", to whichever class is nearest. Trajectories are those of
``pyautoattack.fab_base`` up to rounding.

A step asks the network twice: for the gradient at the iterate, and for its answer at the next one. These two are the
same point only where the answer is right, and it is meant to be wrong: it was in 58 to 99 of 100 steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from harness.api.attack import Attack, Network, Trials
from harness.attacks import fab_projection
from harness.attacks.norms import Norm
from harness.util import noise

ALPHA_MAX = 0.1
"""Largest weight of the clean image in a step."""
ETA = 1.05
"""Overshoot of a step: 1 leads to the linearised boundary."""
BETA = 0.9
"""Share of its distance from the clean image that an adversarial iterate keeps."""
SHORTEST = 1e-8
"""Least length that a move counts with when two are compared."""

CLEAN_START, RANDOM_START = range(2)
"""The variants of a trial."""

Project = Callable[[Tensor, Tensor, Tensor], Tensor]
PROJECT: dict[Norm, Project] = {"Linf": fab_projection.linf, "L2": fab_projection.l2, "L1": fab_projection.l1}


def projection(norm: Norm, device: torch.device) -> Project:
    """Return the projection onto hyperplanes: on a GPU with Triton, in L∞ and L2, one kernel; elsewhere `PROJECT`'s."""
    if device.type == "cuda" and norm != "L1" and find_spec("triton"):
        from harness.attacks import fab_projection_triton

        if fab_projection_triton.compiles(device):
            return {"Linf": fab_projection_triton.linf, "L2": fab_projection_triton.l2}[norm]
    return PROJECT[norm]


def _longest(moves: Tensor) -> Tensor:
    return moves.abs().amax(-1)


def _euclidean(moves: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(moves, dim=-1)
    return lengths


def _summed(moves: Tensor) -> Tensor:
    return moves.abs().sum(-1)


LENGTH = {"Linf": _longest, "L2": _euclidean, "L1": _summed}
"""The norm of the rows of [..., d]."""
DUAL = {"Linf": _summed, "L2": _euclidean, "L1": _longest}
"""The norm q with 1/p + 1/q = 1: a hyperplane f = 0 is |f| / ‖∇f‖_q away."""


class FAB(Attack):
    """FAB, towards each trial's target or towards the nearest other class.

    `Trials.variants` holds `CLEAN_START` or `RANDOM_START`, with which AutoAttack restarts; without it, `CLEAN_START`.
    A trial has fooled the network once it has found an adversarial image within ε; the original goes on to nearer ones.

    Args:
        slots: w, how many trials advance at once.
        shape: of an image: c, h, w.
        norm: of the ball.
        eps: its radius, in pixels.
        classes: of the network.
        targeted: whether a step goes over the boundary to the trial's target, or over the nearest of all.
        steps: N_iter, at least 1.
        device: of all tensors.
    """

    capturable = True

    def __init__(
        self,
        slots: int,
        shape: tuple[int, ...],
        *,
        norm: Norm,
        eps: float,
        classes: int,
        targeted: bool,
        steps: int = 100,
        device: torch.device | str = "cpu",
    ) -> None:
        self.forwards, self.backwards = 2, 1 if targeted else classes - 1
        self._norm, self._eps, self._classes, self._targeted, self._budget = norm, eps, classes, targeted, steps
        self._points = torch.zeros(2, slots, math.prod(shape), device=device)
        self._iterates, self._clean = self._points
        self._project = projection(norm, self._points.device)
        self._labels, self._targets, self._steps = torch.zeros(3, slots, dtype=torch.int64, device=device)
        self.fooled = torch.zeros(slots, dtype=torch.bool, device=device)
        self.finished = torch.ones(slots, dtype=torch.bool, device=device)
        self.found = self._iterates.view(slots, *shape)  # a trial that has fooled the network stays where it did

    @torch.no_grad()
    def start(self, slots: Tensor, trials: Trials) -> None:
        """See `Attack.start`."""
        clean = trials.x.flatten(1)
        first = clean
        if trials.variants is not None:
            random = (trials.variants == RANDOM_START)[:, None]
            first = torch.where(random, self._around(clean, trials.keys), clean)
        self._clean.index_copy_(0, slots, clean)
        self._iterates.index_copy_(0, slots, first)
        self._labels.index_copy_(0, slots, trials.y)
        self._targets.index_copy_(0, slots, trials.targets)
        self._steps.index_fill_(0, slots, 0)
        self.fooled.index_fill_(0, slots, False)
        self.finished.index_fill_(0, slots, False)

    @torch.no_grad()
    def step(self, network: Network) -> None:
        """See `Attack.step`."""
        gaps, normals = self._boundary(network)
        offsets = (normals * self._iterates).sum(1).sub_(gaps)
        moves = self._project(self._points, normals, offsets)
        lengths = LENGTH[self._norm](moves).clamp_(min=SHORTEST)
        alpha = (lengths[0] / lengths.sum(0)).clamp_(max=ALPHA_MAX)
        beyond = torch.add(self._points, moves, alpha=ETA)
        ahead = torch.lerp(beyond[0], beyond[1], alpha[:, None]).clamp_(0, 1)
        self._go(ahead, network(ahead.view_as(self.found)).argmax(1) != self._labels)

    def _go(self, ahead: Tensor, adversarial: Tensor) -> None:
        """Make ``ahead`` [w, d] the iterates: those that fool the network stay there, other adversarial ones return."""
        away = ahead - self._clean
        fools = adversarial & (LENGTH[self._norm](away) <= self._eps)
        share = torch.where(adversarial ^ fools, BETA, 1.0)
        ahead = torch.lerp(self._clean, ahead, share[:, None])
        torch.where(self.finished[:, None], self._iterates, ahead, out=self._iterates)
        self._steps += 1
        self.fooled |= fools & ~self.finished
        self.finished |= self.fooled | (self._steps >= self._budget)

    def _boundary(self, network: Network) -> tuple[Tensor, Tensor]:
        """Linearise f, the logit of the target or of the nearest other class less the label's, at the iterates.

        Returns:
            f, [w], below 0 on the label's side; ∇f, [w, d].
        """
        with torch.enable_grad():
            images = self.found.detach().requires_grad_()
            logits = network(images)
        if self._targeted:
            return self._boundary_to(self._targets, logits, images)
        others = (self._labels + turn for turn in range(1, self._classes))
        gaps, normals = self._boundary_to(next(others) % self._classes, logits, images)
        distances = self._distance(gaps, normals)
        for other in others:
            gap, normal = self._boundary_to(other % self._classes, logits, images)
            distance = self._distance(gap, normal)
            nearer = distance < distances
            gaps, distances = torch.where(nearer, gap, gaps), torch.where(nearer, distance, distances)
            normals = torch.where(nearer[:, None], normal, normals)
        return gaps, normals

    def _boundary_to(self, others: Tensor, logits: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        other, own = others[:, None], self._labels[:, None]
        difference = torch.zeros_like(logits).scatter_(1, other, 1).scatter_(1, own, -1)
        with torch.enable_grad():  # a sum, since grad(logits, images, difference) would import SymPy
            lead = (logits * difference).sum()
        (gradient,) = torch.autograd.grad(lead, images, retain_graph=not self._targeted)
        gaps = logits.detach().gather(1, other).sub_(logits.detach().gather(1, own))
        return gaps.squeeze(1), gradient.flatten(1)

    def _distance(self, gaps: Tensor, normals: Tensor) -> Tensor:
        return gaps.abs() / (1e-12 + DUAL[self._norm](normals))

    def _around(self, clean: Tensor, keys: Tensor) -> Tensor:
        """Return points of the box, ε/2 away from clean images [k, d] in random directions."""
        counters, shape = torch.zeros_like(keys), clean.shape[1:]
        if self._norm == "Linf":
            directions = 2 * noise.uniform(keys, counters, shape) - 1
        else:
            directions = noise.normal(keys, counters, shape)
        return (clean + self._eps * directions / LENGTH[self._norm](directions)[:, None] / 2).clamp_(0, 1)
