"""Tasks with threats of as many stages as wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor, nn

from harness.api.records import Batch
from harness.api.threat import Threat
from harness.api.work import Task
from harness.config.benchmark import parse_benchmark
from harness.util.noise import Noise

if TYPE_CHECKING:
    from harness.util.noise import Noise

BENCHMARK = parse_benchmark(
    {
        "name": "x",
        "models": [{"kind": "demo", "name": "digits_plain"}],
        "dataset": {"kind": "digits"},
        "threat": {"kind": "Linf", "eps": 0.1},
        "steering": {"beta": 0.9},
    }
)


class Stages(Threat):
    """A threat of as many stages as asked for, which nobody runs."""

    kind: ClassVar[str] = "stages"
    how_many: int

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(f"stage-{i}" for i in range(self.how_many))

    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        raise NotImplementedError


class Mean(Stages):
    """The same, averaged over its stages."""

    kind: ClassVar[str] = "mean"
    reduction: ClassVar[Literal["worst", "mean"]] = "mean"


def task(threat: Threat) -> Task:
    """Return a task that nobody runs."""
    return Task("m", BENCHMARK.models[0], BENCHMARK.dataset, threat, 0, "cpu", "ab")
