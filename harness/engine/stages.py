"""Work of each stage on its trials: clean images, attacks, replays, inspections, training images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from time import perf_counter

import torch
from torch import Tensor

from harness.analysis.task_types import TASK_TYPES
from harness.api.attack import Attack, Trials
from harness.api.records import Batch, Steering
from harness.api.threat import Flag
from harness.api.trial import CLEAN, INSPECT, REPLAY, TRAINING, Answer, Cost, Result, Trial
from harness.api.work import Portion
from harness.engine.acceleration import attacking
from harness.engine.fixed_width import FixedWidth
from harness.engine.images import ImageCache, source
from harness.engine.numerics import resolve
from harness.engine.session import Lane, ModelSession, OneSteering, model_session
from harness.engine.slots import Ended, advance
from harness.engine.verification import logits, verify
from harness.errors import ModelError
from harness.util.noise import Noise, key_of

JUDGE_EVERY = 0.5
"""Seconds after which adversarial images are judged together; their slots are free before."""
SHOWN = 256
"""Most images that a replay shows at once."""
JUDGED = 256
"""Most adversarial images that wait for it."""


@dataclass
class Computation:
    """Trials of one stage in the process that computes them.

    Args:
        portion: the trials.
    """

    portion: Portion
    device: str = field(init=False)
    session: ModelSession = field(init=False)
    images: ImageCache = field(init=False)

    def __post_init__(self) -> None:
        task = self.portion.task
        self.device = resolve(task.device)
        self.session = model_session(task.model, self.device, task.offline, task.normalised)
        where = (task.dataset, task.preprocessing)
        if where not in self.session.images:
            self.session.images[where] = ImageCache(source(task.dataset, task.preprocessing, task.offline))
        self.images = self.session.images[where]

    def batch(self, trials: Sequence[Trial]) -> tuple[Batch, list[str]]:
        """Return the clean images of trials, on the device and as the network takes them, and their digests."""
        batch, digests = self.images.read([trial.image for trial in trials])
        for trial, digest in zip(trials, digests, strict=True):
            if self.portion.digests.get(trial.image, digest) != digest:
                raise ModelError(
                    f"image {trial.image} of the dataset is another one here than where the run was started; give "
                    "every machine the same files, and leave them as they are while a benchmark runs"
                )
        return self.session.to_input_space(batch.to(self.device)), digests

    def keys(self, trials: Sequence[Trial], digests: Sequence[str]) -> Tensor:
        """Return the keys of the trials' noise, int64 [n]: of seed, image and attempt, the same for every steering."""
        seed = self.portion.task.seed
        return torch.tensor(
            [
                key_of(seed, digest, trial.attempt.stage, trial.attempt.target, trial.attempt.restart)
                for trial, digest in zip(trials, digests, strict=True)
            ],
            device=self.device,
        )

    def lane(self, steering: Steering, attacked: bool = False) -> Lane:
        """Return the network of a steering that judges, or that is attacked."""
        made = self.session.attacked if attacked else self.session.judge
        return made(self.portion.task, steering, self.example)

    @cached_property
    def example(self) -> Tensor:
        """Noise in the network's input space, [4, c, h, w], the same in every process: what is proved of any image."""
        first, _ = self.images.read([self.portion.trials[0].image])
        noise = torch.rand(4, *first.x.shape[1:], generator=torch.Generator().manual_seed(0))
        example = self.session.to_input_space(replace(first, x=noise).to(self.device)).x
        self.session.to_channels_last(example[:1])
        return example

    def groups(self, trials: Sequence[Trial], attacked: bool = False) -> Iterator[Group]:
        """Yield the trials whose images can go through a network together."""
        lanes = {steering: self.lane(steering, attacked) for steering in dict.fromkeys(t.steering for t in trials)}
        for network in dict.fromkeys(lane.network for lane in lanes.values()):
            own = [trial for trial in trials if lanes[trial.steering].network is network]
            parameters = [lanes[trial.steering].parameters for trial in own]
            rows = None if parameters[0] is None else torch.stack([row for row in parameters if row is not None])
            yield Group(network, own, rows)

    def width(self, network: FixedWidth) -> int:
        """Return the number of images that go through a network at once."""
        return self.portion.task.batch_size or self.session.fastest(network)

    def answers(self, trials: Sequence[Trial], x: Tensor) -> Tensor:
        """Return the judge's answers [n, k] for one image [n, c, h, w] of each trial."""
        result: list[Tensor] = [torch.empty(0)] * len(trials)
        position = {trial: place for place, trial in enumerate(trials)}
        for group in self.groups(trials):
            places = [position[trial] for trial in group.trials]
            width = self.width(group.network)
            for start in range(0, len(places), width):
                part = slice(start, start + width)
                found = logits(group.network, x[places[part]], *group.rows_of(part))
                for place, answer in zip(places[part], found, strict=True):
                    result[place] = answer
        return torch.stack(result)


@dataclass(frozen=True, eq=False)
class Group:
    """Trials whose images can go through one network together.

    Args:
        network: the network.
        trials: the trials.
        parameters: parameters of each trial's curve, [n, p]; None where all are of one steering.
    """

    network: FixedWidth
    trials: list[Trial]
    parameters: Tensor | None

    def rows_of(self, which: slice | list[int] | Tensor) -> tuple[Tensor, ...]:
        """Return what the network takes besides the images of some trials."""
        return () if self.parameters is None else (self.parameters[which],)


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
        for trials in _slices(group.trials, 1024):
            _warn_of_company(group.network, computation.portion.task.label)  # a flag is of what is yielded next
            yield _clean(computation, trials)


