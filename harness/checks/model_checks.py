"""Checks of one model: its weights, its clean accuracy, the reach of the steering, and one step of the threat."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy.stats import binomtest
from torch import Tensor, nn

from harness.analysis.statistics import unlike
from harness.analysis.task_types import TASK_TYPES
from harness.api.model import Model
from harness.api.records import Batch, Coverage, FamilyName, Steering
from harness.api.trial import CLEAN, Attempt, Trial
from harness.api.work import Portion
from harness.checks.cost import Costs
from harness.checks.findings import Finding, problem
from harness.checks.measurement import measure
from harness.config.benchmark import Benchmark, Full
from harness.curvature.smoothing import chosen_or_placed, misplaced
from harness.engine.computation import Computation
from harness.engine.images import of_pixels, scored_source
from harness.engine.numerics import reproducible
from harness.engine.prepare import FEW, check_network, check_training_images, class_names, task_of
from harness.engine.session import OTHER_EACH_TIME, ModelSession, model_session
from harness.engine.verification import logits, verify
from harness.errors import ModelError
from harness.leaderboard import flags
from harness.scheduling.grid import grid
from harness.util.foreign import ANYTHING

STEERED, ATTACKED = 8, 2
"""Images that the steered network classifies; and how many of the correct ones are attacked."""
ABOVE_CHANCE = 0.01
"""Significance level at which an accuracy is called above chance."""


@dataclass(frozen=True)
class ModelCosts:
    """Costs of a model that can be scored.

    Args:
        costs: cost of one image, under the last steering of the grid.
        correct: share of the images that the untouched network classifies correctly, in [0, 1].
        steerings: number of steerings and other methods to score, the baseline among them.
        finished: number of those that the search finishes where the best are clear: all, the baseline, other methods
            and the best with ``search: best_first``.
    """

    costs: Costs
    correct: float
    steerings: int
    finished: int


def check_model(
    benchmark: Benchmark, model: Model, images: Batch | None, device: str, share: int
) -> tuple[list[Finding], ModelCosts | None]:
    """Check one model, up to the first problem.

    Args:
        benchmark: the benchmark that it is part of.
        model: the model to check; nothing is downloaded.
        images: a few images with the model's preprocessing; without them only its weights are checked.
        device: device to run it on.
        share: number of the images of a steering that a worker has at once.

    Returns:
        The finding of each check, and the model's costs; None if it cannot be scored.
    """
    findings: list[Finding] = []
    check = "weights"
    try:
        with reproducible(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session = model_session(model, device, True, benchmark.normalised)
            findings.append(_weights(model, session))
            if images is None:
                return findings, None
            check = "training"
            check_training_images(benchmark, session.loaded, {of_pixels(x) for x in images.x.numpy()})
            numbering = class_names(benchmark, model, session.loaded, offline=True)
            opened = scored_source(benchmark.dataset, model.preprocessing(offline=True), True, numbering)
            images = opened.read(tuple(images.indices.tolist()))
            batch, check = session.to_input_space(images.to(device)), "clean"
            session.to_channels_last(batch.x[:1])
            scores = check_network(benchmark, session.loaded.network, batch)
            task_type = TASK_TYPES[benchmark.dataset.target]
            if benchmark.dataset.target == "class":
                findings.append(_clean(benchmark, model, scores, batch.y))
            check, asked = "steering", benchmark.steering
            coverage = session.loaded.coverage(asked.sites, batch.x[:FEW], asked.family)
            findings.append(_steering(benchmark, model, coverage))
            betas = chosen_or_placed(asked.beta, coverage.spread)
            findings += _placement(model, asked.family, betas, coverage)
            steerings = grid(betas, asked.c, asked.sites, asked.family, coverage.native)
            network, check = session.steered(steerings[-1], batch.x[:1]), "attack"
            if benchmark.threat.stages:
                findings.append(_attack(benchmark, model, network, f"at β = {steerings[-1].beta:g}", batch))
            together = len(steerings) if isinstance(benchmark.search, Full) else 1
            computation = _computation(benchmark, model, session, steerings[-1], batch, device)
            costs = measure(computation, steerings[-1], batch, share * together)
    except ANYTHING as error:  # whatever a network raises on its first images
        return [*findings, problem(check, model.label, error)], None
    correct = float(task_type.outcome(scores, batch.y).mean()) if benchmark.threat.attacks else 1.0
    number, methods = len(steerings) + len(model.adaptations), len(model.adaptations)
    top = number if isinstance(benchmark.search, Full) else benchmark.search.top
    return findings, ModelCosts(costs, correct, number, min(1 + methods + top, number))


def _computation(
    benchmark: Benchmark, model: Model, session: ModelSession, steering: Steering, batch: Batch, device: str
) -> Computation:
    """Return the computation of a trial as in a run, but uncompiled: compiling takes longer than all checks."""
    task = replace(task_of(benchmark, model, session.loaded, device, offline=True), compile="never")
    return Computation(Portion(task, (Trial(steering, int(batch.indices[0]), Attempt(CLEAN)),)))


def _weights(model: Model, session: ModelSession) -> Finding:
    """Report the number of parameters and the hash of the weights.

    Raises:
        ModelError: loaded again, it has other weights.
    """
    if model.load(offline=True).sha256 != session.loaded.sha256:
        raise ModelError(OTHER_EACH_TIME)
    parameters = sum(parameter.numel() for parameter in session.loaded.body.parameters())
    return Finding("weights", model.label, "ok", f"{parameters:,} parameters, SHA-256 {session.loaded.sha256[:12]}")


def _clean(benchmark: Benchmark, model: Model, scores: Tensor, y: Tensor) -> Finding:
    """Compare the clean accuracy with chance, and with the published one if there is one."""
    correct, n, classes = int((scores.argmax(1) == y).sum()), len(y), scores.shape[1]
    text = f"{correct} of {n} images classified correctly"
    enough = classes**-n < ABOVE_CHANCE  # with fewer images, not even all correct is above chance
    if enough and binomtest(correct, n, 1 / classes, alternative="greater").pvalue >= ABOVE_CHANCE:
        return Finding(
            "clean", model.label, "problem", f"{text}: not above chance (1 in {classes})",
            "check its weights, its normalisation (mean, std) and the order of its classes",
        )  # fmt: skip
    figures = model.published(benchmark.dataset.kind, benchmark.threat.kind)
    if figures is None:
        return Finding("clean", model.label, "ok", text)
    text += f"; published: {100 * figures.clean:.2f} %"
    if not unlike(correct, n, figures.clean):
        return Finding("clean", model.label, "ok", text)
    remedy = "check that the checkpoint and the images are those that the figure was published for"
    return Finding("clean", model.label, "warning", f"{text}, further away than chance explains", remedy)


def _steering(benchmark: Benchmark, model: Model, coverage: Coverage) -> Finding:
    """Report how many activations are steered."""
    text = f"{coverage.steered} of {coverage.sites} activations are steered"
    if not flags.of_coverage(coverage, benchmark.steering.family):
        return Finding("steering", model.label, "ok", text)
    if benchmark.protocol == "paper":
        return Finding("steering", model.label, "ok", f"{text}: registered modules only, as in protocol: paper")
    kinds = ", ".join(f"{kind} ×{number}" for kind, number in coverage.kinds.items())
    remedy = (
        "set steering.sites: all" if benchmark.steering.sites == "modules"
        else "expect its rows to be flagged partial, since only a part of the network is steered"
    )  # fmt: skip
    return Finding("steering", model.label, "warning", f"{text}; the network runs {kinds}", remedy)


def _placement(model: Model, family: FamilyName, betas: Sequence[float], coverage: Coverage) -> list[Finding]:
    """Warn where the whole grid leaves the network as it is, or destroys it."""
    found = misplaced([beta for beta in betas if beta < 1], coverage.spread) if family == "relu" else None
    return [Finding("grid", model.label, "warning", f"the whole grid {found.fault}", found.remedy)] if found else []


def _attack(benchmark: Benchmark, model: Model, network: nn.Module, where: str, batch: Batch) -> Finding:
    """Run one step of the threat on a few images, at the last steering of the grid."""
    threat = benchmark.threat
    few = batch.part(range(min(len(batch), STEERED)))
    if threat.reduction == "worst":
        correct = (logits(network, few.x).argmax(1) == few.y).nonzero().flatten().tolist()
        if not correct:
            text = f"none of {len(few)} images is classified correctly {where}, so there is nothing to attack"
            return Finding("attack", model.label, "warning", text, "raise the smallest β in steering.beta")
        few = few.part(correct)
    few = few.part(range(min(len(few), ATTACKED)))
    try:
        stage, images = threat.smoke_test(network, few)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    verify(threat, few.x, images, normalised=benchmark.normalised)
    logits(network, images)
    return Finding("attack", model.label, "ok", f"one step of {stage} works {where}")
