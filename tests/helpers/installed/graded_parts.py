"""A third party's dataset whose labels are of any type, and a threat of two degrees."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from harness.api.dataset import Dataset, Source
from harness.api.records import Batch, Target
from harness.api.threat import Threat
from harness.util.noise import Noise

if TYPE_CHECKING:
    from harness.util.noise import Noise


class Graded(Dataset, Source):
    """Images and labels of an ``.npz``, the labels of the type that is asked for."""

    kind: ClassVar[str] = "graded"
    path: str
    labels_are: Target

    @property
    def target(self) -> Target:
        return self.labels_are

    def open(self, *, offline: bool = False) -> Source:
        return self

    def __len__(self) -> int:
        return len(np.load(self.path)["x"])

    def read(self, indices: tuple[int, ...]) -> Batch:
        with np.load(self.path) as kept:
            x, y = kept["x"][list(indices)], kept["y"][list(indices)]
        return Batch(torch.from_numpy(x), torch.from_numpy(y), torch.tensor(indices))


class Shade(Threat):
    """Every pixel a quarter darker, then half as dark."""

    kind: ClassVar[str] = "shade"
    reduction: ClassVar[Literal["worst", "mean"]] = "mean"
    stages: ClassVar[tuple[str, ...]] = ("shade-1", "shade-2")

    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        return batch.x * (1 - int(stage[-1]) / 4)
