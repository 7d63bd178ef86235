"""Square's proposals, which change the best image within a window (Andriushchenko et al. 2020, arXiv 1912.00049).

What the next queries of every slot will try is worked out for `AHEAD` of them at once: it depends on no answer of the
network, and the more there is of it, the less it costs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from harness.attacks.square_draws import PLACES, Draws, coins, corner, sizes, within

AHEAD = 64
"""For how many queries proposals are planned at once."""


class Moves(ABC):
    """Starts and proposals of trials, one a slot, all of them in their balls and in the box [0, 1]."""

    draws: Draws

    @abstractmethod
    def start(self, slots: Tensor, clean: Tensor, bits: Tensor, points: Tensor) -> None:
        """Put trials into slots, and their stripes in place.

        Args:
            slots: int64 [k].
            clean: images, [k, c, h, w].
            bits: of the stripes, bool [k, bits].
            points: [slots, c, h, w]; the starts go to its rows ``slots``.
        """

    @abstractmethod
    def plan(self, column: int, slots: Tensor, queries: Tensor, words: Tensor) -> None:
        """Work out the proposals of some slots.

        Args:
            column: of the first of them; they are planned from here to `AHEAD`.
            slots: int64 [k].
            queries: their numbers, int64 [AHEAD − column, k], at most the budget.
            words: what they draw, int64 [AHEAD − column, k, words].
        """

    @abstractmethod
    def propose(self, column: int, best: Tensor) -> Tensor:
        """Return the images to ask the network about, [slots, c, h, w].

        Query 0 proposes what is the best image already.

        Args:
            column: of the plan.
            best: the best images so far, which were proposed here; left as they are.
        """


class Linf(Moves):
    """L∞: a window is moved by 2 ε or −2 ε, so that every pixel is at a wall of the ball or of the box (Algorithm 2).

    Args:
        slots: how many.
        shape: of an image: c, h, w.
        eps: ε, in pixels.
        queries: the budget.
        device: of all tensors.
    """

    def __init__(
        self, slots: int, shape: tuple[int, ...], eps: float, queries: int, device: torch.device | str
    ) -> None:
        channels, height, width = shape
        self.draws = Draws(channels * width, channels)
        self._shape, self._eps = (channels, height, width), eps
        self._sizes = torch.tensor(sizes(queries, height, width, smallest=1, odd=False)).to(device)
        self._low, self._high = torch.zeros(2, slots, *shape, device=device)
        self._proposal = torch.zeros(slots, *shape, device=device)
        self._push = torch.zeros(AHEAD, slots, channels, height, 1, device=device)
        self._columns = torch.zeros(AHEAD, slots, 1, 1, width, device=device)

    def start(self, slots: Tensor, clean: Tensor, bits: Tensor, points: Tensor) -> None:
        """Draw a sign for each column of each channel; see `Moves.start`."""
        channels, _, width = self._shape
        self._low[slots] = (clean - self._eps).clamp_(0, 1)
        self._high[slots] = (clean + self._eps).clamp_(0, 1)
        stripes = bits.view(-1, channels, 1, width)
        points[slots] = torch.where(stripes, self._high[slots], self._low[slots])

    def plan(self, column: int, slots: Tensor, queries: Tensor, words: Tensor) -> None:
        """See `Moves.plan`."""
        channels, height, width = self._shape
        size = self._sizes[queries]
        top, left = corner(words[..., 0], size, height, width)
        signs = coins(words[..., PLACES:], channels) * 2.0 - 1
        push = (2 * self._eps * signs)[..., None] * within(top, size, height)[..., None, :]
        self._push[column:].index_copy_(1, slots, push[..., None])
        self._columns[column:].index_copy_(1, slots, within(left, size, width)[..., None, None, :].to(push))

    def propose(self, column: int, best: Tensor) -> Tensor:
        """See `Moves.propose`."""
        torch.addcmul(best, self._push[column], self._columns[column], out=self._proposal)
        torch.clamp(self._proposal, self._low, self._high, out=self._proposal)
        return self._proposal
