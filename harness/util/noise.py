"""Noise that belongs to the trial: Philox-4x32-10, a counter-based generator, on tensors of keys.

Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3"). A draw is a pure function of a 64-bit key and
a counter, so a trial sees the same numbers whatever else is in the batch, in which order, on which device, and whatever
was drawn before. There is no state and no loop over images.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
"""A 32-bit word; torch has no unsigned arithmetic, so words are int64 in [0, 2³²)."""
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def key_of(*parts: object) -> int:
    """Return a 64-bit key, as a signed integer, from what a draw must depend on.

    Args:
        parts: the benchmark's seed, a hash of the image, the attempt's name …; strings and integers.
    """
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def words(keys: Tensor, counters: Tensor, count: int) -> Tensor:
    """Return ``count`` random words for each key.

    Args:
        keys: int64 [k], any 64 bits.
        counters: int64 [k] in [0, 2³²): the number of the draw, such as an attack's step.
        count: words for each key, at most 2³⁴.

    Returns:
        int64 [k, count], uniform in [0, 2³²).
    """
    blocks = -(-count // 4)
    block = torch.arange(blocks, device=keys.device)
    zero = torch.zeros_like(keys)
    state = (block[None, :].expand(len(keys), -1), counters[:, None].expand(-1, blocks), zero[:, None], zero[:, None])
    mixed = philox(state, (keys[:, None] & WORD, (keys[:, None] >> 32) & WORD))
    blank = torch.zeros_like(mixed[0] + mixed[2])
    return torch.stack([word + blank for word in mixed], dim=-1).flatten(1)[:, :count]


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Mix a counter of four words with a key of two: the bijection of the paper, ten rounds.

    Args:
        counter: four tensors of words that broadcast.
        key: two.

    Returns:
        Four tensors of words.
    """
    (a, b, c, d), (low, high) = counter, key
    for _ in range(ROUNDS):
        high_a, low_a = _product(a, MULTIPLIERS[0])
        high_c, low_c = _product(c, MULTIPLIERS[1])
        a, b, c, d = high_c ^ b ^ low, low_c, high_a ^ d ^ high, low_a
        low, high = (low + WEYL[0]) & WORD, (high + WEYL[1]) & WORD
    return a, b, c, d


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """Return the high and the low word of a product of two words; int64 wraps around, and its bits are right."""
    product = word * multiplier
    return (product >> 32) & WORD, product & WORD


def uniform(keys: Tensor, counters: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return float32 numbers in [0, 1), multiples of 2⁻²⁴, [k, *shape]; see `words`."""
    drawn = words(keys, counters, math.prod(shape))
    return ((drawn >> 8).float() * 2.0**-24).view(len(keys), *shape)


def signs(keys: Tensor, counters: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return float32 −1 or 1, equally likely, [k, *shape]; see `words`."""
    return ((words(keys, counters, math.prod(shape)) >> 31) * 2 - 1).float().view(len(keys), *shape)


def integers(keys: Tensor, counters: Tensor, shape: tuple[int, ...], below: Tensor | int) -> Tensor:
    """Return int64 numbers in [0, ``below``), [k, *shape]; see `words`.

    Args:
        keys: int64 [k].
        counters: int64 [k].
        shape: of the draws of one key.
        below: in [1, 2³¹), one for all or something that broadcasts to [k, *shape]; off uniform by less than
            ``below`` / 2³².
    """
    drawn = words(keys, counters, math.prod(shape)).view(len(keys), *shape)
    return (drawn * below) >> 32


def normal(keys: Tensor, counters: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return float32 standard normal numbers [k, *shape] (Box & Muller 1958); see `words`."""
    count = math.prod(shape)
    half = -(-count // 2)
    drawn = words(keys, counters, 2 * half)
    radius = torch.sqrt(-2 * torch.log(((drawn[:, :half] >> 8).double() + 1) * 2.0**-24))
    angle = (2 * math.pi * 2.0**-32) * drawn[:, half:].double()
    pairs = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return pairs[:, :count].float().view(len(keys), *shape)


class Noise:
    """Noise for an attack that is a plain function of a batch: each call draws fresh numbers, a row for each image.

    An image's numbers depend on its key and on how many draws included it before, not on the batch it is in. Such an
    attack is then as reproducible as the attacks that advance trial by trial.

        noise = Noise(seed, keys)
        start = (x + eps * (2 * noise.uniform(x.shape[1:]) - 1)).clamp(0, 1)
        flips = noise.part(survivors).signs(x.shape[1:])

    Args:
        seed: the benchmark's seed, for generators of the attack's own.
        keys: keys of the images, int64 [n]; see `key_of`.
    """

    def __init__(self, seed: int, keys: Tensor) -> None:
        self.seed = seed
        self._keys = keys
        self._rows = torch.arange(len(keys), device=keys.device)
        self._draws = torch.zeros_like(keys)  # of every image, shared with all parts

    def part(self, which: Tensor) -> Noise:
        """Return the noise of some of the images; no number is drawn both there and here.

        Args:
            which: numbers of the images, int64 [m], or a mask of them, bool [n].
        """
        part = Noise(self.seed, self._keys[which])
        part._rows, part._draws = self._rows[which], self._draws
        return part

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Return float32 numbers in [0, 1), multiples of 2⁻²⁴, [n, *shape]."""
        return uniform(self._keys, self._next(), shape)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Return float32 standard normal numbers, [n, *shape]."""
        return normal(self._keys, self._next(), shape)

    def signs(self, shape: tuple[int, ...]) -> Tensor:
        """Return float32 −1 or 1, equally likely, [n, *shape]."""
        return signs(self._keys, self._next(), shape)

    def integers(self, shape: tuple[int, ...], below: Tensor | int) -> Tensor:
        """Return int64 numbers in [0, ``below``), [n, *shape].

        Args:
            shape: shape of the draws of one image.
            below: in [1, 2³¹), one for all or a tensor that broadcasts to [n, *shape].
        """
        return integers(self._keys, self._next(), shape, below)

    def _next(self) -> Tensor:
        """Return the number of this draw for each image, int64 [n], and count it."""
        number = self._draws[self._rows]
        self._draws[self._rows] = number + 1
        return number
