"""The shapes that Square gives to windows in L2 and L1 (Andriushchenko et al. 2020, arXiv 1912.00049, Section 3.3).

A window is cut in two, an upper and a lower half, or a left and a right one: a pyramid rises in the one and another
one falls in the other. Their length is 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import torch
from torch import Tensor

DECAY = {2: 2, 1: 4}
"""The power of the distance with which the steps of a pyramid get lower, for L2 and for L1 (in the library)."""


def pyramid(order: int, height: int, width: int) -> Tensor:
    """Return η, float64 [height, width]: at a distance of r pixels from the centre, Σ_{k ≥ r} (k + 1)^−decay.

    Args:
        order: 2 for L2, 1 for L1.
        height: at least 0.
        width: at least 1.
    """
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    steps = torch.arange(max(height, width) // 2, -1, -1) + 1.0
    heights = (steps.double() ** -DECAY[order]).cumsum(0).flip(0)
    return heights[torch.maximum(rows[:, None], columns[None, :])]


def pair(order: int, side: int) -> Tensor:
    """Return a window that is cut into an upper and a lower half, float64 [side, side], of length 1.

    Args:
        order: of the norm in which both halves and the whole have the length 1.
        side: in pixels; the lower half is larger by one row where it is odd.
    """
    upper, lower = pyramid(order, side // 2, side), pyramid(order, side - side // 2, side)
    whole = torch.cat([_scaled(upper, order), -_scaled(lower, order)])
    return _scaled(whole, order)


def _scaled(values: Tensor, order: int) -> Tensor:
    scaled: Tensor = values / torch.linalg.vector_norm(values, order) if values.numel() else values
    return scaled


class Tiles:
    """The start: tiles of a fifth of the image's height, as many as there is room for, each with a pair of pyramids.

    Where the library fails, they are cut off at the edge, or are of one pixel.

    Args:
        order: 2 for L2, 1 for L1.
        height: of an image.
        width: of an image.
        device: of all tensors.
    """

    def __init__(self, order: int, height: int, width: int, device: torch.device | str) -> None:
        side = max(height // 5, 1)
        margin = max((height - 5 * side) // 2, 0)
        down, across = height // side, width // side
        self.count = down * across
        shape = pair(order, side)
        pictures = torch.zeros(2, height + side, width + side)
        tile_of = torch.zeros(height + side, width + side, dtype=torch.int64)
        for tile, (row, column) in enumerate(product(range(down), range(across))):
            place = slice(top := margin + row * side, top + side), slice(left := margin + column * side, left + side)
            tile_of[place], pictures[0][place], pictures[1][place] = tile, shape, shape.T
        self._straight, self._turned = pictures[:, :height, :width].flatten(1).to(device)
        self._tile_of = tile_of[:height, :width].flatten().to(device)

    def filled(self, turned: Tensor, signs: Tensor) -> Tensor:
        """Return moves, [k, c, height · width]; pixels that belong to no tile do not move.

        Args:
            turned: whether a tile is cut into a left and a right half, bool [k, count].
            signs: of the channels, −1 or 1, [k, count, c].
        """
        shape = torch.where(turned[:, self._tile_of], self._turned, self._straight)
        return signs[:, self._tile_of].transpose(1, 2) * shape[:, None]


class Atlas:
    """Windows of all sizes, each on a sheet so large that an image can be cut out of it with the window at any place.

    Args:
        order: 2 for L2, 1 for L1.
        sizes: the sides of windows; that of 0 is empty.
        height: of an image.
        width: of an image.
        device: of all tensors.
    """

    def __init__(self, order: int, sizes: Iterable[int], height: int, width: int, device: torch.device | str) -> None:
        chosen = sorted(set(sizes))
        self._height, self._width = height, width
        self._stride = 2 * width - 1
        sheets = torch.zeros(len(chosen), 2, 2 * height - 1, self._stride)
        numbers = torch.zeros(max(chosen) + 1, dtype=torch.int64)
        for number, side in enumerate(chosen):
            numbers[side] = number
            straight = pair(order, side)
            for turned, shape in enumerate((straight, straight.T)):
                sheets[number, turned, height - 1 : height - 1 + side, width - 1 : width - 1 + side] = shape
        self._sheets, self._numbers = sheets.flatten().to(device), numbers.to(device)
        down, across = torch.arange(height) * self._stride, torch.arange(width)
        self._pixels = (down[:, None] + across).flatten().to(device)

    def addresses(self, size: Tensor, turned: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Return where the images begin in which windows stand at their places, int64 of the common shape.

        Args:
            size: the windows' sides, int64.
            turned: whether they are cut into a left and a right half, bool.
            top: their first rows, int64.
            left: their first columns, int64.
        """
        sheet = 2 * self._numbers[size] + turned
        row = sheet * (2 * self._height - 1) + self._height - 1 - top
        return row * self._stride + self._width - 1 - left

    def open(self, addresses: Tensor) -> Tensor:
        """Return the images, [w, 1, height · width], at addresses [w, 1]."""
        pixels = addresses + self._pixels
        return self._sheets.index_select(0, pixels.flatten()).view(len(addresses), 1, -1)
