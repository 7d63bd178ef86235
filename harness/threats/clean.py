"""No perturbation: the images as they are, for benchmarks of generalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api.threat import Threat

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.api.records import Batch


class Clean(Threat):
    """The clean stage alone: a row's ``robust`` equals its ``clean``."""

    kind = "clean"

    @property
    def stages(self) -> tuple[str, ...]:
        """No stage besides the clean one."""
        return ()

    def perturb(self, stage: str, network: nn.Module, batch: Batch, seed: int) -> Tensor:
        """Unreachable, as there are no stages."""
        raise AssertionError(stage)
