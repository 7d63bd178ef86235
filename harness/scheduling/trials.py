"""Which cells a benchmark consists of, and which is next on each lane. Pure."""

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
"""The stage that every threat begins with: the images as they are."""
MARGIN = "margin"
"""Before the stages: by how much the right logit leads, which says how fragile an image is."""
TRAINING = "training"
"""Before the stages: cross-validated scores on the training images; see `harness.scheduling.training_scores`."""
REPLAY_FIRST = "replay-first"
"""The stage, if it is asked for, in which a steering is shown what fooled the untouched network."""
REPLAY = "replay"
"""After the stages: a steering is shown what fooled any of the others."""


@dataclass(frozen=True)
class TrialChain:
    """One shard under one steering: its stages follow one another, and no lane waits for another."""

    task: Task
    steering: Steering
    shard: Shard

    @property
    def stages(self) -> tuple[str, ...]:
        """The clean stage and the threat's."""
        replayed = () if self.follows is None else (REPLAY_FIRST,)
        return (CLEAN, *replayed, *self.task.threat.stages)

    @property
    def follows(self) -> TrialChain | None:
        """The untouched network's lane, where it must be finished before this one is attacked."""
        task = self.task
        if not task.replay_first or self.steering.is_baseline or task.threat.reduction == "mean":
            return None
        return replace(self, steering=self.steering.baseline)

    def next(self, done: Sequence[np.ndarray]) -> Cell | None:
        """The cell after those that gave ``done``; None when the lane is finished.

        A "worst" stage attacks only what the stages before have left standing, and none when nothing stands.
        """
        if len(done) == len(self.stages):
            return None
        surviving = self.surviving(done)
        if not surviving:
            return None
        return Cell(self.task, self.steering, self.shard, self.stages[len(done)], surviving)

    def surviving(self, done: Sequence[np.ndarray]) -> tuple[int, ...]:
        """The images that the stages which gave ``done`` left to attack."""
        if not done or self.task.threat.reduction == "mean":
            return self.shard.images
        return tuple(image for image, value in zip(self.shard.images, done[-1], strict=True) if value > 0)

    def bounds(self, done: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The most that the clean and the robust score of each image can be, float32 [n]; once finished, the scores."""
        everything = np.full(len(self.shard.images), METRICS[self.task.dataset.target].most, np.float32)
        clean = done[0] if done else everything
        if self.task.threat.reduction == "worst":
            return clean, done[-1] if done else everything  # a stage may have had nothing left to attack
        missing = [everything] * (len(self.stages) - max(len(done), 1))
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
    """The untouched network first, then every other (β, c), β descending, then the other methods.

    Args:
        betas: in [0, 1].
        cs: in [0, 1].
        sites: of all points.
        family: likewise.
        native: the β of the untouched network.
        methods: each of them scored once, its activations untouched.
    """
    points = {Steering(beta, c, sites, family, native) for beta in betas for c in cs if beta != native}
    baseline = Steering(native, 1.0, sites, family, native).baseline
    others = (baseline._replace(method=method) for method in methods)
    return (baseline, *sorted(points, key=lambda point: (-point.beta, point.c)), *others)


def shards(digests: Mapping[int, str], batch_size: int) -> tuple[Shard, ...]:
    """Cut the images into batches, in their order. Attacks depend on the batch, so the cut belongs to the identity.

    Args:
        digests: the image numbers, in order, and a hash of each.
        batch_size: images a shard; the last may have fewer.
    """
    return tuple(Shard(part, sha256([digests[image] for image in part])) for part in batched(digests, batch_size))


def chains(task: Task, steerings: Sequence[Steering], cut: Sequence[Shard]) -> list[TrialChain]:
    """All lanes of one model, the baseline's first.

    Where something is fitted for each steering, the first of its cells does that and others would wait: so workers are
    sent to different steerings first.
    """
    if task.model.training is None:
        return [TrialChain(task, steering, shard) for steering in steerings for shard in cut]
    return [TrialChain(task, steering, shard) for shard in cut for steering in steerings]
