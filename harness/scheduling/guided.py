"""Which trials next, so that the best β is known soonest: a best-first search, guided by what fooled the neighbours. Pure.

A steering's bound is the share of images that are not lost yet. Whoever may still win, on all images or on a set that a
cross-validation chooses on, is worked on: first the attempts that fooled the same images at other steerings, which
bring a loser down for a few steps an image; only a leader for whom there are no such hints left is attacked in full.
A winner is a leader whose images are all decided. Ties are broken as everywhere, so the winners are those of the full
grid, whatever is left undecided. At the end every steering is tried with all that fooled its neighbours, so that the
bounds draw the curve.

The course is a function of the verdicts alone: `ask` names a round of trials, all of which are told before the next one
is asked for. So neither the number of workers nor the order in which they finish changes what is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from harness.scheduling.verdicts import Trial, Verdicts


class GuidedSearch:
    """The search over one model's steerings.

    Args:
        verdicts: with the clean images told; the search tells it the rest.
        sets: positions of the images that each choice of β is made on, [k] each.
        top: how many of the best on all images to finish.
        finish: numbers of the steerings to finish whatever their rank, the baseline's among them.
        chunk: trials without a hint that a leader is given in one round.
    """

    def __init__(
        self,
        verdicts: Verdicts,
        sets: Sequence[np.ndarray],
        top: int = 1,
        finish: Collection[int] = (),
        chunk: int = 64,
    ) -> None:
        self.verdicts = verdicts
        everything = np.arange(verdicts.alive.shape[1])
        self.sets = [everything, *sets]
        self.tops = [top, *(1 for _ in sets)]
        self.finish = set(finish)
        self.chunk = chunk
        self.nearest = [self._by_distance(number) for number in range(len(verdicts.steerings))]

    def ask(self) -> list[Trial]:
        """Return the trials of the next round, none twice; empty when all winners and all hints are known."""
        rounds = self._to_finish() or self._to_decide() or self._to_draw_the_curve()
        return sorted(set(rounds))

    def tell(self, outcomes: Mapping[Trial, bool]) -> None:
        """Take note of a round."""
        self.verdicts.tell(outcomes)

    def winners(self) -> list[list[int]]:
        """Return for all images, then for each set, the best steerings by their bounds, as many as are to be finished."""
        return [self._ranked(where)[:top] for where, top in zip(self.sets, self.tops, strict=True)]

    def _to_finish(self) -> list[Trial]:
        """Every undecided image of a steering that must be finished."""
        decided = self.verdicts.decided
        must = self.finish | {number for best in self._known_winners() for number in best}
        open_ = {number: np.flatnonzero(~decided[number]) for number in sorted(must)}
        return [trial for number, images in open_.items() for trial in self._trials(number, images)]

    def _known_winners(self) -> Iterator[list[int]]:
        """The winners of each set that is decided: those that lead and have no undecided image in it."""
        decided = self.verdicts.decided
        for where, best in zip(self.sets, self.winners(), strict=True):
            if all(decided[number, where].all() for number in best):
                yield best

    def _to_decide(self) -> list[Trial]:
        """What brings down whoever may still win a set."""
        decided = self.verdicts.decided
        trials: list[Trial] = []
        for where, top in zip(self.sets, self.tops, strict=True):
            ranked = self._ranked(where)
            if all(decided[number, where].all() for number in ranked[:top]):
                continue
            finished = [place for place, number in enumerate(ranked) if decided[number, where].all()]
            incumbent = finished[top - 1] if len(finished) >= top else len(ranked) - 1
            floor = self._lead(ranked[incumbent], where)
            hinted = [
                trial
                for number in ranked[:incumbent]
                for trial in self._hinted(number, where, self._lead(number, where) - floor + 1)
            ]
            trials += hinted or self._in_full(next(one for one in ranked if not decided[one, where].all()), where)
        return trials

    def _hinted(self, number: int, where: np.ndarray, most: int) -> list[Trial]:
        """Trials of a steering that fooled its neighbours, smallest margins first, at most so many."""
        hints = self.verdicts.hints(number, self.nearest[number])
        images = where[hints[where] >= 0]
        order = images[np.argsort(self.verdicts.margins[number, images], kind="stable")]
        return [Trial(number, int(image), int(hints[image])) for image in order[:most]]

    def _in_full(self, number: int, where: np.ndarray) -> list[Trial]:
        """The cheapest untried attempts on undecided images, smallest margins first."""
        images = where[~self.verdicts.decided[number, where]]
        cheapest = self.verdicts.cheapest(number)[images]
        order = np.lexsort((self.verdicts.margins[number, images], cheapest))[: self.chunk]
        return [Trial(number, int(images[place]), int(cheapest[place])) for place in order]

    def _to_draw_the_curve(self) -> list[Trial]:
        """All that fooled the neighbours of a steering and is untried there."""
        everything = self.sets[0]
        return [
            trial for number in range(len(self.verdicts.steerings)) for trial in self._hinted(number, everything, len(everything))
        ]

    def _trials(self, number: int, images: np.ndarray) -> list[Trial]:
        """One trial for each image: hinted where there is a hint, otherwise the cheapest."""
        hints, cheapest = self.verdicts.hints(number, self.nearest[number]), self.verdicts.cheapest(number)
        return [
            Trial(number, int(image), int(hints[image] if hints[image] >= 0 else cheapest[image])) for image in images
        ]

    def _lead(self, number: int, where: np.ndarray) -> int:
        """How many images of a set are not lost yet."""
        return int(self.verdicts.alive[number, where].sum())

    def _ranked(self, where: np.ndarray) -> list[int]:
        """Steerings by their bounds on a set, best first: robust, then clean, then β nearest the untouched network, then c nearest ½."""
        alive = self.verdicts.alive[:, where].sum(axis=1)
        clean = self.verdicts.correct[:, where].sum(axis=1)

        def rank(number: int) -> tuple[float, ...]:
            steering = self.verdicts.steerings[number]
            return (
                -int(alive[number]), -int(clean[number]), abs(steering.beta - steering.native), abs(steering.c - 0.5),
                number,
            )  # fmt: skip

        return sorted(range(len(self.verdicts.steerings)), key=rank)

    def _by_distance(self, number: int) -> list[int]:
        """The other steerings, nearest first."""
        own = self.verdicts.steerings[number]

        def distance(other: int) -> tuple[float, float, int]:
            steering = self.verdicts.steerings[other]
            return abs(steering.beta - own.beta), abs(steering.c - own.c), other

        return sorted((other for other in range(len(self.verdicts.steerings)) if other != number), key=distance)
