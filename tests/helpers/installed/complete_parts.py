"""A third party's parts, one of each kind, that say all that a contract lets them say."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.api.dataset import Dataset, Source
from harness.api.executor import Deliver, Executor
from harness.api.model import Model, Scorable
from harness.api.records import Batch, Published
from harness.api.threat import Passes, Threat
from harness.api.work import Portion
from harness.errors import InvalidAdversary
from harness.util.noise import Noise

if TYPE_CHECKING:
    from harness.util.noise import Noise


class Quadrants(Model):
    """A network that names the brightest quadrant, normalisation inside; linear on images in [0, 1]."""

    kind: ClassVar[str] = "quadrants"
    published_clean: float = 1.0

    @property
    def label(self) -> str:
        """See `Model.label`."""
        return "quadrants"

    def published(self, dataset: str, threat: str) -> Published | None:
        """See `Model.published`."""
        return Published(self.published_clean, None, None, "a third party's paper")

    def load(self, *, offline: bool = False) -> Scorable:
        """See `Model.load`."""
        import tiny_networks

        from harness.models.loaded import Loaded
        from harness.models.normalisation import Denormalised, Normalised
        from harness.util.hashing import sha256_of_weights

        inner = nn.Sequential(Denormalised((0.5,), (0.25,)), tiny_networks.quadrants())
        network = Normalised(inner, (0.5,), (0.25,)).eval()
        return Loaded(network, sha256_of_weights(network))


GAPS = np.linspace(0.02, 0.4, 24)


class BrightQuadrants(Dataset, Source):
    """Images of 8×8 pixels, in which quadrant y is brighter by 0.02 … 0.4."""

    kind: ClassVar[str] = "bright_quadrants"

    def open(self, *, offline: bool = False) -> Source:
        """See `Dataset.open`."""
        return self

    def __len__(self) -> int:
        return 24

    def read(self, indices: tuple[int, ...]) -> Batch:
        """See `Source.read`."""
        y = torch.tensor(indices) % 4
        levels = torch.full((len(indices), 4), 0.3)
        levels[torch.arange(len(indices)), y] += torch.tensor(GAPS[list(indices)]).float()
        x = levels.view(-1, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
        return Batch(x, y, torch.tensor(indices))


class OneStep(Threat):
    """One step of the gradient's sign, of length ``eps`` in pixels."""

    kind: ClassVar[str] = "one_step"
    eps: float = 0.1

    @property
    def stages(self) -> tuple[str, ...]:
        """See `Threat.stages`."""
        return ("fgsm",)

    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        """See `Threat.perturb`."""
        with torch.enable_grad():
            x = batch.x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(network(x), batch.y), x)
        return (batch.x + self.eps * gradient.sign()).clamp(0, 1)

    def check(self, x: Tensor, perturbed: Tensor) -> None:
        """See `Threat.check`."""
        if (perturbed - x).abs().max() > self.eps + 1e-6:
            raise InvalidAdversary("a pixel moved by more than eps", "invalid")

    def passes(self, stage: str, classes: int) -> Passes:
        """See `Threat.passes`."""
        return Passes(gradients=1)

    def columns(self) -> dict[str, str]:
        """See `Threat.columns`."""
        return {"threat": self.kind, "eps": f"{self.eps:.6g}", "attack": "fgsm"}


class AtOnce(Executor):
    """In this process, at once."""

    kind: ClassVar[str] = "at_once"

    def capacity(self, device: str) -> int:
        """See `Executor.capacity`."""
        return 3

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def submit(self, portion: Portion, deliver: Deliver) -> Future[None]:
        """See `Executor.submit`."""
        from harness.engine.evaluate import evaluate

        future: Future[None] = Future()
        try:
            for reports in evaluate(portion):
                deliver(reports)
            future.set_result(None)
        except Exception as error:
            future.set_exception(error)
        return future
