"""Order of the attacks: which trials next, so that every winner is known soonest. Pure.

Of these rounds, the first that has any trials:

1. The baseline, the other methods, the required steerings and the winners that are known: all undecided images.
2. The contenders of every undecided set: hints, smallest margins first, no more than can be needed to overtake them.
3. The leader of the first undecided set: attacks stage by stage, smallest margins first.
4. The dearest stage on everything that is finished, which the rounds before take for survived: together, since it is
   Square's thousands of steps, one after the other, that take the time, and not the number of images.
5. Every steering: hints.
6. Scouts, evenly spaced in the line: whatever has fooled an image anywhere; what fools a scout is a hint nearby.
7. Landmarks, the ends and the middle of the line: the first stage, if it is cheap; what falls there is a hint nearby.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from harness.scheduling.contest import Contest, Standing
from harness.scheduling.hints import hints
from harness.scheduling.verdicts import ABSENT, Verdicts

CHUNK = 256
"""Trials of a round without hints, or a few more: enough to fill a batch, and few enough to stop soon."""
SCOUTS = 32
"""Steerings that are shown all that has fooled others; in a finer grid, what fools none of them is left untried."""
LANDMARKS = 3
"""Steerings that are attacked by the first stage for the sake of the curve: an image may be lost only far from all that
are finished, and no hint would tell."""


class AttackOrder:
    """Chooser of the next round of attacks. Trials are named by their cells; see `harness.scheduling.verdicts`.

    Args:
        verdicts: what is known; it grows as answers are told.
        contest: knows who leads and who has won.
        line: numbers of the steerings between which hints are exchanged, neighbours alike.
        margins: margins of the clean images, [S, n]; an image with a small one falls first.
        explore: whether landmarks are attacked.
    """

    def __init__(
        self, verdicts: Verdicts, contest: Contest, line: Sequence[int], margins: np.ndarray, explore: bool
    ) -> None:
        self.verdicts, self.contest, self.explore = verdicts, contest, explore
        self.line = np.array(line, int)
        self.in_line = np.isin(np.arange(len(verdicts.alive)), self.line)
        self.scouts = self._spaced(SCOUTS)
        self.is_early = self._all_but_the_dearest_stage()
        self.by_margin = np.argsort(np.argsort(margins, axis=1, kind="stable"), axis=1)

    def _all_but_the_dearest_stage(self) -> np.ndarray:
        """Return a mask of the attempts that are not of the dearest stage, bool [n, A]; all where there is but one."""
        made = self.verdicts.stage[self.verdicts.place.min(axis=0, initial=ABSENT) != ABSENT]
        only = self.contest.full or len(np.unique(made)) < 2
        found: np.ndarray = np.ones_like(self.verdicts.stage, bool) if only else self.verdicts.stage != made.max()
        return found

    def next(self) -> np.ndarray:
        """Return the cells of the next round, sorted; none when the search is over."""
        return next((np.unique(cells) for cells in self._rounds() if len(cells)), np.empty(0, int))

    def _rounds(self) -> Iterator[np.ndarray]:
        decided: np.ndarray = np.logical_not(self._early(np.arange(len(self.verdicts.alive))).any(axis=2))
        standings = self.contest.standings(self.verdicts.robust, decided)
        finish = self.contest.to_be_finished(standings)
        yield self._to_the_end(finish[~decided[finish].all(axis=1)])
        if not self.contest.full:
            if undecided := [standing for standing in standings if not standing.is_decided]:
                yield self._hints_to_contenders(undecided)
                yield self._to_the_leader(undecided[0])
            yield self._open(finish)
            yield self._hints(self.in_line)
            yield np.concatenate([self._fooled_elsewhere(number) for number in self.scouts.tolist()])
            if self.explore:
                yield self._to_landmarks()

    def _early(self, numbers: np.ndarray) -> np.ndarray:
        """Return the open attempts of some steerings, the dearest stage left out, bool [k, n, A]."""
        found: np.ndarray = self.verdicts.open(numbers) & self.is_early
        return found

    def _open(self, numbers: np.ndarray) -> np.ndarray:
        """Return every open attempt of some steerings."""
        rows, images, attempts = np.nonzero(self.verdicts.open(numbers))
        return self.verdicts.cells(numbers[rows], images, attempts)

    def _to_the_end(self, numbers: np.ndarray) -> np.ndarray:
        """Return attacks on the undecided images of some steerings: what fooled others, then stage by stage.

        All attempts of a stage, or as many of each image as together make up `CHUNK` trials and a few more. Where every
        steering is finished, one of each image: then what is asked of an image does not depend on the others, and a run
        with more images computes theirs alone.
        """
        hinted = [self._fooled_elsewhere(number) for number in numbers.tolist()]
        without = np.array([not len(cells) for cells in hinted], bool)
        steerings, images, attempts = self._next_stage(numbers[without], self.contest.sets[0])
        place, cells = (
            self.verdicts.place[steerings, images, attempts],
            self.verdicts.cells(steerings, images, attempts),
        )
        if self.contest.full:
            order = np.lexsort((place, images, steerings))
            _, first = np.unique(np.stack([steerings, images])[:, order], axis=1, return_index=True)
            return cells[order[first]]
        last = np.partition(place, CHUNK - 1)[CHUNK - 1] if len(place) > CHUNK else ABSENT
        return np.concatenate([np.empty(0, int), *hinted, cells[place <= last]])

    def _next_stage(self, numbers: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the open attempts of each steering's next stage: steerings, images and attempts, int [k] each.

        Args:
            numbers: numbers of the steerings.
            where: positions of the images that count.
        """
        rows, images, attempts = np.nonzero(self._early(numbers)[:, where])
        images = where[images]
        stage = self.verdicts.stage[images, attempts]
        earliest = np.full(len(numbers), np.iinfo(np.int16).max)
        np.minimum.at(earliest, rows, stage)
        kept = stage == earliest[rows]
        return numbers[rows[kept]], images[kept], attempts[kept]

    def _fooled_elsewhere(self, number: int) -> np.ndarray:
        """Return for each undecided image of a steering the open attempt that fooled it nearest by, if there is one."""
        if self.contest.full or not self.in_line[number]:
            return np.empty(0, int)
        fooled = self.verdicts.fooled[self.line]
        images, attempts = np.nonzero(self._early(np.array([number]))[0] & fooled.any(axis=0))
        away = np.abs(np.arange(len(self.line)) - np.flatnonzero(self.line == number))
        distance = np.where(fooled[:, images, attempts], away[:, None], len(away)).min(axis=0)
        order = np.lexsort((attempts, distance, images))
        _, first = np.unique(images[order], return_index=True)
        chosen = order[first]
        return self.verdicts.cells(np.full(len(chosen), number), images[chosen], attempts[chosen])

    def _hints_to_contenders(self, undecided: Sequence[Standing]) -> np.ndarray:
        """Return hints to each set's contenders, no more than can be needed to overtake them."""
        robust = self.verdicts.robust
        taking_part = np.zeros(len(robust), bool)
        taking_part[np.concatenate([one.contenders[0] for one in undecided])] = True
        cells = self._hints(taking_part)
        cells = cells[self.is_early.reshape(-1)[cells % self.is_early.size]]
        steerings, images, _ = np.unravel_index(cells, self.verdicts.place.shape)
        in_order = np.lexsort((self.by_margin[steerings, images], steerings))
        kept = np.zeros(len(cells), bool)
        for standing in undecided:
            contenders, floor = standing.contenders
            lead = robust[:, standing.where].sum(axis=1)
            most = np.zeros(len(robust), int)
            most[contenders] = lead[contenders] - lead[floor] + 1
            inside = in_order[np.isin(images[in_order], standing.where)]
            before = np.arange(len(inside)) - np.searchsorted(steerings[inside], steerings[inside])
            kept[inside[before < most[steerings[inside]]]] = True
        found: np.ndarray = cells[kept]
        return found

    def _to_the_leader(self, undecided: Standing) -> np.ndarray:
        """Return the next attacks on the leader of a set.

        Images that are lost at another steering come first: if a leader is to be overtaken, it most likely loses one of
        them.
        """
        number, where = undecided.leader, undecided.where
        lost = (~self.verdicts.alive[np.ix_(self.line, where)]).any(axis=0)
        lost_elsewhere = where[lost & self.verdicts.robust[number, where]]  # the replay's own losses change no bound
        steerings, images, attempts = self._next_stage(np.array([number]), lost_elsewhere)
        if not len(images):
            steerings, images, attempts = self._next_stage(np.array([number]), where)
        place = self.verdicts.place[steerings, images, attempts]
        order = np.lexsort((self.by_margin[steerings, images], place))[:CHUNK]
        return self.verdicts.cells(steerings[order], images[order], attempts[order])

    def _to_landmarks(self) -> np.ndarray:
        """Return the first stage on every undecided image of the landmarks."""
        landmarks = self._spaced(LANDMARKS)
        rows, images, attempts = np.nonzero(self.verdicts.open(landmarks) & (self.verdicts.stage == 0))
        return self.verdicts.cells(landmarks[rows], images, attempts)

    def _spaced(self, most: int) -> np.ndarray:
        """Return the numbers of at most so many steerings, evenly spaced in the line, its ends among them."""
        places = np.linspace(0, len(self.line) - 1, min(most, len(self.line))).round().astype(int)
        found: np.ndarray = self.line[places]
        return found

    def _hints(self, receiving: np.ndarray) -> np.ndarray:
        """Return hints to some steerings.

        Args:
            receiving: whether each steering is to have hints, bool [S].
        """
        steerings, n, width = self.verdicts.place.shape
        columns = np.flatnonzero(self.verdicts.fooled[self.line].any(axis=0))
        if not len(columns):
            return np.empty(0, int)
        pick = np.ix_(self.line, columns)
        place, untried, fooled = (
            table.reshape(steerings, n * width)[pick]
            for table in (self.verdicts.place, self.verdicts.untried, self.verdicts.fooled)
        )
        image = columns // width
        candidates = untried & self.verdicts.robust[np.ix_(self.line, image)] & receiving[self.line][:, None]
        found = hints(candidates, (place != ABSENT) & ~untried, fooled, image)
        cells: np.ndarray = self.line[found.row] * (n * width) + columns[found.column]
        return cells
