"""Units of work: a task, its cells, and their outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.api.records import AS_STORED, Compile, Precision, Preprocessing, Steering
from harness.util.hashing import sha256

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from harness.api.dataset import Dataset
    from harness.api.model import Model
    from harness.api.threat import Threat

SCORING_VERSION = 3
"""Part of every cell's identity; raised when a change of the code could change an outcome."""


@dataclass(frozen=True)
class Task:
    """Everything that the cells of one model share.

    Args:
        label: the model's name on the leaderboard.
        model: the model to load.
        dataset: the dataset to read.
        threat: the threat to score under.
        seed: the benchmark's seed.
        device: device to compute on, such as "cpu" or "cuda:1".
        weights_sha256: hash of the model that was loaded; a worker must find the same.
        preprocessing: resizing and cropping that the model expects.
        offline: whether to refuse every download.
        compile: whether attacks run on a compiled network; see `harness.engine.acceleration`.
        precision: precision of the network under attack; it is always judged in float32.
        replay_first: whether what fooled the baseline is replayed on a steering before it is attacked.
        normalised: whether images are normalised before they are attacked; see `harness.config.protocol`.
        recipe: description of how a part is fitted; see `harness.api.model.Scorable.recipe`.
    """

    label: str
    model: Model
    dataset: Dataset
    threat: Threat
    seed: int
    device: str
    weights_sha256: str
    preprocessing: Preprocessing = AS_STORED
    offline: bool = False
    compile: Compile = "auto"
    precision: Precision = "float32"
    replay_first: bool = False
    normalised: bool = False
    recipe: str = ""

    def identity(self) -> dict[str, Any]:
        """Return all that an outcome depends on, as JSON; paths and the device are left out."""
        return {
            "scoring": SCORING_VERSION,
            "model": self.model.identity(),
            "weights": self.weights_sha256,
            "threat": self.threat.identity(),
            "seed": self.seed,
        } | ({"space": "normalised"} if self.normalised else {})

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of the stages that are attacks; none with reduction "mean"."""
        return self.threat.attacks

    def shortcuts(self) -> dict[str, Any]:
        """Return the settings that make attacks cheaper and different from AutoAttack's, as JSON."""
        precision = {} if self.precision == "float32" else {"precision": self.precision}
        return precision | ({"replay_first": True} if self.replay_first else {})


class Shard(NamedTuple):
    """Images that are attacked as one batch.

    Args:
        images: numbers of the images.
        sha256: hash of their pixels and labels.
    """

    images: tuple[int, ...]
    sha256: str

    def identity(self) -> dict[str, Any]:
        """Return the shard as JSON, for the identity of a cell."""
        return {"images": list(self.images), "data": self.sha256}


@dataclass(frozen=True)
class Adversaries:
    """Verified adversarial images.

    Args:
        images: the adversarial images, float32 [k, c, h, w] in [0, 1].
        indices: number of the image that each was made from, [k].
    """

    images: Tensor
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """The unit of work, of resume and of distribution: one stage on one shard of one steered model.

    Args:
        task: everything that the model's cells share.
        steering: the point of the grid, or another method.
        shard: the batch of images.
        stage: name of the stage: one of the threat's, or one of `harness.scheduling.trials`.
        surviving: numbers of the images that survived the stages before; only these are attacked.
        sources: keys of the outcomes whose adversarial images a replay tries; empty for other stages.
        candidates: adversarial images that a replay tries; read from the ledger when the cell is sent to a worker.
    """

    task: Task
    steering: Steering
    shard: Shard
    stage: str
    surviving: tuple[int, ...]
    sources: tuple[str, ...] = ()
    candidates: Adversaries | None = field(default=None, compare=False, repr=False)

    def identity(self) -> dict[str, Any]:
        """Return the cell's whole identity, as JSON; ``surviving`` follows from it and is left out."""
        replayed = {"sources": list(self.sources)} if self.sources else {}
        fitted = {"recipe": self.task.recipe} if self.task.recipe else {}
        return (
            self.task.identity()
            | self.task.shortcuts()
            | fitted
            | replayed
            | {
                "steering": self.steering.identity(),
                "shard": self.shard.identity(),
                "stage": self.stage,
            }
        )

    @property
    def key(self) -> str:
        """SHA-256 of the identity, by which the ledger finds the outcome."""
        return sha256(self.identity())

    @property
    def seed(self) -> int:
        """Seed of the cell's noise: from the identity without steering, stage and shortcuts.

        Every steering sees the same noise (common random numbers), and all stages of a shard share a seed, so that
        ``AutoAttack(seed=cell.seed)`` on the same shard fools the same images. With reduction "mean" there is no
        attack, and the seed is the benchmark's, so that every model sees the same images.
        """
        if self.task.threat.reduction == "mean":
            return self.task.seed
        return int(sha256(self.task.identity() | {"shard": self.shard.identity()})[:8], 16) >> 1


@dataclass(frozen=True)
class Outcome:
    """Result of a cell.

    Args:
        key: key of the cell.
        values: score of each image of the shard, float32 [n]: 1 survived, 0 fooled, in this stage or before; or how
            good a graded answer is.
        seconds: time that the cell took.
        flags: names of the `harness.api.threat.Flag` warnings of the stage.
        provenance: versions and device that the cell was computed with.
        adversaries: verified adversarial images of those fooled in this very stage; None if there are none.
    """

    key: str
    values: np.ndarray
    seconds: float
    flags: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    adversaries: Adversaries | None = None
