"""Grades so far: the score of each image after each stage of a threat that is averaged over its stages. Pure."""

from __future__ import annotations

import numpy as np


class Grades:
    """Table of the scores under one threat with reduction "mean".

    Args:
        steerings: number of steerings.
        stages: number of the threat's stages.
        n: number of images.
        most: highest score that an image can have; it stands for every stage that is missing.
    """

    def __init__(self, steerings: int, stages: int, n: int, most: float) -> None:
        self.most = most
        self.values = np.full((steerings, stages, n), np.nan, np.float32)
        self.done = np.zeros(steerings, int)
        """Number of stages that are known of each steering."""
        self.bounds = np.full((steerings, n), most, np.float32)
        """Upper bounds on the mean over the stages, exact where all are known."""

    def tell(self, steering: int, values: np.ndarray) -> None:
        """Take note of a steering's next stage, float [n]."""
        self.values[steering, self.done[steering]] = values
        self.done[steering] += 1
        known = np.nan_to_num(self.values[steering], nan=self.most)
        self.bounds[steering] = known.mean(axis=0, dtype=np.float32)

    @property
    def finished(self) -> np.ndarray:
        """Table of the steerings with every stage known, bool [S]."""
        finished: np.ndarray = self.done == self.values.shape[1]
        return finished
