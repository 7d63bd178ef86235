"""The cells of a benchmark, and the chains in which they follow one another. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.analysis.metrics import METRICS
from harness.api.records import FamilyName, Sites, Steering
from harness.api.work import Cell, Shard, Task
from harness.util.batching import batched
from harness.util.hashing import sha256

CLEAN = "clean"
"""First stage of every threat: the unperturbed images."""
MARGIN = "margin"
"""Stage before the threat's: margin of the correct logit over the runner-up, by which images are ordered."""
TRAINING = "training"
"""Stage before the threat's: cross-validation on the training images; see `harness.scheduling.training_scores`."""
REPLAY_FIRST = "replay-first"
"""Optional stage before the attacks: replay of what fooled the baseline; see `harness.scheduling.replay`."""
REPLAY = "replay"
"""Stage after the threat's: replay of what fooled any other steering; see `harness.scheduling.replay`."""


@dataclass(frozen=True)
class TrialChain:
    """One shard under one steering, stage after stage. Chains are independent of each other, but for `follows`."""

    task: Task
    steering: Steering
    shard: Shard

    @property
    def stages(self) -> tuple[str, ...]:
        """The clean stage, the replay if there is one, and the threat's stages."""
        replayed = () if self.follows is None else (REPLAY_FIRST,)
        return (CLEAN, *replayed, *self.task.threat.stages)

    @property
    def follows(self) -> TrialChain | None:
        """The baseline's chain, if what fooled the baseline is replayed first; it must be finished before this one."""
        task = self.task
        if not task.replay_first or self.steering.is_baseline or task.threat.reduction == "mean":
            return None
        return replace(self, steering=self.steering.baseline)

    def next(self, done: Sequence[np.ndarray]) -> Cell | None:
        """Return the cell that comes after ``done``; None when the chain is finished.

        With reduction "worst" a stage attacks only the surviving images, and the chain ends when none survive.

        Args:
            done: outcomes of the finished stages, in order, [n] each.
        """
        if len(done) == len(self.stages):
            return None
        surviving = self.surviving(done)
        if not surviving:
            return None
        return Cell(self.task, self.steering, self.shard, self.stages[len(done)], surviving)

    def surviving(self, done: Sequence[np.ndarray]) -> tuple[int, ...]:
        """Return the images still to be attacked after ``done``; with reduction "mean", all of them."""
        if not done or self.task.threat.reduction == "mean":
            return self.shard.images
        return tuple(image for image, value in zip(self.shard.images, done[-1], strict=True) if value > 0)

    def bounds(self, done: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return upper bounds on each image's clean and robust score, float32 [n] each; exact for a finished chain."""
        highest = np.full(len(self.shard.images), METRICS[self.task.dataset.target].most, np.float32)
        clean = done[0] if done else highest
        if self.task.threat.reduction == "worst":
            return clean, done[-1] if done else highest  # a chain may end early, with no image left to attack
        missing = [highest] * (len(self.stages) - max(len(done), 1))
        graded = [*done[1:], *missing]
        return clean, np.stack(graded).mean(axis=0, dtype=np.float32) if graded else clean


def grid(
    betas: Sequence[float],
    cs: Sequence[float],
    sites: Sites,
    family: FamilyName = "relu",
    native: float = 1.0,
    methods: Sequence[str] = (),
) -> tuple[Steering, ...]:
    """Return the steerings to score: the baseline, the grid of (β, c) with β descending, then the other methods.

    Args:
        betas: values of β, in [0, 1].
        cs: values of c, in [0, 1].
        sites: calls of an activation that every point of the grid steers.
        family: family of activations that every point of the grid steers.
        native: β at which this family leaves the network untouched.
        methods: other ways to adapt the model, each scored once, with its activations as they are.
    """
    points = {Steering(beta, c, sites, family, native) for beta in betas for c in cs if beta != native}
    baseline = Steering(native, 1.0, sites, family, native).baseline
    others = (baseline._replace(method=method) for method in methods)
    return (baseline, *sorted(points, key=lambda point: (-point.beta, point.c)), *others)


def shards(digests: Mapping[int, str], batch_size: int) -> tuple[Shard, ...]:
    """Cut the images into batches, in order. Attacks depend on the batch, so it is part of a cell's identity.

    Args:
        digests: a hash of each image, by image number.
        batch_size: images per shard; the last one may have fewer.
    """
    return tuple(Shard(part, sha256([digests[image] for image in part])) for part in batched(digests, batch_size))


def chains(task: Task, steerings: Sequence[Steering], data: Sequence[Shard]) -> list[TrialChain]:
    """Return all chains of one model, the baseline's first.

    A probe is fitted by the first cell of its steering, and every other cell of that steering would wait for it. So for
    a model with training images, consecutive chains belong to different steerings.

    Args:
        task: the model's task.
        steerings: everything to score, from `grid`.
        data: all images, from `shards`.
    """
    if task.model.training is None:
        return [TrialChain(task, steering, shard) for steering in steerings for shard in data]
    return [TrialChain(task, steering, shard) for shard in data for steering in steerings]
