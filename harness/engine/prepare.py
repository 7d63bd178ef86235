"""Preparation of a run: check the data, and that each model can be scored, before anything is computed.

A fault of the data stops the benchmark; a fault of a model fails that model alone, however it fails: its code runs
where it cannot take the run along (`harness.engine.apart`). All of it happens on the CPU: the machine that starts a run
may have no GPU, and a GPU may be for its worker alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

from torch import Tensor, nn

from harness.analysis.selection import CrossValidation, Holdout, OnTraining
from harness.analysis.task_types import TASK_TYPES
from harness.api.dataset import Data
from harness.api.model import Model, Scorable
from harness.api.records import Batch, Coverage, Preprocessing, Steering
from harness.api.threat import BACKWARD, Threat
from harness.api.work import Task
from harness.config.benchmark import Benchmark
from harness.curvature.smoothing import chosen_or_placed
from harness.engine.apart import apart
from harness.engine.class_names import names_to_match
from harness.engine.fingerprint import answers
from harness.engine.images import open_data, scored_source, source
from harness.engine.numerics import reproducible
from harness.engine.session import model_session, told_apart_by
from harness.engine.verification import logits, require_gradient
from harness.errors import HarnessError, MethodError, ModelError, SpecError
from harness.scheduling.grid import grid
from harness.util.foreign import ANYTHING, told
from harness.util.source_code import code_of_classes

MAX_OVERLAP = 0.01
"""Share of the scored images that may be training images too, as in some official splits; their rows are flagged."""
FEW = 8
"""Images that a model is tried on."""
RUNS = 3
"""Runs of all attacks that a search takes, about: on the baseline and on two winners."""


@dataclass(frozen=True)
class PreparedModel:
    """A model that is ready to be scored, or the failure that keeps it from being scored.

    Args:
        model: the model as the benchmark describes it.
        data: the chosen images with the model's preprocessing; None if the preprocessing is not known.
        task: everything that the model's trials share; None if the model has failed.
        coverage: activations that the steering reaches; None if the model has failed.
        training: images that a part of the model is fitted on; None if nothing is fitted.
        shape: shape of an image with the model's preprocessing: c, h, w.
        trainable: number of parameters fitted on them, by method; "" stands for the steerings.
        marks: flags of the other methods' rows, by method.
        lost: errors of the other methods that fail, by method.
        failure: why the model cannot be scored; None if it can.
    """

    model: Model
    data: Data | None = None
    task: Task | None = None
    coverage: Coverage | None = None
    training: Data | None = None
    shape: tuple[int, ...] = ()
    trainable: Mapping[str, int] = field(default_factory=dict)
    marks: Mapping[str, Collection[str]] = field(default_factory=dict)
    lost: Mapping[str, ModelError] = field(default_factory=dict)
    failure: ModelError | None = None

    @property
    def label(self) -> str:
        """The model's name on the leaderboard."""
        return self.model.label


def prepare_models(benchmark: Benchmark, offline: bool) -> list[PreparedModel]:
    """Read the images, and prepare each model. Models with the same preprocessing share the images.

    Raises:
        HarnessError: the workers have no such device, or the images cannot be used, or are too few, or lack what the
            threat needs.
    """
    device = benchmark.executor.worker_device(benchmark.device)
    alone = benchmark.model_copy(update={"executor": None})  # which may hold what no process can be sent
    seen: dict[Preprocessing, Data] = {}
    prepared = []
    with apart(benchmark.executor) as call:
        for model in benchmark.models:
            try:
                preprocessing = model.preprocessing(offline=offline)
            except ANYTHING as error:
                failure = error if isinstance(error, ModelError) else ModelError(f"preprocessing: {told(error)}")
                prepared.append(PreparedModel(model, failure=failure))
                continue
            if preprocessing not in seen:
                seen[preprocessing] = open_data(benchmark.dataset, offline, preprocessing)
                check_number_of_images(benchmark, len(seen[preprocessing].labels))
                few = tuple(seen[preprocessing].digests)[:FEW]
                benchmark.threat.prepare(source(benchmark.dataset, preprocessing, offline).read(few), offline=offline)
            data = seen[preprocessing]
            try:
                made = call(model.label, prepare_model, alone, model, data, device, offline)
            except ModelError as error:
                made = PreparedModel(model, failure=error)
            prepared.append(replace(made, model=model, data=made.data or data))  # it may number the classes itself
    return prepared


