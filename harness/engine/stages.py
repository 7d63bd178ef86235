"""Work of each stage on its trials: clean images, attacks, replays, inspections, training images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor

from harness.analysis.task_types import TASK_TYPES
from harness.api.attack import Attack, Trials
from harness.api.records import Batch
from harness.api.threat import Flag
from harness.api.trial import CLEAN, INSPECT, REPLAY, TRAINING, Answer, Cost, Result, Trial, by_steering
from harness.engine.acceleration import attacking
from harness.engine.computation import Computation, Group
from harness.engine.fixed_width import FixedWidth
from harness.engine.images import source
from harness.engine.session import OneSteering
from harness.engine.slots import Ended, Packed, advance, enough_slots
from harness.engine.verification import verify
from harness.util.batching import batched, grouped
from harness.util.noise import Noise

JUDGE_EVERY = 0.5
"""Seconds after which adversarial images are judged together; their slots are free before."""
SHOWN = 256
"""Most images that a replay shows at once."""
JUDGED = 256
"""Most adversarial images that wait for it."""


def run(computation: Computation) -> Iterator[list[Result]]:
    """Run the stage of a portion, and yield results as they come; flags raised between two are of one steering."""
    own: dict[str, Callable[[Computation], Iterator[list[Result]]]] = {
        CLEAN: clean, INSPECT: inspect, REPLAY: replay, TRAINING: training,
    }  # fmt: skip
    stage = computation.portion.stage
    return own.get(stage, perturbed)(computation)


def clean(computation: Computation) -> Iterator[list[Result]]:
    """Score the clean images; of classes, also return their margins and rankings."""
    for group in computation.groups(computation.portion.trials):
        for trials, (images, _) in computation.ahead(batched(group.trials, 1024), computation.read):
            _warn_of_batch(group.network, computation.portion.task.label)  # a flag is of what is yielded next
            yield _clean(computation, trials, computation.placed(images))


def _clean(computation: Computation, trials: Sequence[Trial], batch: Batch) -> list[Result]:
    """Return the results of clean trials."""
    task = computation.portion.task
    task_type = TASK_TYPES[task.dataset.target]
    answers = computation.answers(trials, batch.x)
    task_type.check_answers(answers, batch.y)
    values = task_type.outcome(answers, batch.y).tolist()
    margins = [float("nan")] * len(trials)
    rankings: list[tuple[int, ...]] = [()] * len(trials)
    if task.attacks:
        margins = task_type.margin(answers, batch.y).tolist()
        rankings = _rankings(answers, batch.y, task.threat.ranks)
    return [
        Result(trial, Answer(value, margin, ranking), Cost(forwards=1))
        for trial, value, margin, ranking in zip(trials, values, margins, rankings, strict=True)
    ]


def _warn_of_batch(network: FixedWidth, label: str) -> None:
    """Flag a network whose answers depend on the batch, and say that one is slow whose last bits depend on it."""
    if network.reference == 0:
        warnings.warn(Flag("randomized", "its answers differ from call to call"), stacklevel=2)
    elif network.depends_on_batch:
        warnings.warn(Flag("batch_dependent", "an image's answer depends on its batch"), stacklevel=2)
    elif network.reference == 1:
        warnings.warn(
            f"{label}: its last bits depend on an image's place in the batch, so images go through it one at a time, "
            "which is slow; a linear layer whose weight is not contiguous, or with an odd number of inputs, does this",
            stacklevel=2,
        )


def _rankings(answers: Tensor, y: Tensor, ranks: int) -> list[tuple[int, ...]]:
    """Return the wrong classes by their logits, largest first, ``ranks`` of them at most."""
    others = answers.scatter(1, y[:, None], -torch.inf).sort(dim=1, descending=True, stable=True).indices
    return [tuple(row) for row in others[:, : min(ranks, answers.shape[1] - 1)].tolist()]


def perturbed(computation: Computation) -> Iterator[list[Result]]:
    """Run a stage of the threat: in slots where it has a step machine, otherwise batch by batch."""
    threat, stage = computation.portion.task.threat, computation.portion.stage
    for group in computation.groups(computation.portion.trials, attacked=bool(computation.portion.task.attacks)):
        slots = enough_slots(computation.width(group.network), len(group.trials))
        shape = tuple(computation.batch(group.trials[:1])[0].x.shape[1:])
        attack = threat.attack_machine(stage, slots, shape, group.network.classes, computation.device)
        if attack is None:
            yield from _by_batches(computation, group)
        else:
            yield from _in_slots(computation, group, attack, slots)


def _in_slots(computation: Computation, group: Group, attack: Attack, slots: int) -> Iterator[list[Result]]:
    """Run trials in the slots of a step machine, and judge what they find."""
    task, trials = computation.portion.task, group.trials
    parameters = None if group.parameters is None else group.parameters[:1].repeat(slots, 1)

    def start(places: Tensor, numbers: list[int]) -> None:
        chosen = [trials[number] for number in numbers]
        batch, digests = computation.batch(chosen)
        attempts = [trial.attempt for trial in chosen]
        targets = torch.tensor([max(attempt.target, 0) for attempt in attempts], device=computation.device)
        variants = torch.tensor([task.threat.variant(attempt) for attempt in attempts], device=computation.device)
        attack.start(places, Trials(batch.x, batch.y, targets, computation.keys(chosen, digests), variants))
        if parameters is not None and group.parameters is not None:
            parameters[places] = group.parameters[numbers]

    def network(images: Tensor, occupied: Tensor) -> Tensor:
        rows = () if parameters is None else (parameters.index_select(0, occupied),)
        answers: Tensor = group.network(images, *rows)
        return answers

    recorder = computation.session.recorder(task)
    packed = Packed(network, slots, attack.finished.device, int if recorder is None else group.network.rows_for)
    waiting: list[Ended] = []
    judged = perf_counter()
    ended = advance(attack, slots, len(trials), start, packed, recorder)
    while True:
        with attacking(task.precision):
            some = next(ended, None)
        waiting += some or ()
        if waiting and (some is None or len(waiting) > JUDGED or perf_counter() - judged > JUDGE_EVERY):
            yield _judged(computation, group, attack, waiting)
            waiting, judged = [], perf_counter()
        if some is None:
            return


def _judged(computation: Computation, group: Group, attack: Attack, ended: Sequence[Ended]) -> list[Result]:
    """Return the results of trials that have ended: survived, or fooled by a verified image."""
    trials = [group.trials[one.number] for one in ended]
    found = {trial: one.found for trial, one in zip(trials, ended, strict=True) if one.found is not None}
    kept, lost = dict[Trial, Tensor](), set[Trial]()
    if found:
        images = torch.stack(list(found.values()))
        lost = {trial for trial, fools in zip(found, _fooled(computation, list(found), images), strict=True) if fools}
        kept = dict(zip(found, images.cpu(), strict=True))  # one copy for all
    results = []
    for trial, one in zip(trials, ended, strict=True):
        cost = Cost(one.steps * attack.forwards + (one.found is not None), one.steps * attack.backwards)
        image = kept[trial].clone() if trial in lost else None  # not a view of all that ended with it
        results.append(Result(trial, Answer(0.0 if trial in lost else 1.0), cost, image))
    return results


def _fooled(computation: Computation, trials: Sequence[Trial], images: Tensor) -> list[bool]:
    """Verify one image of each trial, and return whether it fools the judge."""
    task = computation.portion.task
    batch, _ = computation.batch(trials)
    verify(task.threat, batch.x, images, normalised=task.normalised)
    wrong: list[bool] = (computation.answers(trials, images).argmax(1) != batch.y).tolist()
    return wrong


def _by_batches(computation: Computation, group: Group) -> Iterator[list[Result]]:
    """Run trials by the threat's own function, one steering at a time, and judge what it returns."""
    task = computation.portion.task
    task_type, width = TASK_TYPES[task.dataset.target], computation.width(group.network)
    parts = (part for own in grouped(group.trials, by_steering).values() for part in batched(own, width))
    for trials, (clean, digests, read) in computation.ahead(parts, computation.read_perturbed):
        network = OneSteering(computation.lane(trials[0].steering, attacked=bool(task.attacks)))
        batch = computation.placed(clean)
        made = _perturbed(computation, network, trials, batch, digests) if read is None else read
        images = made.to(computation.device)
        verify(task.threat, batch.x, images, normalised=task.normalised)
        values = task_type.outcome(computation.answers(trials, images), batch.y).tolist()
        forwards, backwards = network.forwards // len(trials), network.backwards // len(trials)
        yield [
            Result(
                trial, Answer(value), Cost(forwards + 1, backwards),
                image.cpu().clone() if task.attacks and value == 0 else None,
            )
            for trial, value, image in zip(trials, values, images, strict=True)
        ]  # fmt: skip


