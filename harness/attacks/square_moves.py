"""Square's proposals, which change the best image within a window (Andriushchenko et al. 2020, arXiv 1912.00049).

The windows of the next `AHEAD` queries of every slot are computed at once: they depend on no answer of the network, and
in bulk they cost less.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from harness.attacks import l1_ball
from harness.attacks.square_draws import PLACES, Draws, coins, corner, sizes, within
from harness.attacks.square_pyramids import Atlas, Tiles

AHEAD = 64
"""Number of queries whose proposals are planned at once."""
TINY = 1e-12
"""Keeps a length from being 0 where it divides, as in the library."""


class Moves(ABC):
    """Starts and proposals of trials, one a slot, all of them in their balls and in the box [0, 1].

    Args of every implementation: slots, shape of an image, ε, the budget of queries, device; see `Square`.
    """

    draws: Draws

    @abstractmethod
    def start(self, slots: Tensor, clean: Tensor, bits: Tensor, points: Tensor) -> None:
        """Put trials into slots.

        Args:
            slots: int64 [k].
            clean: images, [k, c, h, w].
            bits: of the start, bool [k, bits].
            points: [slots, c, h, w]; its rows ``slots`` get the images that query 0 makes the starts of.
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
    def propose(self, column: Tensor, best: Tensor) -> Tensor:
        """Return the images to ask the network about, [slots, c, h, w].

        Query 0 proposes the start. The images are overwritten by the next ones.

        Args:
            column: of the plan, int64 [].
            best: the best images so far; left as they are.
        """


class Linf(Moves):
    """L∞: a window moves by 2 ε or −2 ε, so every pixel is at a wall of the ball or of the box (Algorithm 2)."""

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
        write(self._push, column, slots, push[..., None])
        write(self._columns, column, slots, within(left, size, width)[..., None, None, :])

    def propose(self, column: Tensor, best: Tensor) -> Tensor:
        """See `Moves.propose`."""
        torch.addcmul(best, read(self._push, column), read(self._columns, column), out=self._proposal)
        torch.clamp(self._proposal, self._low, self._high, out=self._proposal)
        return self._proposal


class Ball(NamedTuple):
    """Geometry of an L2 or L1 ball; moves are [w, c, d], lengths [w, …, 1].

    Args:
        order: of the norm.
        length: of moves, over their last dimension.
        filled: the length of a channel's moves in its window, from ε, the number of channels, the length of all moves
            of an image, and the one of the moves that are given up: what they leave and what the image had left.
        enter: the points of the ball and the box for clean images, moves and ε.
    """

    order: int
    length: Callable[[Tensor], Tensor]
    filled: Callable[[float, int, Tensor, Tensor], Tensor]
    enter: Callable[[Tensor, Tensor, float], Tensor]