def prepare_model(benchmark: Benchmark, model: Model, data: Data, device: str, offline: bool) -> PreparedModel:
    """Load the model, run it on a few images, and prove that the steering reaches all of its activations.

    Args:
        benchmark: the benchmark.
        model: one of its models.
        data: the chosen images.
        device: device of the workers.
        offline: whether to refuse every download.
    """
    try:
        session = model_session(model, "cpu", offline, benchmark.normalised)
        loaded = session.loaded
        preprocessing = model.preprocessing(offline=offline)
        numbering = class_names(benchmark, model, loaded, offline)
        opened = scored_source(benchmark.dataset, preprocessing, offline, numbering)
        if opened is not source(benchmark.dataset, preprocessing, offline):
            data = open_data(benchmark.dataset, offline, preprocessing, numbering)
        few = opened.read(tuple(data.digests)[:FEW])
        batch = session.to_input_space(few)
        check_training_images(benchmark, loaded, data.pixels)
        with reproducible():
            session.to_channels_last(batch.x[:1])
            coverage = loaded.coverage(benchmark.steering.sites, batch.x, benchmark.steering.family)
            chosen_or_placed(benchmark.steering.beta, coverage.spread)  # fails here rather than in the run
            pace = 0.0
            if loaded.training is None:  # otherwise a worker fits it, on its device, and checks its answers
                began = perf_counter()
                check_network(benchmark, loaded.network, batch)
                pace = (perf_counter() - began) / len(batch)
            known = answers(told_apart_by(loaded), batch.x.shape[1:])
            trainable, lost = trainable_parameters(loaded, model.adaptations)
            marks = {method: loaded.marks(method) for method in trainable}
    except HarnessError as error:
        return PreparedModel(model, data, failure=error if isinstance(error, ModelError) else ModelError(str(error)))
    except ANYTHING as error:  # whatever a network raises on its first images
        return PreparedModel(model, data, failure=ModelError(f"cannot be run: {told(error)}"))
    passes = passes_of_a_run(benchmark.threat, int(data.labels.max()) + 1, len(data.digests))
    task = replace(
        task_of(benchmark, model, loaded, device, offline), passes=passes, pace=pace, network=session.fingerprint,
        answers=known,
    )  # fmt: skip
    return PreparedModel(model, data, task, coverage, loaded.training, tuple(batch.x.shape[1:]), trainable, marks, lost)


def trainable_parameters(loaded: Scorable, methods: Sequence[str]) -> tuple[dict[str, int], dict[str, ModelError]]:
    """Return the numbers of fitted parameters by method, "" for the steerings, and the errors of methods that fail."""
    found, lost = {"": loaded.trainable_parameters()}, dict[str, ModelError]()
    for method in methods:
        try:
            found[method] = loaded.trainable_parameters(method)
        except MethodError as error:
            lost[method] = error
    return found, lost


def check_network(benchmark: Benchmark, network: nn.Module, batch: Batch) -> Tensor:
    """Return an untouched network's logits for a few images, if it can be scored under the threat.

    Args:
        benchmark: the benchmark.
        network: network from the images' space to logits.
        batch: the images.

    Raises:
        ModelError: its answers are no logits, do not suit the labels, or have no gradient where attacks need one.
    """
    found, task_type = logits(network, batch.x), TASK_TYPES[benchmark.dataset.target]
    task_type.check_answers(found, batch.y)
    task_type.check_logits(found)
    each = [benchmark.threat.passes(stage, found.shape[1]) for stage in benchmark.threat.attacks]
    if any(passes is not None and passes.gradients for passes in each):
        require_gradient(network, batch.x)
    return found


