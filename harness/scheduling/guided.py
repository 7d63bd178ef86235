"""Best-first search for the best β, guided by what fooled its neighbours. Pure.

A steering's bound is the share of images that are not lost yet. Steerings that may still win, on all images or on a set
that a cross-validation chooses on, are worked on: first the attempts that fooled the same images at steerings nearby,
which bring a loser down for a few steps an image; only a leader without such hints is attacked in full. Once every
image of a leader is decided, it is shown all adversarial images found under the others; it has won if it still leads.
Ties are broken as everywhere, so the winners are those of the full grid, whatever is left undecided. At the end every
steering is attacked with what fooled its neighbours, so that the bounds draw the curve.

A search asks for the clean images of every steering, then for the attacks of `harness.scheduling.attack_order`, in turn
with the replay as long as that changes who leads, and last for a look at every finished steering for gradient masking.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from harness.api.records import Steering
from harness.api.trial import CLEAN, INSPECT, Answer, Attempt, Trial
from harness.scheduling.attack_order import AttackOrder
from harness.scheduling.contest import Contest, Standing
from harness.scheduling.grades import Grades
from harness.scheduling.grid import in_line
from harness.scheduling.prices import attempts, cheapest_first, price, share
from harness.scheduling.replay import Replay, Sources
from harness.scheduling.verdicts import Verdicts
from harness.util.hashing import sha256

if TYPE_CHECKING:
    from harness.api.threat import Threat

CHEAP = 0.05
"""Share of an attack's price that its first stage may cost to be made for the sake of the curve."""
INSPECTED = 32
"""Clean images that are looked at for signs of gradient masking."""


class Round(NamedTuple):
    """Trials that are asked for together.

    Args:
        trials: the trials, in canonical order.
        take: called with their answers, in the same order.
    """

    trials: list[Trial]
    take: Callable[[list[Answer]], None]


NOTHING = Round([], lambda answers: None)