def _length_l2(moves: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(moves, dim=-1, keepdim=True)
    return length


def _filled_l2(eps: float, channels: int, whole: Tensor, given_up: Tensor) -> Tensor:
    return ((eps**2 - whole.square()).clamp_(min=0) / channels + given_up.square()).sqrt_()


def _enter_l2(clean: Tensor, moves: Tensor, eps: float) -> Tensor:
    scale = eps / (_length_l2(moves.flatten(1)) + TINY)
    return torch.addcmul(clean, moves, scale[..., None], out=moves).clamp_(0, 1)


def _length_l1(moves: Tensor) -> Tensor:
    return moves.abs().sum(-1, keepdim=True)


def _filled_l1(eps: float, channels: int, whole: Tensor, given_up: Tensor) -> Tensor:
    return (eps - whole).clamp_(min=0).add(given_up, alpha=channels)


def _enter_l1(clean: Tensor, moves: Tensor, eps: float) -> Tensor:
    flat, images = moves.flatten(1), clean.flatten(1)
    radius = torch.full_like(flat[:, :1], eps * (1 - 1e-6))  # so that rounding does not leave the ball
    shrunk = l1_ball.shrunk(flat, images, radius)
    return flat.add_(images).add_(shrunk).view_as(clean)


L2 = Ball(2, _length_l2, _filled_l2, _enter_l2)
L1 = Ball(1, _length_l1, _filled_l1, _enter_l1)


class Pyramids(Moves):
    """L2 and L1: two windows give up their moves, and the first one gets them, and more, as a pair of pyramids.

    Algorithm 3 (Section 3.3).
    """

    def __init__(
        self, ball: Ball, slots: int, shape: tuple[int, ...], eps: float, queries: int, device: torch.device | str
    ) -> None:
        channels, height, width = shape
        self._ball, self._eps, self._shape = ball, eps, (channels, height, width)
        self._tiles = Tiles(ball.order, height, width, device)
        self.draws = Draws(self._tiles.count * (1 + channels), 1 + channels)
        self._sizes = torch.tensor(sides := sizes(queries, height, width, smallest=3, odd=True)).to(device)
        self._atlas = Atlas(ball.order, sides, height, width, device)
        self._clean = torch.zeros(slots, channels, height * width, device=device)
        self._rows = torch.zeros(AHEAD, 2, slots, 1, height, 1, device=device)
        self._columns = torch.zeros(AHEAD, 2, slots, 1, 1, width, device=device)
        self._addresses = torch.zeros(AHEAD, slots, 1, dtype=torch.int64, device=device)
        self._signs = torch.zeros(AHEAD, slots, channels, 1, device=device)

    def start(self, slots: Tensor, clean: Tensor, bits: Tensor, points: Tensor) -> None:
        """Fill each tile with a pair of pyramids; see `Moves.start`."""
        coin = bits.view(len(bits), self._tiles.count, -1)
        self._clean[slots] = clean.flatten(2)
        points[slots] = clean + self._tiles.filled(coin[..., 0], coin[..., 1:] * 2.0 - 1).view_as(clean)

    def plan(self, column: int, slots: Tensor, queries: Tensor, words: Tensor) -> None:
        """See `Moves.plan`."""
        channels, height, width = self._shape
        size = self._sizes[queries][..., None]
        drawn = coins(words[..., PLACES:], 1 + channels)
        turned, signs = drawn[..., :1], drawn[..., 1:]
        corners = [corner(words[..., window, None], size, height, width) for window in range(2)]
        for (top, left), rows, columns in zip(corners, self._rows.unbind(1), self._columns.unbind(1), strict=True):
            write(rows, column, slots, within(top, size, height)[..., None])
            write(columns, column, slots, within(left, size, width)[..., None, :])
        write(self._addresses, column, slots, self._atlas.addresses(size, turned, *corners[0]))
        write(self._signs, column, slots, signs[..., None] * 2.0 - 1)

    def propose(self, column: Tensor, best: Tensor) -> Tensor:
        """See `Moves.propose`."""
        length, channels = self._ball.length, self._shape[0]
        moves = best.flatten(2) - self._clean
        first, second = (read(self._rows, column) * read(self._columns, column)).flatten(3)
        kept = moves * first
        given_up = moves * torch.maximum(first, second, out=second)
        filled = self._ball.filled(self._eps, channels, length(moves.flatten(1))[..., None], length(given_up))
        kept /= length(kept) + TINY
        window = torch.addcmul(
            kept, self._atlas.open(read(self._addresses, column)), read(self._signs, column), out=kept
        )
        moves -= given_up
        moves.addcmul_(window, filled / (length(window) + TINY))
        return self._ball.enter(self._clean, moves, self._eps).view_as(best)


def write(table: Tensor, column: int, slots: Tensor, values: Tensor) -> None:
    """Write [AHEAD − column, k, …] into a table [AHEAD, slots, …] from ``column`` on."""
    table[column:].index_copy_(1, slots, values.to(table.dtype))


def read(table: Tensor, column: Tensor) -> Tensor:
    """Return a column, int64 [], of a table [AHEAD, …]; on a CPU, which knows the number, without a copy."""
    return table[column] if table.device.type == "cpu" else table.index_select(0, column)[0]
