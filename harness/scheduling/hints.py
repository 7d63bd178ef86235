"""Hints: attempts that are likely to fool an image, since they fooled the same image at steerings nearby. Pure.

The steerings stand in a line in which neighbours are alike, and the images that one attempt fools form stretches of it.
So an attempt is a hint at a steering if, of the steerings where its outcome is known, the next one on either side was
fooled. Between two that were fooled, all are tried. Beyond the end of a stretch, steerings at growing distances (the
1st, 2nd, 4th, 8th, …) are tried first: a surviving image costs the attempt's whole budget, and the end of a stretch is
found for the price of a few.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Hints(NamedTuple):
    """Attempts to make, at most one for each image under each steering; [k] each.

    Args:
        row: place of the steering in the line.
        column: number of the pair of image and attempt.
        distance: number of places to the nearest steering that was fooled.
    """

    row: np.ndarray
    column: np.ndarray
    distance: np.ndarray


def hints(candidates: np.ndarray, known: np.ndarray, fooled: np.ndarray, image: np.ndarray) -> Hints:
    """Return the hints to try next.

    Args:
        candidates: whether an attempt can be made, bool [S, k], the steerings in line.
        known: whether its outcome is known, bool [S, k].
        fooled: whether it has fooled the network, bool [S, k].
        image: number of the image of each column, ascending, int [k].
    """
    before, after = _fooled_before(known, fooled), _fooled_before(known[::-1], fooled[::-1])[::-1]
    nearest = np.minimum(before, after)
    rows, columns = np.nonzero(candidates & (nearest < len(known)))
    distances = nearest[rows, columns]
    order = np.lexsort((columns, distances, image[columns], rows))
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(rows[order]) != 0) | (np.diff(image[columns[order]]) != 0)
    chosen = order[first]  # one attempt for each image under each steering: that of the nearest steering
    rows, columns, distances = rows[chosen], columns[chosen], distances[chosen]
    ahead = before[rows, columns] <= after[rows, columns]
    between = np.maximum(before, after)[rows, columns] < len(known)
    stretch = np.where(ahead, rows - distances, rows + distances) * 2 + ahead
    kept = between | _at_growing_distances(distances, stretch, columns)
    return Hints(rows[kept], columns[kept], distances[kept])


def _fooled_before(known: np.ndarray, fooled: np.ndarray) -> np.ndarray:
    """Return the distance to the last known outcome before each steering if it is fooled, otherwise S; int [S, k]."""
    size = len(known)
    place = np.arange(size, dtype=np.int32)[:, None]
    last = np.maximum.accumulate(np.where(known, 2 * place + fooled, -2), axis=0)
    return np.where(last % 2 == 1, place - last // 2, size)


def _at_growing_distances(distances: np.ndarray, stretch: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return whether each hint is the 1st, 2nd, 4th, 8th, … beyond its end of a stretch, bool [k]."""
    order = np.lexsort((distances, stretch, columns))
    starts = np.ones(len(order), bool)
    starts[1:] = (np.diff(columns[order]) != 0) | (np.diff(stretch[order]) != 0)
    index = np.arange(len(order))
    number = index - np.maximum.accumulate(np.where(starts, index, 0)) + 1
    kept = np.zeros(len(order), bool)
    kept[order] = (number & (number - 1)) == 0
    return kept
