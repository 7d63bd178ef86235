"""Before anything is computed: are the data images, and can each model be scored?

A fault of the data stops the benchmark; a fault of a model is that model's alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.analysis.selection import CrossValidation, Holdout, OnTraining
from harness.api.dataset import Data
from harness.api.records import Preprocessing, Steering
from harness.config.benchmark import Benchmark
from harness.engine.images import open_data, source
from harness.engine.session import workbench
from harness.errors import ModelError, SpecError
from harness.scheduling.trials import grid

if TYPE_CHECKING:
    pass

from collections.abc import Collection
from dataclasses import dataclass, field

from harness.analysis.task_types import QUESTIONS
from harness.api.model import Model, Scorable
from harness.api.records import Coverage
from harness.api.work import Task
from harness.engine.numerics import reproducible, resolve
from harness.engine.verification import logits
from harness.errors import HarnessError

SHARED = 0.01
"""Of the scored images, as many may be among the training images too, and the row says so."""


@dataclass(frozen=True)
class Admission:
    """A model that can be scored: its task and what the steering reaches. Or why it cannot.

    Args:
        training: what a part of it is fitted on; None where nothing is.
        trainable: how many numbers are fitted, by method; "" is that of the steerings.
    """

    model: Model
    data: Data | None = None
    task: Task | None = None
    coverage: Coverage | None = None
    training: Data | None = None
    trainable: Mapping[str, int] = field(default_factory=dict)
    failure: ModelError | None = None


def can_be_asked(benchmark: Benchmark, loaded: Scorable, scored: Collection[str]) -> None:
    """Refuse, before anything is fitted, a model of which the benchmark asks what it cannot honestly answer.

    Args:
        benchmark: asks.
        loaded: the model.
        scored: hashes of the pixels of the images that are scored. Of official splits a few may be in both.

    Raises:
        ModelError: β is chosen on training images and there are none, or more than a few of them are scored.
    """
    if loaded.training is None:
        if isinstance(benchmark.selection, OnTraining):
            raise ModelError(
                "selection: training chooses β on the images that a model is fitted on, and on this one nothing is "
                "fitted; set selection={kind: cross_validation}, or score a probe (kind: probe)"
            )
        return
    both = len(loaded.training.pixels.intersection(scored))
    if both > SHARED * len(scored):
        raise ModelError(
            f"{both} of the {len(scored)} images that are scored are among its training images, pixel by pixel; "
            "train it on others (train: {…, split: train}, say)"
        )


def admit_model(benchmark: Benchmark, model: Model, data: Data, offline: bool) -> Admission:
    """Load the model, run it on a few images, and prove that the steering reaches all of it."""
    try:
        device = resolve(benchmark.device)
        bench = workbench(model, device, offline, benchmark.normalised)
        loaded = bench.loaded
        preprocessing = model.preprocessing(offline=offline)
        few = source(benchmark.dataset, preprocessing, offline).read(tuple(data.digests)[:8])
        batch = bench.enter(few.to(device))
        can_be_asked(benchmark, loaded, data.pixels)
        with reproducible():
            bench.lay_out(batch.x[:1])
            steering = benchmark.steering
            coverage = loaded.coverage(steering.sites, batch.x[:1], steering.family)
            QUESTIONS[benchmark.dataset.target].admit(logits(loaded.network, batch.x), batch.y)
            trainable = {method: loaded.trainable_parameters(method) for method in ("", *model.adaptations)}
    except HarnessError as error:
        return Admission(model, data, failure=error if isinstance(error, ModelError) else ModelError(str(error)))
    except Exception as error:  # whatever a network raises on its first images
        return Admission(model, data, failure=ModelError(f"cannot be run: {type(error).__name__}: {error}"))
    task = Task(
        label=model.label,
        model=model,
        dataset=benchmark.dataset,
        threat=benchmark.threat,
        seed=benchmark.seed,
        device=device,
        weights_sha256=loaded.sha256,
        preprocessing=preprocessing,
        offline=offline,
        compile=benchmark.compile,
        precision=benchmark.precision,
        replay_first=benchmark.replay_first,
        normalised=benchmark.normalised,
        recipe=loaded.recipe,
    )
    return Admission(model, data, task, coverage, loaded.training, trainable)


def enough_for(benchmark: Benchmark, n: int) -> None:
    """Refuse a choice of β that ``n`` images are too few for.

    Raises:
        SpecError: more folds than images, or a share that leaves none to choose on.
    """
    if isinstance(benchmark.selection, CrossValidation) and benchmark.selection.folds > n:
        raise SpecError(
            f"selection.folds: {benchmark.selection.folds} folds of {n} images; use fewer folds or more images"
        )
    if isinstance(benchmark.selection, Holdout) and not int(benchmark.selection.share * n) >= 1:
        raise SpecError(
            f"selection.share: {benchmark.selection.share:g} of {n} images leaves none to choose on; "
            "use a larger share or more images"
        )


def _admissions(benchmark: Benchmark, offline: bool) -> list[Admission]:
    """Each model, with the images as it sees them: those that want the same preprocessing share them."""
    seen: dict[Preprocessing, Data] = {}
    admissions = []
    for model in benchmark.models:
        try:
            preprocessing = model.preprocessing(offline=offline)
        except ModelError as error:
            admissions.append(Admission(model, failure=error))
            continue
        if preprocessing not in seen:
            seen[preprocessing] = open_data(benchmark.dataset, offline, preprocessing)
            enough_for(benchmark, len(seen[preprocessing].labels))
            few = tuple(seen[preprocessing].digests)[:8]
            benchmark.threat.prepare(source(benchmark.dataset, preprocessing, offline).read(few), offline=offline)
        admissions.append(admit_model(benchmark, model, seen[preprocessing], offline))
    return admissions


def _grid(benchmark: Benchmark, admission: Admission) -> tuple[Steering, ...]:
    """All that is scored of a model: the baseline, the steerings, and the other ways to adapt it."""
    assert admission.coverage is not None
    beta, c, sites, family = (getattr(benchmark.steering, name) for name in ("beta", "c", "sites", "family"))
    return grid(beta, c, sites, family, admission.coverage.native, admission.model.adaptations)
