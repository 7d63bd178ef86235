"""Messages between a run and its workers: tasks, portions of trials, reports of their results."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.api.records import AS_STORED, Compile, Precision, Preprocessing, Steering
from harness.api.trial import CLEAN, INSPECT, OWN_STAGES, REPLAY, Attempt, Result, Trial

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api.dataset import Dataset
    from harness.api.model import Model
    from harness.api.threat import Threat

SCORING_VERSION = 4
"""Part of every trial's identity; raised when a change of the code could change a result."""
INSPECTION_VERSION = 2
"""Part of an inspection's identity; raised when another thing is looked at, so that results of attacks stay."""


@dataclass(frozen=True)
class Task:
    """Everything that the trials of one model share.

    Args:
        label: the model's name on the leaderboard.
        model: the model to load.
        dataset: the dataset to read.
        threat: the threat to score under.
        seed: the benchmark's seed.
        device: device to compute on, such as "cpu" or "cuda:1"; "auto" is a GPU in a worker that has one.
        weights_sha256: hash of the model that was loaded; a worker must find the same.
        preprocessing: resizing and cropping that the model expects.
        offline: whether to refuse every download.
        compile: whether attacks run on a compiled network; see `harness.engine.acceleration`.
        precision: precision of the network under attack; it is always judged in float32.
        batch_size: most images that go through the network at once, where it gives the same bits at so narrow a batch;
            None to measure what is fastest. A matter of speed alone.
        normalised: whether images are normalised before they are attacked; see `harness.config.protocol`.
        recipe: description of how a part is fitted; see `harness.api.model.Scorable.recipe`.
        class_names: names of the classes as the model numbers them; empty for the dataset's own numbers. No part of the
            identity, since an image's digest covers its label.
        network: fingerprint of what the loaded network computes, state and code; a worker must find the same.
        answers: its answers to a few fixed images, summed up; see `harness.engine.fingerprint`.
        code: hash of the threat's code, where that is not the harness's; a worker must find the same.
        passes: about the passes that the whole run makes through a network of the model, by which ``compile: auto``
            decides.
        pace: seconds that an image took to be classified when the model was tried on the CPU; 0 if it was not.
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
    batch_size: int | None = None
    normalised: bool = False
    recipe: str = ""
    class_names: tuple[str, ...] = ()
    network: str = ""
    answers: tuple[tuple[float, ...], ...] = ()
    code: str = ""
    passes: float = 0
    pace: float = 0

    def identity(self, steering: Steering) -> dict[str, Any]:
        """Return all that the results of one steering depend on besides image and attempt, as JSON.

        Paths, the device, the batch size, and the other images and steerings are left out.
        """
        return (
            {
                "scoring": SCORING_VERSION,
                "model": self.model.identity(),
                "weights": self.weights_sha256,
                "threat": self.threat.identity() | self.threat.own_parameters(),
                "seed": self.seed,
                "steering": steering.identity(),
            }
            | ({"network": self.network} if self.network else {})
            | ({"answers": [list(row) for row in self.answers]} if self.answers else {})
            | ({"code": self.code} if self.code else {})
            | ({"space": "normalised"} if self.normalised else {})
            | ({} if self.precision == "float32" else {"precision": self.precision})
            | ({"recipe": self.recipe} if self.recipe else {})
        )

    def attempt_identity(self, attempt: Attempt) -> dict[str, Any]:
        """Return what one attempt is, with all of its parameters, as JSON."""
        if attempt.stage == CLEAN:
            return {"stage": CLEAN, "ranks": self.threat.ranks}
        of: dict[str, Any] = {"of": attempt.of} if attempt.of else {}
        target = {"target": attempt.target} if attempt.target >= 0 else {}
        restart = {"restart": attempt.restart} if attempt.restart else {}
        if attempt.stage not in OWN_STAGES:
            return self.threat.stage_identity(attempt.stage) | of | target | restart
        if attempt.stage in (INSPECT, REPLAY):  # they look at this threat's attacks, or at what these have found
            of = of | {"attacks": [self.threat.stage_identity(stage) for stage in self.threat.stages]}
        if attempt.stage == INSPECT:
            of = of | {"version": INSPECTION_VERSION}
        return {"stage": attempt.stage} | of

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of the stages that are attacks; none with reduction "mean"."""
        return self.threat.attacks


@dataclass(frozen=True)
class Report:
    """Results of one steering, computed under the same circumstances.

    Args:
        results: the results, all of one steering.
        flags: names of the `harness.api.threat.Flag` warnings that were raised meanwhile.
        provenance: versions and device that they were computed with.
    """

    results: tuple[Result, ...]
    flags: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def steering(self) -> Steering:
        """The steering of all the results."""
        return self.results[0].trial.steering


@dataclass(frozen=True)
class Portion:
    """Trials of one stage that are sent to a worker together.

    Args:
        task: everything that the model's trials share.
        trials: the trials, all of one stage; of an indivisible stage, all that belong together.
        candidates: adversarial images that each trial of a replay shows, float32 [k, c, h, w]; empty for other stages.
        digests: hash of each image by its number; a worker must find the same images.
    """

    task: Task
    trials: tuple[Trial, ...]
    candidates: Mapping[Trial, Tensor] = field(default_factory=dict, repr=False)
    digests: Mapping[int, str] = field(default_factory=dict, repr=False)

    @property
    def stage(self) -> str:
        """The stage of all the trials."""
        return self.trials[0].attempt.stage

    def without(self, done: Collection[Trial]) -> Portion | None:
        """Return what is left when some trials are done; None if nothing is."""
        left = tuple(trial for trial in self.trials if trial not in done)
        candidates = {trial: self.candidates[trial] for trial in left if self.candidates}
        return replace(self, trials=left, candidates=candidates) if left else None
