"""The units of work: a task, its cells, and their outcomes."""

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
"""Part of every cell's identity: raised when a change of the code could change an outcome."""


@dataclass(frozen=True)
class Task:
    """What the cells of one model have in common: the parts to load and the hashes that name what was loaded.

    Args:
        compile: whether attacks run on a compiled network; see `harness.engine.acceleration`.
        precision: of the attacks alone.
        replay_first: whether a steering is shown what fooled the untouched network before it is attacked.
        normalised: whether images are normalised before they are attacked; see `harness.config.protocol`.
        recipe: see `harness.api.model.Scorable.recipe`.
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
        """What makes an outcome what it is; where files lie and which device is used are not part of it."""
        return {
            "scoring": SCORING_VERSION,
            "model": self.model.identity(),
            "weights": self.weights_sha256,
            "threat": self.threat.identity(),
            "seed": self.seed,
        } | ({"space": "normalised"} if self.normalised else {})

    @property
    def attacks(self) -> tuple[str, ...]:
        """The stages of an adversary; a "mean" threat has none."""
        return self.threat.attacks

    def shortcuts(self) -> dict[str, Any]:
        """What makes the attacks cheaper, and other than AutoAttack's; empty where nothing does."""
        precision = {} if self.precision == "float32" else {"precision": self.precision}
        return precision | ({"replay_first": True} if self.replay_first else {})


class Shard(NamedTuple):
    """Images that are attacked as one batch: their numbers, and a hash of their pixels and labels."""

    images: tuple[int, ...]
    sha256: str

    def identity(self) -> dict[str, Any]:
        """As JSON."""
        return {"images": list(self.images), "data": self.sha256}


@dataclass(frozen=True)
class Adversaries:
    """Adversarial images.

    Args:
        images: float32 [k, c, h, w] in [0, 1].
        indices: the number of the image that each was made from.
    """

    images: Tensor
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """The unit of work, of resume and of distribution: one stage on one shard of one steered model.

    Args:
        shard: the images that are attacked as one batch, all of them.
        surviving: those of the shard that the stages before have left standing; only these are attacked.
        sources: for a replay, the keys of the outcomes whose adversarial images are shown.
        candidates: where images are replayed, these.
    """

    task: Task
    steering: Steering
    shard: Shard
    stage: str
    surviving: tuple[int, ...]
    sources: tuple[str, ...] = ()
    candidates: Adversaries | None = field(default=None, compare=False, repr=False)

    def identity(self) -> dict[str, Any]:
        """The cell's whole identity; ``surviving`` follows from it, so it is left out."""
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
        """SHA-256 of the identity: the cell's name in the ledger."""
        return sha256(self.identity())

    @property
    def seed(self) -> int:
        """The seed of the cell's noise: from the identity less the steering, the stage and the shortcuts.

        Every steering sees the same noise (common random numbers), and one seed serves all stages of a shard,
        so that ``AutoAttack(seed=cell.seed)`` on the same shard loses the same images. With "mean" there is no
        adversary, and the seed is the benchmark's, so that every model sees the same images.
        """
        if self.task.threat.reduction == "mean":
            return self.task.seed
        return int(sha256(self.task.identity() | {"shard": self.shard.identity()})[:8], 16) >> 1


@dataclass(frozen=True)
class Outcome:
    """What a cell yields.

    Args:
        values: a number for each image of the shard, 1 survived and 0 lost (also lost before), or how good a graded
            answer is; float32 [n].
        adversaries: the verified adversarial images of those lost in this very stage.
        flags: what the attack warned of.
        provenance: versions and device.
    """

    key: str
    values: np.ndarray
    seconds: float
    flags: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    adversaries: Adversaries | None = None
