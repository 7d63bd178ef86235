"""Square (Andriushchenko et al. 2020, arXiv 1912.00049, Algorithm 1) as a step machine: random search, no gradients.

It changes a square window of the best image so far, and keeps the change where the margin of the label shrinks. The
windows shrink as queries pass. Trajectories are those of ``pyautoattack.square`` up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from harness.api.attack import Attack, Network, Trials
from harness.attacks.norms import Norm
from harness.attacks.square_moves import AHEAD, L1, L2, Linf, Moves, Pyramids, read, write

MOVES: dict[Norm, Callable[..., Moves]] = {"Linf": Linf, "L2": partial(Pyramids, L2), "L1": partial(Pyramids, L1)}


class Square(Attack):
    """Square with the margin loss, as AutoAttack has it.

    The first step looks at the stripes that a trial starts from, each later one at a proposal.

    Args:
        slots: w, how many trials advance at once.
        shape: of an image: c, h, w.
        norm: of the ball.
        eps: its radius, in pixels.
        queries: the budget, at least 1; a trial that survives takes one step more, for its start.
        device: of all tensors.
    """

    capturable = True

    def __init__(
        self,
        slots: int,
        shape: tuple[int, ...],
        *,
        norm: Norm,
        eps: float,
        queries: int = 5000,
        device: torch.device | str = "cpu",
    ) -> None:
        self.forwards, self.backwards = 1, 0
        self._moves: Moves = MOVES[norm](slots, shape, eps, queries, device)
        self._queries = queries
        self._every = torch.arange(slots, device=device)
        self._passed = 0  # columns of the plan
        self._column = torch.zeros((), dtype=torch.int64, device=device)  # the same number, where a step reads it
        self._first, self._keys, self._y = torch.zeros(3, slots, dtype=torch.int64, device=device)
        self._margins = torch.full((slots,), -torch.inf, device=device)
        self._ends = torch.zeros(AHEAD, slots, device=device)
        self.found = torch.zeros(slots, *shape, device=device)
        self.fooled = torch.zeros(slots, dtype=torch.bool, device=device)
        self.finished = torch.ones(slots, dtype=torch.bool, device=device)

    @torch.no_grad()
    def start(self, slots: Tensor, trials: Trials) -> None:
        """See `Attack.start`."""
        if self._passed == AHEAD:
            self._turn_over()
        self._first[slots] = -self._passed
        self._keys[slots], self._y[slots] = trials.keys, trials.y
        self._margins.index_fill_(0, slots, torch.inf)
        self.fooled.index_fill_(0, slots, False)
        self.finished.index_fill_(0, slots, False)
        bits, words = self._moves.draws.begin(trials.keys, AHEAD - self._passed)
        self._moves.start(slots, trials.x, bits, self.found)
        self._plan(self._passed, slots, torch.zeros_like(slots), words)

    def prepare(self) -> None:
        """Plan ahead, once in `AHEAD` steps; see `Attack.prepare`."""
        if self._passed == AHEAD:
            self._turn_over()
        self._passed += 1

    @torch.no_grad()
    def step(self, network: Network) -> None:
        """See `Attack.step`."""
        seen = self._moves.propose(self._column, self.found)
        logits = network(seen)
        margins = margins_of(logits, self._y)
        better = margins < self._margins
        torch.where(better.view(-1, 1, 1, 1), seen, self.found, out=self.found)
        torch.where(better, logits.argmax(1) != self._y, self.fooled, out=self.fooled)
        torch.fmin(self._margins, margins, out=self._margins)
        torch.le(self._margins, read(self._ends, self._column), out=self.finished)
        self._margins.masked_fill_(self.finished, -torch.inf)  # then nothing is better
        self._column += 1

    @torch.no_grad()
    def _turn_over(self) -> None:
        """Plan the next queries of every slot."""
        self._passed = 0
        self._column.zero_()
        self._first += AHEAD
        self._plan(0, self._every, self._first, self._moves.draws.go_on(self._keys, self._first, AHEAD))

    def _plan(self, column: int, slots: Tensor, first: Tensor, words: Tensor) -> None:
        """Plan the queries of some slots, [k], from ``column`` on; the first one there is query ``first``, [k]."""
        queries = first + torch.arange(AHEAD - column, device=first.device)[:, None]
        self._moves.plan(column, slots, queries.clamp(max=self._queries), words)
        ends = torch.where(queries >= self._queries, torch.inf, 0.0)
        write(self._ends, column, slots, ends)


def margins_of(logits: Tensor, y: Tensor) -> Tensor:
    """Return the margin of the label: its logit less the largest other one, [w] (Section 3.1)."""
    label = y[:, None]
    others = logits.scatter(1, label, -torch.inf).amax(1)
    return logits.gather(1, label)[:, 0] - others
