"""What a part of a benchmark must do: Model, Dataset, Threat, Executor.

A part is a frozen pydantic model: its fields are the keys that its mapping in the YAML may have. To add one, write
one class, register it under its ``kind`` as an entry point, and subclass its contract suite in `harness.testing`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.api.records import AS_STORED, Batch, Cell, Outcome, Preprocessing, Target
from harness.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.models.loaded import Scorable
    from harness.models.published import Published


class Part(BaseModel, ABC):
    """A mapping of the YAML that has a ``kind``. Unknown keys are refused; an instance never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    kind: ClassVar[str]
    """The name under which it is registered."""
    whereabouts: ClassVar[frozenset[str]] = frozenset()
    """Fields that say where something lies, not what it is: left out of the identity."""

    @classmethod
    def names(cls) -> Mapping[str, Sequence[str]]:
        """What may be given as ``name``, under a heading each; empty where anything may. May be slow."""
        return {}

    def identity(self) -> dict[str, Any]:
        """What this part is, as JSON: part of the identity of every cell that it takes part in."""
        return {"kind": self.kind} | self.model_dump(mode="json", exclude=set(self.whereabouts))


class Model(Part):
    """A pretrained classifier."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Its name on the leaderboard."""

    def preprocessing(self, *, offline: bool = False) -> Preprocessing:
        """What it wants done with pictures of any size; of no account where images have one size.

        Args:
            offline: refuse to download anything.

        Raises:
            ModelError: the model is not known.
        """
        return AS_STORED

    def published(self, dataset: str, threat: str) -> Published | None:
        """What others have measured of it on ``dataset`` under ``threat`` (their kinds); None if nobody has."""
        return None

    @property
    def training(self) -> Dataset | None:
        """The images that a part of it is fitted on; None where nothing is."""
        return None

    @property
    def trained_how(self) -> str:
        """The images that it is fitted on and how, on the leaderboard; empty where nothing is."""
        return ""

    @property
    def adaptations(self) -> tuple[str, ...]:
        """What to score beside the steerings: other ways to adapt it, each by its name."""
        return ()

    @abstractmethod
    def load(self, *, offline: bool = False) -> Scorable:
        """The network on the CPU, in eval mode, from images in [0, 1] to logits, its normalisation inside.

        Args:
            offline: refuse to download anything.

        Raises:
            ModelError: the weights are not there, damaged, or of another architecture; says what to do.
        """


class Dataset(Part):
    """Labelled images, of which a benchmark takes the first ``n``, those named by ``indices``, or all.

    Args:
        n: the first so many.
        indices: these, in this order.
        per_class: the first so many of each class, in the order of the data.
    """

    n: Annotated[int, Field(strict=True, gt=0)] | None = None
    indices: Annotated[tuple[Annotated[int, Field(strict=True, ge=0)], ...], Field(min_length=1)] | None = None
    per_class: Annotated[int, Field(strict=True, gt=0)] | None = None

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.per_class is not None and (self.n is not None or self.indices is not None):
            raise ValueError("per_class: give it alone, without n or indices")
        return self

    @abstractmethod
    def open(self, *, offline: bool = False) -> Source:
        """The images, ready to be read.

        Raises:
            DataError: they are not there or damaged; says what to do.
        """

    @property
    def target(self) -> Target:
        """What its labels are."""
        return "class"

    @property
    def title(self) -> str:
        """Its name, whichever images are chosen."""
        return self.kind

    @property
    def label(self) -> str:
        """Its name on the leaderboard: the title and the subset."""
        from harness.api.records import sha256

        if self.indices is not None:
            return f"{self.title}[{len(self.indices)} by index {sha256(self.indices)[:8]}]"
        if self.per_class is not None:
            return f"{self.title}[{self.per_class} per class]"
        return f"{self.title}[:{self.n}]" if self.n else self.title

    def chosen(self, source: Source) -> tuple[int, ...]:
        """The numbers of the chosen images of ``source``.

        Raises:
            DataError: more are asked for than there are, or one twice, or so many of each class where there are none.
        """
        if self.per_class is None:
            return self.subset(len(source))
        if self.target != "class":
            raise DataError(
                f"dataset.per_class: the labels of {self.title} are {self.target}, and it has no classes to take "
                f"{self.per_class} images of each from; give n or indices in its place"
            )
        members: dict[int, list[int]] = {}
        for image, label in enumerate(source.labels()):
            members.setdefault(label, []).append(image)
        fewest = min(members, key=lambda label: len(members[label]))
        if len(members[fewest]) < self.per_class:
            raise DataError(
                f"dataset.per_class: class {fewest} of {self.kind} has {len(members[fewest])} images, but per_class = "
                f"{self.per_class} were asked for; lower per_class"
            )
        return tuple(sorted(image for images in members.values() for image in images[: self.per_class]))

    def subset(self, size: int) -> tuple[int, ...]:
        """The numbers of the chosen images, out of ``size``, where no label need be known.

        Raises:
            DataError: more are asked for than there are, or one twice.
        """
        name = self.kind
        if self.indices is None:
            if self.n is not None and self.n > size:
                raise DataError(f"dataset.n: {name} has {size} images, but n = {self.n} were asked for; lower n")
            return tuple(range(self.n or size))
        if max(self.indices) >= size:
            raise DataError(f"dataset.indices: {name} has {size} images (0 … {size - 1}), no {max(self.indices)}")
        if len(set(self.indices)) < len(self.indices):
            raise DataError("dataset.indices: an image is named twice; name each once")
        return self.indices


