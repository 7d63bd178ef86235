"""A third party's parts, one of each kind, that say no more than they must."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from harness.api.dataset import Dataset, Source
from harness.api.executor import Deliver, Executor
from harness.api.model import Model, Scorable
from harness.api.records import Batch
from harness.api.threat import Threat
from harness.api.work import Portion
from harness.util.noise import Noise

if TYPE_CHECKING:
    from harness.util.noise import Noise


class Training(Model):
    """A network left in training mode."""

    kind: ClassVar[str] = "training"
    label: ClassVar[str] = "left training"

    def load(self, *, offline: bool = False) -> Scorable:
        from harness.models.loaded import Loaded
        from harness.util.hashing import sha256_of_weights

        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU())
        return Loaded(network, sha256_of_weights(network))


class Normalised(Dataset, Source):
    """Images that were normalised already."""

    kind: ClassVar[str] = "normalised"

    def open(self, *, offline: bool = False) -> Source:
        return self

    def __len__(self) -> int:
        return 8

    def read(self, indices: tuple[int, ...]) -> Batch:
        chosen = torch.tensor(indices)
        return Batch(torch.randn(len(chosen), 1, 8, 8, generator=torch.Generator().manual_seed(0)), chosen % 4, chosen)


class Dim(Threat):
    """Every pixel a tenth darker, then two tenths: a threat without an eps."""

    kind: ClassVar[str] = "dim"
    stages: ClassVar[tuple[str, ...]] = ("dim-1", "dim-2")

    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        return (batch.x - int(stage[-1]) / 10).clamp(0, 1)


class Inline(Executor):
    """In this process, at once."""

    kind: ClassVar[str] = "inline"
    in_process = True

    def capacity(self, device: str) -> int:
        return 1

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def submit(self, portion: Portion, deliver: Deliver) -> Future[None]:
        from harness.engine.evaluate import evaluate

        future: Future[None] = Future()
        try:
            for reports in evaluate(portion):
                deliver(reports)
            future.set_result(None)
        except Exception as error:
            future.set_exception(error)
        return future
