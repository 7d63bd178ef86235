"""Before anything is computed: are the data images, and can each model be scored?

A fault of the data stops the benchmark; a fault of a model is that model's alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from harness.analysis.selection import CrossValidation, Holdout, OnTraining
from harness.analysis.task_types import TASK_TYPES
from harness.api.dataset import Data
from harness.api.model import Model, Scorable
from harness.api.records import Coverage, Preprocessing, Steering
from harness.api.work import Task
from harness.config.benchmark import Benchmark
from harness.engine.images import open_data, source
from harness.engine.numerics import reproducible, resolve
from harness.engine.session import model_session
from harness.engine.verification import logits
from harness.errors import HarnessError, ModelError, SpecError
from harness.scheduling.trials import grid

SHARED = 0.01
"""Of the scored images, as many may be among the training images too, and the row says so."""


@dataclass(frozen=True)
class PreparedModel:
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


def check_training_images(benchmark: Benchmark, loaded: Scorable, scored: Collection[str]) -> None:
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


def prepare_model(benchmark: Benchmark, model: Model, data: Data, offline: bool) -> PreparedModel:
    """Load the model, run it on a few images, and prove that the steering reaches all of it."""
    try:
        device = resolve(benchmark.device)
        session = model_session(model, device, offline, benchmark.normalised)
        loaded = session.loaded
        preprocessing = model.preprocessing(offline=offline)
        few = source(benchmark.dataset, preprocessing, offline).read(tuple(data.digests)[:8])
        batch = session.enter(few.to(device))
        check_training_images(benchmark, loaded, data.pixels)
        with reproducible():
            session.to_channels_last(batch.x[:1])
            steering = benchmark.steering
            coverage = loaded.coverage(steering.sites, batch.x[:1], steering.family)
            TASK_TYPES[benchmark.dataset.target].check_answers(logits(loaded.network, batch.x), batch.y)
            trainable = {method: loaded.trainable_parameters(method) for method in ("", *model.adaptations)}
    except HarnessError as error:
        return PreparedModel(model, data, failure=error if isinstance(error, ModelError) else ModelError(str(error)))
    except Exception as error:  # whatever a network raises on its first images
        return PreparedModel(model, data, failure=ModelError(f"cannot be run: {type(error).__name__}: {error}"))
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
    return PreparedModel(model, data, task, coverage, loaded.training, trainable)


def check_enough_images(benchmark: Benchmark, n: int) -> None:
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


def prepare_models(benchmark: Benchmark, offline: bool) -> list[PreparedModel]:
    """Each model, with the images as it sees them: those that want the same preprocessing share them."""
    seen: dict[Preprocessing, Data] = {}
    prepared_models = []
    for model in benchmark.models:
        try:
            preprocessing = model.preprocessing(offline=offline)
        except ModelError as error:
            prepared_models.append(PreparedModel(model, failure=error))
            continue
        if preprocessing not in seen:
            seen[preprocessing] = open_data(benchmark.dataset, offline, preprocessing)
            check_enough_images(benchmark, len(seen[preprocessing].labels))
            few = tuple(seen[preprocessing].digests)[:8]
            benchmark.threat.prepare(source(benchmark.dataset, preprocessing, offline).read(few), offline=offline)
        prepared_models.append(prepare_model(benchmark, model, seen[preprocessing], offline))
    return prepared_models


def _grid(benchmark: Benchmark, prepared_model: PreparedModel) -> tuple[Steering, ...]:
    """All that is scored of a model: the baseline, the steerings, and the other ways to adapt it."""
    assert prepared_model.coverage is not None
    beta, c, sites, family = (getattr(benchmark.steering, name) for name in ("beta", "c", "sites", "family"))
    return grid(beta, c, sites, family, prepared_model.coverage.native, prepared_model.model.adaptations)