class GuidedSearch:
    """Search over one model's steerings; a `harness.scheduling.course.Course`.

    Args:
        threat: the threat to score under.
        steerings: everything to score, from `harness.scheduling.grid.grid`.
        digests: a hash of each image by its number, in the order of the data.
        sets: positions of the images that each choice of β is made on, [k] each.
        top: number of the best on all images to finish; None finishes every steering.
        required: steerings to finish whatever their rank, besides the baseline and the other methods.
        most: highest score that an image can have.
    """

    def __init__(
        self,
        threat: Threat,
        steerings: Sequence[Steering],
        digests: Mapping[int, str],
        sets: Sequence[np.ndarray],
        *,
        top: int | None,
        required: Collection[Steering] = (),
        most: float = 1.0,
    ) -> None:
        self.threat, self.steerings, self.digests, self.most = threat, tuple(steerings), digests, most
        self.images = tuple(digests)
        self.sets = [np.asarray(where, int) for where in sets]
        self.top, self.required = top, required
        self._number = {steering: number for number, steering in enumerate(steerings)}
        self._clean: np.ndarray | None = None
        self._verdicts: Verdicts | None = None
        self._grades: Grades | None = None
        self._is_inspected = False
        self._tested: dict[int, list[float]] = {}
        self._sentinels: dict[int, list[float]] = {}
        self._classes = 10  # an estimate is good enough for a price
        self._round: Round | None = None

    def without(self, method: str) -> GuidedSearch:
        """Return the search from its start, over the same steerings but for another method that cannot be scored."""
        steerings = [steering for steering in self.steerings if steering.method != method]
        return GuidedSearch(
            self.threat, steerings, self.digests, self.sets, top=self.top, required=self.required, most=self.most
        )

    # --- the course ---

    def ask(self) -> list[Trial]:
        """See `harness.scheduling.course.Course`."""
        if self._round is None:
            self._round = self._next_round()
        return list(self._round.trials)

    def tell(self, answers: Mapping[Trial, Answer]) -> None:
        """See `harness.scheduling.course.Course`."""
        if trials := self.ask():
            assert self._round is not None
            self._round.take([answers[trial] for trial in trials])
            self._round = None

    def remaining(self) -> float:
        """See `harness.scheduling.course.Course`; counts the steerings that must be finished and those that lead."""
        n, stages = len(self.images), self.threat.stages
        prices = np.array([price(self.threat, stage, self._classes) for stage in stages])
        if self._clean is None:
            on_an_image = prices @ [attempts(self.threat, stage, self._classes) for stage in stages]
            at_least = sum(self.top is None or one.is_baseline or bool(one.method) for one in self.steerings) + 1
            return float(n * (len(self.steerings) + min(at_least, len(self.steerings)) * on_an_image))
        finish = self._contest.to_be_finished(self._standings, leaders=True)
        if self._verdicts is not None:
            in_order = dict(zip(stages, prices.tolist(), strict=True))
            of_stage = np.array([*(in_order[stage] for stage in self._order), 0.0])
            return float((self._verdicts.open(finish).sum(axis=0) * of_stage[self._verdicts.stage]).sum())
        return 0.0 if self._grades is None else float(n * (len(stages) - self._grades.done[finish]).sum())

    # --- what is known ---

    def clean(self, steering: Steering) -> np.ndarray:
        """Return upper bounds on the clean scores, exact once the clean images were answered; float32 [n]."""
        if self._clean is None:
            return np.full(len(self.images), self.most, np.float32)
        return np.array(self._clean[self._number[steering]])

    def robust(self, steering: Steering) -> np.ndarray:
        """Return upper bounds on the robust scores, exact where the steering is finished; float32 [n].

        An image counts as lost if the steering's own attack fools the network, or an adversarial image found under
        another steering does.
        """
        number = self._number[steering]
        if self._verdicts is not None:
            return np.array(self._verdicts.robust[number], np.float32)
        return self.clean(steering) if self._grades is None else self._grades.bounds[number].copy()

    def own(self, steering: Steering) -> np.ndarray | None:
        """Return the robust scores against the steering's own attack alone, [n]; None if unfinished or not attacked."""
        if self._verdicts is None or not self.finished(steering):
            return None
        return np.array(self._verdicts.alive[self._number[steering]], np.float32)

    def finished(self, steering: Steering) -> bool:
        """Return whether every image of a steering is decided."""
        return self._clean is not None and bool(self._decided[self._number[steering]].all())

    def stages(self, steering: Steering) -> dict[str, np.ndarray]:
        """Return what is known after each stage, float32 [n]: the clean stage, then each of the threat's.

        1 where an image has survived every attempt of the stages so far, 0 where it was misclassified or has fallen to
        one of them, NaN otherwise. With reduction "mean" the stage's own score, NaN where it is missing.
        """
        number, unknown = self._number[steering], np.full(len(self.images), np.nan, np.float32)
        found = {CLEAN: unknown if self._clean is None else self._clean[number]}
        for position, stage in enumerate(self.threat.stages):
            if self._verdicts is not None:
                so_far = [self._order.index(earlier) for earlier in self.threat.stages[: position + 1]]
                found[stage] = self._verdicts.of(number, np.array(so_far))
            else:
                found[stage] = unknown if self._grades is None else self._grades.values[number, position]
        return found

    @property
    def is_attacked(self) -> bool:
        """True where images are attacked, so that what fools one steering is shown to the others."""
        return self._verdicts is not None

    @property
    def sources(self) -> Mapping[Trial, Sources]:
        """The trials whose adversarial images are shown by each trial of the replay that was asked for."""
        return {} if self._verdicts is None else self._replay.sources

    def unit_test(self, steering: Steering) -> float | None:
        """Return the share of the planted adversarial examples that the attack has found; None where there are none."""
        found = np.array(self._tested.get(self._number[steering], ()))
        found = found[~np.isnan(found)]
        return float(found.mean()) if len(found) else None

    def sentinels(self, steering: Steering) -> np.ndarray:
        """Return which of the robust images that were shown to a sentinel have survived it, 1 or 0, float [k]."""
        return np.array(self._sentinels.get(self._number[steering], ()))

    @property
    def _robust(self) -> np.ndarray:
        """Upper bounds on the robust scores, [S, n], once the clean images are known."""
        assert self._clean is not None
        if self._verdicts is not None:
            return self._verdicts.robust
        return self._clean if self._grades is None else self._grades.bounds

    @property
    def _decided(self) -> np.ndarray:
        """Table of the robust scores that are exact, bool [S, n], once the clean images are known."""
        assert self._clean is not None
        if self._verdicts is not None:
            return self._verdicts.decided
        finished = np.ones(len(self.steerings), bool) if self._grades is None else self._grades.finished
        return np.broadcast_to(finished[:, None], self._clean.shape)

    @property
    def _standings(self) -> list[Standing]:
        """Standings of the contests, once the clean images are known."""
        return self._contest.standings(self._robust, self._decided)

    # --- rounds ---

    def _next_round(self) -> Round:
        """Return the next round; without trials when nothing is missing."""
        if self._clean is None:
            attempt = Attempt(CLEAN)
            trials = [Trial(steering, image, attempt) for steering in self.steerings for image in self.images]
            return Round(trials, self._take_clean)
        if self._grades is not None:
            return self._graded_round(self._grades)
        if self._verdicts is not None:
            return next((one for one in self._rounds(self._verdicts) if one.trials), NOTHING)
        return NOTHING

    def _rounds(self, verdicts: Verdicts) -> Iterator[Round]:
        """Yield the rounds that may come next; the first that has any trials does."""
        if self._replay.has_begun:  # it took the lead from somebody: forward passes tell who does not deserve it either
            undecided = [standing for standing in self._standings if not standing.is_decided]
            yield self._replay_round([number for one in undecided for number in one.contenders[0]])
        yield self._attack_round(verdicts, self._attacks.next())
        finished = np.flatnonzero(verdicts.decided.all(axis=1)).tolist()
        yield self._replay_round(finished)
        if not self._is_inspected:
            yield self._last_round(verdicts, finished)

    def _take_clean(self, answers: list[Answer]) -> None:
        """Take note of the clean images; they say which attempts there are."""
        shape, stages = (len(self.steerings), len(self.images)), self.threat.stages
        self._clean = clean = np.array([answer.value for answer in answers], np.float32).reshape(shape)
        self._contest = Contest(self.steerings, self.sets, clean, self.top, self.required)
        if stages and self.threat.reduction == "mean":
            self._grades = Grades(shape[0], len(stages), shape[1], self.most)
        elif stages:
            self._classes = 1 + max((max(answer.ranking) for answer in answers if answer.ranking), default=1)
            self._order = list(stages) if self.top is None else cheapest_first(self.threat, self._classes)
            row = iter(answers)
            rankings = [[next(row).ranking for _ in self.images] for _ in self.steerings]
            self._verdicts = Verdicts(self.threat, self._order, clean > 0, rankings)
            margins = np.array([answer.margin for answer in answers]).reshape(shape)
            explore = share(self.threat, self._order[0], self._classes) <= CHEAP
            self._replay = Replay(self._verdicts, self.steerings, self.images, self._contest.choices)
            self._attacks = AttackOrder(self._verdicts, self._contest, in_line(self.steerings), margins, explore)

    def _attack_round(self, verdicts: Verdicts, cells: np.ndarray) -> Round:
        """Return the round of the trials in some cells."""
        axes = (axis.tolist() for axis in np.unravel_index(cells, verdicts.place.shape))
        trials = [
            Trial(self.steerings[s], self.images[i], verdicts.attempts[i][a]) for s, i, a in zip(*axes, strict=True)
        ]

        def take(answers: list[Answer]) -> None:
            verdicts.tell(cells, np.array([answer.value <= 0 for answer in answers]))

        return Round(trials, take)

    def _graded_round(self, grades: Grades) -> Round:
        """Return the next stage of what must be finished, or else of the leader of the first undecided set."""
        finish = self._contest.to_be_finished(self._standings)
        numbers = finish[~grades.finished[finish]].tolist()
        numbers = numbers or [standing.leader for standing in self._standings if not standing.is_decided][:1]
        own = [self.threat.attempts(self.threat.stages[grades.done[number]], ())[0] for number in numbers]
        trials = [
            Trial(self.steerings[number], image, attempt)
            for number, attempt in zip(numbers, own, strict=True)
            for image in self.images
        ]

        def take(answers: list[Answer]) -> None:
            values = np.array([answer.value for answer in answers], np.float32).reshape(-1, len(self.images))
            for number, row in zip(numbers, values, strict=True):
                grades.tell(number, row)

        return Round(trials, take)

    def _replay_round(self, numbers: Sequence[int]) -> Round:
        """Return the round that shows to some steerings what fooled others and they have not seen."""
        trials = self._replay.ask(np.array(numbers, int))
        return Round(trials, lambda answers: self._replay.tell(dict(zip(trials, answers, strict=True))))

    def _last_round(self, verdicts: Verdicts, finished: Sequence[int]) -> Round:
        """Return the look for gradient masking and the sentinels, on every finished steering."""
        inspected = [trial for number in finished for trial in self._looks(verdicts, number)]
        guarded = [trial for number in finished for trial in self._guarded(verdicts, number)]

        def take(answers: list[Answer]) -> None:
            self._is_inspected = True
            for trial, answer in zip([*inspected, *guarded], answers, strict=True):
                kept = self._tested if trial.attempt.stage == INSPECT else self._sentinels
                kept.setdefault(self._number[trial.steering], []).append(answer.value)

        return Round([*inspected, *guarded], take)

    def _looks(self, verdicts: Verdicts, number: int) -> list[Trial]:
        """Return the trials that look at a steering's first correctly classified images."""
        images = [self.images[position] for position in np.flatnonzero(verdicts.correct[number])[:INSPECTED].tolist()]
        attempt = Attempt(INSPECT, of=sha256([self.digests[image] for image in images]))
        return [Trial(self.steerings[number], image, attempt) for image in images]

    def _guarded(self, verdicts: Verdicts, number: int) -> list[Trial]:
        """Return the trials of the sentinels on a steering's first robust images."""
        images = [self.images[position] for position in np.flatnonzero(verdicts.robust[number])[:INSPECTED].tolist()]
        return [Trial(self.steerings[number], image, one) for one in self.threat.sentinels for image in images]
