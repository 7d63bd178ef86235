"""The small frozen records that travel down the line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from harness.api.contracts import Dataset, Model, Threat

Sites = Literal["all", "modules"]
FamilyName = Literal["relu", "smooth"]

Target = Literal["class", "attributes", "values"]
"""What labels are: a class; attributes, each there or not; numbers. See `harness.analysis.task_types`."""
Protocol = Literal["pixel", "paper"]
Compile = Literal["auto", "always", "never"]
Precision = Literal["float32", "tf32", "bfloat16", "float16"]

SCORING_VERSION = 3
"""Part of every cell's identity: raised when a change of the code could change an outcome."""


def canonical(value: Any) -> str:
    """The one JSON text of ``value``: sorted keys, no spaces, so that equal values have equal hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256(value: Any) -> str:
    """SHA-256 of the canonical JSON of ``value``, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


class Steering(NamedTuple):
    """One point of the grid.

    Args:
        beta: in [0, 1].
        c: in [0, 1].
        sites: which calls of an activation.
        family: which activations; see `harness.curvature.families`.
        native: the β of the untouched network, whatever the rest is.
        method: another way to adapt the network, its activations as they are; see `Model.adaptations`.
    """

    beta: float
    c: float = 0.5
    sites: Sites = "all"
    family: FamilyName = "relu"
    native: float = 1.0
    method: str = ""

    @property
    def is_baseline(self) -> bool:
        """Whether this is the untouched network."""
        return self.beta == self.native and not self.method

    @property
    def baseline(self) -> Steering:
        """The untouched network's."""
        return BASELINE if self.native == 1.0 else self._replace(beta=self.native, c=1.0, method="")

    def identity(self) -> str | list[Any]:
        """As JSON."""
        if self.is_baseline:
            return "baseline"
        if self.method:
            return [self.method]
        return [self.beta, self.c, self.sites] + ([] if self.family == "relu" else [self.family])


BASELINE = Steering(1.0)


class Preprocessing(NamedTuple):
    """How a picture of any size becomes what a model takes, before its pixels are in [0, 1].

    Args:
        resize: of the shorter side, or height and width; None leaves the size.
        crop: side of the square cut from the centre, or None.
        interpolation: of the resizing: "bilinear", "bicubic", …, as in ``torchvision.transforms.InterpolationMode``.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | None = None
    interpolation: str = "bilinear"


AS_STORED = Preprocessing()
"""Pictures are taken as they are."""


@dataclass(frozen=True)
class Batch:
    """Images and labels.

    Args:
        x: float32 [n, c, h, w] in [0, 1].
        y: int64 [n], of attributes int64 [n, k] of 0 and 1, of values float32 [n, k]; see `Target`.
        indices: each image's stable number in its data set; int64 [n].
        names: each image's file below the root of its data set, where it has one.
    """

    x: Tensor
    y: Tensor
    indices: Tensor
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def part(self, which: Sequence[int]) -> Batch:
        """The images at these positions, in that order."""
        places = list(which)
        names = tuple(self.names[place] for place in places) if self.names else ()
        return Batch(self.x[places], self.y[places], self.indices[places], names)

    def to(self, device: str) -> Batch:
        """The same batch on ``device``."""
        return replace(self, x=self.x.to(device), y=self.y.to(device), indices=self.indices.to(device))


@dataclass(frozen=True)
class Task:
    """What the cells of one model have in common: the parts to load and the hashes that name what was loaded.

    Args:
        compile: whether attacks run on a compiled network; see `harness.engine.acceleration`.
        precision: of the attacks alone.
        replay_first: whether a steering is shown what fooled the untouched network before it is attacked.
        normalised: whether images are normalised before they are attacked; see `harness.config.protocol`.
        recipe: see `harness.models.loaded.Scorable.recipe`.
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
        standing: those of the shard that the stages before have left standing; only these are attacked.
        sources: for a replay, the keys of the outcomes whose adversarial images are shown.
        shown: where images are replayed, these.
    """

    task: Task
    steering: Steering
    shard: Shard
    stage: str
    standing: tuple[int, ...]
    sources: tuple[str, ...] = ()
    shown: Adversaries | None = field(default=None, compare=False, repr=False)

    def identity(self) -> dict[str, Any]:
        """The cell's whole identity; ``standing`` follows from it, so it is left out."""
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


@dataclass(frozen=True)
class Coverage:
    """What the steering reached while the network ran on one input.

    Args:
        sites: calls of activations of the family.
        steered: those of them that are bent.
        kinds: the calls by activation, of the family and other (``{"relu": 17, "gelu": 2}``).
        native: the β at which the family is untouched.
    """

    sites: int
    steered: int
    kinds: Mapping[str, int]
    native: float = 1.0
