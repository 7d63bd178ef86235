"""Square's draws: place, size and signs of its windows (Andriushchenko et al. 2020, arXiv 1912.00049).

All of it belongs to the trial, see `harness.util.noise`. A trial's draws are numbered, and draw number d consists of
`Draws.words` words of 32 bits, those of `noise.words` for the counter d:

    draws 0 … s − 1   the start, s as few draws as have enough bits; L∞: the signs of the first channel's columns, then
                      of the second's …; L2, L1: of each tile, row by row, what is below a query's bits
    draw s − 1 + q    query q ≥ 1: word 0, the window's place; word 1, the second window's (L2, L1); then bits:
                      whether the window is turned (L2, L1), and the signs of the channels

Bits are taken from a word's least significant to its most significant one. A bit that is 1 is the sign +, or a turn.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import torch
from torch import Tensor

from harness.util import noise

SHARE = 0.8
"""Share p of an image that the first window covers, as in AutoAttack."""
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Iterations, counted from 0, after which a window covers half as much (Section 3.1; and 500, as in the library)."""
PLACES = 2
"""Number of words of a draw before its bits."""
BITS = 32


class Draws:
    """The draws of trials.

    Args:
        bits_of_start: how many bits the start of a trial needs.
        bits_of_query: how many a query needs, besides its places.
    """

    def __init__(self, bits_of_start: int, bits_of_query: int) -> None:
        self.words = 4 * math.ceil((PLACES + bits_of_query / BITS) / 4)
        self.start = math.ceil(bits_of_start / (self.words * BITS))
        self._bits_of_start = bits_of_start

    def begin(self, keys: Tensor, queries: int) -> tuple[Tensor, Tensor]:
        """Return what new trials draw, up to query number ``queries`` − 1.

        Args:
            keys: int64 [k].
            queries: how many; the first of them, query 0, shows the start, and its words mean nothing.

        Returns:
            The bits of the start, bool [k, bits], and the words of the queries, int64 [queries, k, words].
        """
        drawn = self._words(keys, torch.zeros_like(keys), self.start - 1 + queries)
        bits = coins(drawn[: self.start].transpose(0, 1).flatten(1), self._bits_of_start)
        return bits, drawn[self.start - 1 :]

    def go_on(self, keys: Tensor, first: Tensor, queries: int) -> Tensor:
        """Return the words of each trial's ``queries`` queries from ``first`` ≥ 0 on, int64 [queries, k, words].

        Args:
            keys: int64 [k].
            first: int64 [k].
            queries: how many.
        """
        return self._words(keys, first + (self.start - 1), queries)

    def _words(self, keys: Tensor, first: Tensor, count: int) -> Tensor:
        number = first + torch.arange(count, device=keys.device)[:, None]
        return noise.words(keys.repeat(count), number.flatten(), self.words).view(count, len(keys), self.words)


def coins(words: Tensor, count: int) -> Tensor:
    """Return the first bits of words, int64 [..., n] to bool [..., count].

    Args:
        words: int64 in [0, 2³²).
        count: at most 32 n.
    """
    bit = torch.arange(count, device=words.device)
    return ((words[..., bit // BITS] >> bit % BITS) & 1).bool()


def sizes(queries: int, height: int, width: int, *, smallest: int, odd: bool) -> list[int]:
    """Return the side of the window of queries 0, which has none, to ``queries``, in pixels (Section 3.1).

    The schedule is that of 10,000 queries whatever the budget is, as AutoAttack has it.

    Args:
        queries: the budget.
        height: of an image.
        width: of an image.
        smallest: the smallest side, of images that are not smaller themselves.
        odd: whether an even side becomes odd by a pixel more.
    """
    result = [0]
    for query in range(queries):
        share = SHARE / 2 ** bisect_left(HALVED_AFTER, query)
        side = max(round(math.sqrt(share * height * width)), smallest)
        result.append(min(side + (odd and side % 2 == 0), height, width))
    return result


def corner(word: Tensor, size: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the top and the left of windows, int64 of the shape of ``word``.

    As in the library, a window smaller than the image never touches its lower and its right edge; of the other places,
    each is as likely as another.

    Args:
        word: one for each window.
        size: their sides, of the same shape.
        height: of an image.
        width: of an image.
    """
    rows, columns = (height - size).clamp(min=1), (width - size).clamp(min=1)
    place = (word * (rows * columns)) >> BITS
    top = place // columns
    return top, place - top * columns


def within(first: Tensor, size: Tensor, extent: int) -> Tensor:
    """Return a mask of the lines of pixels that a window covers, bool [..., extent].

    Args:
        first: the window's first line, int64 [...].
        size: how many lines it has, [...].
        extent: how many the image has.
    """
    line = torch.arange(extent, device=first.device)
    return (line >= first[..., None]) & (line < (first + size)[..., None])
