"""Tasks, and cells of them: with threats of as many stages as wanted, or of a benchmark."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from harness.api.records import Batch
from harness.api.threat import Threat
from harness.api.work import Cell, Task
from harness.config.benchmark import parse_benchmark
from harness.scheduling.trials import chains, grid, shards

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

    def perturb(self, stage: str, network: nn.Module, batch: Batch, seed: int) -> Tensor:
        raise NotImplementedError


class Mean(Stages):
    """The same, averaged over its stages."""

    kind: ClassVar[str] = "mean"
    reduction: ClassVar[Literal["worst", "mean"]] = "mean"


def task(threat: Threat) -> Task:
    """Return a task that nobody runs."""
    return Task("m", BENCHMARK.models[0], BENCHMARK.dataset, threat, 0, "cpu", "ab")


def first_cells(benchmark: dict[str, Any], device: str = "cpu") -> list[Cell]:
    """Return the first cell of each chain of a benchmark's one model on 24 images, 8 a shard, at β = 1 and 0.5."""
    from harness.engine.session import model_session

    parsed = parse_benchmark({"name": "tiny"} | benchmark)
    (model,) = parsed.models
    weights = model_session(model, "cpu", True).loaded.sha256
    made = Task(model.label, model, parsed.dataset, parsed.threat, 0, device, weights)
    cut = shards(dict.fromkeys(range(24), "d"), 8)
    every = [chain.next([]) for chain in chains(made, grid([0.5], [0.5], "all"), cut)]
    return [cell for cell in every if cell]