def _clean(computation: Computation, trials: Sequence[Trial]) -> list[Result]:
    """Return the results of clean trials."""
    task = computation.portion.task
    task_type = TASK_TYPES[task.dataset.target]
    batch, _ = computation.batch(trials)
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


def _warn_of_company(network: FixedWidth, label: str) -> None:
    """Flag a network whose answers depend on the batch, and say that one is slow whose last bits depend on it."""
    if network.reference == 0:
        warnings.warn(Flag("randomized", "its answers differ from call to call"), stacklevel=2)
    elif network.depends_on_company:
        warnings.warn(Flag("company", "an image's answer depends on the rest of its batch"), stacklevel=2)
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
        slots = _slots(computation.width(group.network), len(group.trials))
        shape = tuple(computation.batch(group.trials[:1])[0].x.shape[1:])
        attack = threat.attack_machine(stage, slots, shape, group.network.classes, computation.device)
        if attack is None:
            yield from _by_batches(computation, group)
        else:
            yield from _in_slots(computation, group, attack, slots)


def _slots(width: int, trials: int) -> int:
    """Return the number of slots: no more than trials can fill, and a multiple of 16."""
    return min(width, -(-trials // 16) * 16)


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
        answers: Tensor = group.network(images, *(() if parameters is None else (parameters[occupied],)))
        return answers

    waiting: list[Ended] = []
    judged = perf_counter()
    ended = advance(attack, slots, len(trials), start, network)
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
    fooled = _fooled(computation, list(found), torch.stack(list(found.values()))) if found else []
    lost = {trial for trial, is_lost in zip(found, fooled, strict=True) if is_lost}
    results = []
    for trial, one in zip(trials, ended, strict=True):
        cost = Cost(one.steps * attack.forwards + (one.found is not None), one.steps * attack.backwards)
        image = found[trial].cpu().clone() if trial in lost else None  # not a view of all that ended with it
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
    task, stage = computation.portion.task, computation.portion.stage
    task_type, width = TASK_TYPES[task.dataset.target], computation.width(group.network)
    for steering in dict.fromkeys(trial.steering for trial in group.trials):
        own = [trial for trial in group.trials if trial.steering == steering]
        for trials in _slices(own, width):
            network = OneSteering(computation.lane(steering, attacked=bool(task.attacks)))
            batch, digests = computation.batch(trials)
            noise = Noise(task.seed, computation.keys(trials, digests))
            with attacking(task.precision):
                images = task.threat.perturb(stage, network, replace(batch, x=batch.x.clone()), noise).detach()
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


def replay(computation: Computation) -> Iterator[list[Result]]:
    """Show the judge, for each trial, the adversarial images that fooled other steerings."""
    candidates = computation.portion.candidates
    for trials in _slices(computation.portion.trials, max(SHOWN // max(map(len, candidates.values())), 1)):
        shown = [trial for trial in trials for _ in candidates[trial]]
        images = torch.cat([candidates[trial] for trial in trials]).to(computation.device)
        lost = {trial for trial, fooled in zip(shown, _fooled_each(computation, shown, images), strict=True) if fooled}
        yield [Result(trial, Answer(0.0 if trial in lost else 1.0), Cost(len(candidates[trial]))) for trial in trials]


def _fooled_each(computation: Computation, shown: Sequence[Trial], images: Tensor) -> list[bool]:
    """Return which images, several of them of one trial, fool the judge."""
    numbered = [trial._replace(attempt=trial.attempt._replace(restart=k)) for k, trial in enumerate(shown)]
    return _fooled(computation, numbered, images)


def inspect(computation: Computation) -> Iterator[list[Result]]:
    """Look at each steering on its images for signs of gradient masking; flags say what was found."""
    task = computation.portion.task
    for steering in dict.fromkeys(trial.steering for trial in computation.portion.trials):
        trials = [trial for trial in computation.portion.trials if trial.steering == steering]
        network = OneSteering(computation.lane(steering))
        batch, _ = computation.batch(trials)
        if not task.normalised:
            task.threat.inspect(network, batch)
        share = Cost(-(-network.forwards // len(trials)), -(-network.backwards // len(trials)))
        yield [Result(trial, Answer(1.0), share) for trial in trials]


def training(computation: Computation) -> Iterator[list[Result]]:
    """Score the training images under each steering by cross-validation, each with what was fitted without it."""
    loaded, task = computation.session.loaded, computation.portion.task
    assert task.model.training is not None
    assert loaded.training is not None
    place = {image: position for position, image in enumerate(loaded.training.digests)}
    first = source(task.model.training, task.preprocessing, task.offline).read((computation.portion.trials[0].image,))
    computation.session.to_channels_last(first.x.to(computation.device))
    for steering in dict.fromkeys(trial.steering for trial in computation.portion.trials):
        values = loaded.training_scores(steering)
        yield [
            Result(trial, Answer(float(values[place[trial.image]])), Cost(forwards=1))
            for trial in computation.portion.trials
            if trial.steering == steering
        ]


def _slices(trials: Sequence[Trial], size: int) -> Iterator[Sequence[Trial]]:
    for start in range(0, len(trials), size):
        yield trials[start : start + size]
