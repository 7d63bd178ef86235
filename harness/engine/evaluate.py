"""Evaluation of a portion: run its trials, verify the images they made, and judge them by a fresh forward pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter

import torch

from harness.api.threat import Flag
from harness.api.trial import TRAINING, Result, Trial
from harness.api.work import Portion, Report
from harness.engine.computation import Computation
from harness.engine.fingerprint import alike, answers
from harness.engine.numerics import is_nondeterministic, keep_memory, reproducible
from harness.engine.provenance import provenance
from harness.engine.session import OTHER_EACH_TIME, told_apart_by
from harness.engine.stages import run
from harness.errors import ModelError
from harness.util.batching import grouped
from harness.util.device_errors import is_out_of_memory
from harness.util.foreign import ENDINGS, told
from harness.util.source_code import code_of_classes

NONDETERMINISTIC = "nondeterministic"
"""Flag of operations that have no deterministic kernel."""
REPORT_EVERY = 1.0
"""Seconds after which results are passed on; a kill loses no more than these and what is in the slots."""


def evaluate(portion: Portion) -> Iterator[Sequence[Report]]:
    """Compute the trials of a portion, and yield their results about every second: the same bits in any process.

    Raises:
        ModelError: the network cannot be scored (NaN logits, probabilities, too few classes, an attack's output that
            the threat does not allow, an exit), or its weights have changed since the run began.
    """
    keep_memory()
    torch.manual_seed(portion.task.seed)  # of networks that answer by chance
    computation = Computation(portion)
    _check_weights(computation)
    _check_code(computation)
    _check_answers(computation)
    stage, reports, lasting = _in_memory(computation), list[Report](), set[str]()
    last = perf_counter()
    started, prepared = last, computation.session.preparing
    while True:
        with reproducible(), _flags() as flags:
            results = _next(stage)  # a generator runs only here, so no setting outlives a yield
        now = perf_counter()
        lasting |= flags & {NONDETERMINISTIC}  # a repeated CUDA graph does not warn again
        if results:
            seconds = now - started - (computation.session.preparing - prepared)
            reports += _reports(computation, results, flags | lasting, seconds)
            started, prepared = now, computation.session.preparing
        if reports and (results is None or now - last > REPORT_EVERY):
            yield reports
            reports, last = [], perf_counter()
            started = last  # whoever took them may have taken long
        if results is None:
            return


def _check_weights(computation: Computation) -> None:
    """Refuse a model that is another one than when it was prepared.

    Raises:
        ModelError: its files have changed since, or it has other weights each time that it is loaded.
    """
    task, found = computation.portion.task, computation.session.loaded.sha256
    if found == task.weights_sha256:
        return
    if task.model.load(offline=task.offline).sha256 != found:
        raise ModelError(OTHER_EACH_TIME)
    raise ModelError(f"its weights changed while the benchmark ran ({task.weights_sha256[:12]} before); run it again")


def _next(stage: Iterator[list[Result]]) -> list[Result] | None:
    """Return the next results of a stage; None after the last.

    Raises:
        ModelError: a network or an attack has tried to end the process.
    """
    try:
        return next(stage, None)
    except ENDINGS as error:
        raise ModelError(f"cannot be run: {told(error)}") from error


def _check_code(computation: Computation) -> None:
    """Refuse a network or a threat that is another one here than where the run was started.

    Raises:
        ModelError: its code, or what it holds besides its weights, is not the same.
    """
    task, session = computation.portion.task, computation.session
    if task.network and session.fingerprint != task.network:
        raise ModelError(
            "its code, or what it holds besides its weights, is not what it was when the run was started; let the "
            "builder make the same network each time, leave its files as they are, and run it again"
        )
    if task.code and code_of_classes(type(task.threat)) != task.code:
        raise ModelError(f"the code of the threat {task.threat.kind} changed while the benchmark ran; run it again")


def _check_answers(computation: Computation) -> None:
    """Refuse a network that answers otherwise here than where the run was started, as where torch is patched.

    On a GPU its last digits may be others, and it is not asked; nor before it is scored on the dataset, whose images
    say how large they are: trials of the stage ``training`` are numbered by other images.

    Raises:
        ModelError: it does.
    """
    task, session = computation.portion.task, computation.session
    if session.is_asked or not task.answers or computation.device != "cpu" or computation.portion.stage == TRAINING:
        return
    batch, _ = computation.batch(computation.portion.trials[:1])
    if not alike(answers(told_apart_by(session.loaded), batch.x.shape[1:]), task.answers):
        raise ModelError(
            "the network answers otherwise in a worker than where the run was started; look for what its code takes "
            "from its surroundings, such as a file or a variable of the environment"
        )
    session.is_asked = True


def _in_memory(computation: Computation) -> Iterator[list[Result]]:
    """Run the stage of a portion; where memory is too short, run what is left of it in narrower batches."""
    left: Portion | None = computation.portion
    while left is not None:
        done: set[Trial] = set()
        stage = run(replace(computation, portion=left))
        try:
            for results in stage:
                yield results
                done.update(result.trial for result in results)
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        widest, same = computation.session.narrow()
        warnings.warn(
            f"{left.task.label}: out of memory on {computation.device}; going on in batches of {widest} images, "
            + ("which give the same bits" if same else "whose last bits differ, so that a rerun may find other images"),
            stacklevel=2,
        )
        left = left.without(done)


def _reports(computation: Computation, results: Iterable[Result], flags: set[str], seconds: float) -> Iterator[Report]:
    """Yield a report for each steering, with the time shared out by the number of passes."""
    results = list(results)
    total = sum(result.cost.forwards + result.cost.backwards for result in results) or 1
    each = seconds / total

    def timed(result: Result) -> Result:
        cost = result.cost
        return result._replace(cost=cost._replace(seconds=each * (cost.forwards + cost.backwards)))

    made_with = provenance(computation.device)
    for steering, own in grouped(results, lambda result: result.trial.steering).items():
        fitted = computation.session.loaded.fitted(steering)
        how = made_with | fitted | computation.provenance(steering)
        yield Report(tuple(map(timed, own)), tuple(sorted(flags)), how)


@contextmanager
def _flags() -> Iterator[set[str]]:
    """Collect the names of the `Flag` warnings raised in the block; all other warnings are raised again.

    A network or an attack whose operations have no deterministic kernel is flagged too: its bits may not come again.
    """
    names: set[str] = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield names
    for warning in caught:
        if isinstance(warning.message, Flag):
            names.add(warning.message.name)
        elif is_nondeterministic(str(warning.message)):
            names.add(NONDETERMINISTIC)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