def task_of(benchmark: Benchmark, model: Model, loaded: Scorable, device: str, offline: bool) -> Task:
    """Return what the trials of a model share, once it is loaded, but for the passes of the run."""
    return Task(
        label=model.label,
        model=model,
        dataset=benchmark.dataset,
        threat=benchmark.threat,
        seed=benchmark.seed,
        device=device,
        weights_sha256=loaded.sha256,
        preprocessing=model.preprocessing(offline=offline),
        offline=offline,
        compile=benchmark.compile,
        precision=benchmark.precision,
        batch_size=None if benchmark.batch_size == "auto" else benchmark.batch_size,
        normalised=benchmark.normalised,
        recipe=loaded.recipe,
        class_names=class_names(benchmark, model, loaded, offline),
        code=code_of_classes(type(benchmark.threat)),
    )


def class_names(benchmark: Benchmark, model: Model, loaded: Scorable, offline: bool) -> tuple[str, ...]:
    """Return the names of the classes as the model numbers them; empty where the images' own numbers hold."""
    if loaded.training is not None:
        return loaded.training.class_names
    images = source(benchmark.dataset, model.preprocessing(offline=offline), offline)
    return names_to_match(model.class_names(offline=offline), images.class_names)


def passes_of_a_run(threat: Threat, classes: int, n: int) -> float:
    """Return about how many passes, forward and backward, a run makes through one model; 0 where nothing is attacked.

    Args:
        threat: the threat.
        classes: number of logits.
        n: number of images.
    """
    each = [passes for stage in threat.attacks if (passes := threat.passes(stage, classes)) is not None]
    return RUNS * n * sum(passes.in_forwards for passes in each) / BACKWARD


def steerings_of(benchmark: Benchmark, prepared: PreparedModel) -> tuple[Steering, ...]:
    """Return everything that is scored of a model: the baseline, the steerings, and the other ways to adapt it."""
    assert prepared.coverage is not None
    asked, methods = benchmark.steering, [one for one in prepared.model.adaptations if one not in prepared.lost]
    betas = chosen_or_placed(asked.beta, prepared.coverage.spread)
    return grid(betas, asked.c, asked.sites, asked.family, prepared.coverage.native, methods)


def check_number_of_images(benchmark: Benchmark, n: int) -> None:
    """Refuse more images than there is room for the scores of, and a choice of β that ``n`` images are too few for.

    Raises:
        SpecError: there are too many scores or more folds than images, or the holdout's share leaves none to choose on.
    """
    if fault := benchmark.too_many_scores(n):
        raise SpecError(fault)
    if isinstance(benchmark.selection, CrossValidation) and benchmark.selection.folds > n:
        raise SpecError(
            f"selection.folds: {benchmark.selection.folds} folds of {n} images; use fewer folds or more images"
        )
    if isinstance(benchmark.selection, Holdout) and not int(benchmark.selection.share * n) >= 1:
        raise SpecError(
            f"selection.share: {benchmark.selection.share:g} of {n} images leaves none to choose on; "
            "use a larger share or more images"
        )


def check_training_images(benchmark: Benchmark, loaded: Scorable, scored: Collection[str]) -> None:
    """Refuse, before anything is fitted, a model whose training images do not suit the benchmark.

    Args:
        benchmark: says how β is chosen.
        loaded: the model with its training images, if it has any.
        scored: hashes of the scored images' pixels.

    Raises:
        ModelError: β is chosen on training images and the model has none, or more than `MAX_OVERLAP` of the scored
            images are training images.
    """
    if loaded.training is None:
        if isinstance(benchmark.selection, OnTraining):
            raise ModelError(
                "selection: training chooses β on the images that a model is fitted on, but nothing is fitted on "
                "this one; set selection={kind: cross_validation}, or score a probe (kind: probe)"
            )
        return
    overlap = len(loaded.training.pixels.intersection(scored))
    if overlap > MAX_OVERLAP * len(scored):
        raise ModelError(
            f"{overlap} of the {len(scored)} scored images are among its training images, pixel by pixel; "
            "set train to other images, such as another split (train: {…, split: train})"
        )