def _perturbed(
    computation: Computation, network: OneSteering, trials: Sequence[Trial], batch: Batch, digests: Sequence[str]
) -> Tensor:
    """Return what the threat's own function makes of a batch, [n, c, h, w]."""
    task = computation.portion.task
    noise = Noise(task.seed, computation.keys(trials, digests))
    with attacking(task.precision):
        copy = replace(batch, x=batch.x.clone())
        return task.threat.perturb(computation.portion.stage, network, copy, noise).detach()


def replay(computation: Computation) -> Iterator[list[Result]]:
    """Show the judge, for each trial, the adversarial images that fooled other steerings."""
    candidates = computation.portion.candidates
    for trials in batched(computation.portion.trials, max(SHOWN // max(map(len, candidates.values())), 1)):
        shown = [trial for trial in trials for _ in candidates[trial]]
        images = torch.cat([candidates[trial] for trial in trials]).to(computation.device)
        lost = {trial for trial, fooled in zip(shown, _fooled(computation, shown, images), strict=True) if fooled}
        yield [Result(trial, Answer(0.0 if trial in lost else 1.0), Cost(len(candidates[trial]))) for trial in trials]


def inspect(computation: Computation) -> Iterator[list[Result]]:
    """Look at each steering on its images for signs of gradient masking, and test its attack on planted examples."""
    task = computation.portion.task
    for steering, trials in grouped(computation.portion.trials, by_steering).items():
        judge, attacked = (OneSteering(computation.lane(steering, which)) for which in (False, bool(task.attacks)))
        batch, digests = computation.batch(trials)
        found = None
        if not task.normalised:
            task.threat.inspect(judge, batch)
            with attacking(task.precision):
                found = task.threat.unit_test(attacked, batch, Noise(task.seed, computation.keys(trials, digests)))
        forwards, backwards = judge.forwards + attacked.forwards, judge.backwards + attacked.backwards
        share = Cost(-(-forwards // len(trials)), -(-backwards // len(trials)))
        values = [float("nan")] * len(trials) if found is None else found.tolist()
        yield [Result(trial, Answer(value), share) for trial, value in zip(trials, values, strict=True)]


def training(computation: Computation) -> Iterator[list[Result]]:
    """Score the training images under each steering by cross-validation, each with what was fitted without it."""
    loaded, task = computation.session.loaded, computation.portion.task
    assert task.model.training is not None
    assert loaded.training is not None
    place = {image: position for position, image in enumerate(loaded.training.digests)}
    first = source(task.model.training, task.preprocessing, task.offline).read((computation.portion.trials[0].image,))
    computation.session.to_channels_last(first.x.to(computation.device), task.precision)
    for steering, trials in grouped(computation.portion.trials, by_steering).items():
        values = loaded.training_scores(steering)
        yield [Result(trial, Answer(float(values[place[trial.image]])), Cost(forwards=1)) for trial in trials]