class Source(ABC):
    """Images that can be read by number."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def read(self, indices: tuple[int, ...]) -> Batch:
        """The images ``indices``, in that order: x float32 [n, c, h, w] in [0, 1], and y as `Batch` has it."""

    def labels(self) -> Sequence[int]:
        """The class of every image; reads them all where a source does not know better."""
        slices = (tuple(range(start, min(start + 256, len(self)))) for start in range(0, len(self), 256))
        return [label for part in slices for label in self.read(part).y.tolist()]

    def prepared(self, preprocessing: Preprocessing) -> Source:
        """The same images as a model wants them; images that have one size are taken as they are."""
        return self


class Threat(Part):
    """An ordered list of stages and how their outcomes make one number.

    A stage proposes images; it is the harness that judges them. With ``reduction`` "worst" an image is robust when
    it survives the clean stage and every stage; with "mean" its score is the share of the stages that it survives.
    """

    reduction: ClassVar[Literal["worst", "mean"]] = "worst"

    @classmethod
    def defaults(cls, dataset: str) -> dict[str, Any]:
        """Keys that a benchmark may leave out on ``dataset`` (its kind), and what they then are."""
        return {}

    @property
    def standard(self) -> bool:
        """Whether this, ε aside, is what the published boards measure: a result may then stand beside theirs."""
        return False

    @property
    @abstractmethod
    def stages(self) -> tuple[str, ...]:
        """The names of the stages, in order, without the clean stage, which every threat has."""

    @property
    def attacks(self) -> tuple[str, ...]:
        """The stages of an adversary; a "mean" threat has none."""
        return self.stages if self.reduction == "worst" else ()

    def prepare(self, batch: Batch | None, *, offline: bool = False) -> None:
        """Have ready what the stages need, and refuse images they cannot work on; called before any cell runs.

        Args:
            batch: a few of the images, as a model sees them; None (from ``doctor``) where there are none to look at.
            offline: refuse to download anything.

        Raises:
            HarnessError: something is missing, damaged, or does not go with the images; says what to do.
        """

    @abstractmethod
    def perturb(self, stage: str, network: nn.Module, batch: Batch, seed: int) -> Tensor:
        """What ``stage`` makes of the images: [n, c, h, w] in [0, 1], in the same order.

        For "worst" the batch holds the images that still stand. To raise a flag of the row,
        ``warnings.warn(Flag("name", "why"))``.

        Args:
            stage: one of `stages`.
            network: images in [0, 1] to logits, in eval mode.
            batch: images that the network classifies correctly (with "mean": all).
            seed: seeds all randomness; the same seed must give the same images.
        """

    def check(self, x: Tensor, perturbed: Tensor) -> None:
        """Refuse images that this threat does not allow; called on every output of `perturb`.

        That they are as many, finite and in [0, 1] has been checked before.

        Args:
            x: the clean images [n, c, h, w].
            perturbed: what the stage made of them.

        Raises:
            InvalidAdversary: one of them is outside of what the threat allows.
        """

    def inspect(self, network: nn.Module, batch: Batch) -> None:
        """Look at the network on clean images for what would mislead an attack; warn with `Flag`."""

    def summary(self, accuracy: Mapping[str, float]) -> dict[str, float]:
        """More columns of a row, from the share of the images that survive each stage; empty where there are none.

        Args:
            accuracy: by stage, in [0, 1]; stages may be missing.
        """
        return {}

    def columns(self) -> dict[str, str]:
        """The threat in the leaderboard: ``threat``, ``eps``, ``attack``; empty where it has no such thing."""
        return {"threat": self.kind, "eps": "", "attack": ""}


class Flag(UserWarning):
    """A warning that becomes a flag of the row.

    Args:
        name: the flag, one lower-case word.
        why: what was seen.
    """

    def __init__(self, name: str, why: str = "") -> None:
        super().__init__(f"{name}: {why}" if why else name)
        self.name = name


class Executor(Part):
    """Where cells are computed. Use as a context manager; a lost worker costs at most its own cells."""

    @abstractmethod
    def __enter__(self) -> Executor:
        """Get ready."""

    @abstractmethod
    def __exit__(self, *exception: object) -> None:
        """Let go of the workers, without waiting for cells in flight."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many cells to hold in flight: enough to keep every worker busy."""

    @abstractmethod
    def submit(self, cell: Cell) -> Future[Outcome]:
        """Compute ``cell`` some time: `harness.engine.evaluate.evaluate` of it, wherever that runs."""
