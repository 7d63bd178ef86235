"""A model in this process: loaded once, on its device, with the networks made of it so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from harness.api.model import Model, Scorable
from harness.api.records import Batch, Compile, Precision, Steering
from harness.api.work import Cell
from harness.curvature.steering import Steered
from harness.engine.acceleration import (
    AtBeta,
    ParametricNetwork,
    checked,
    compiled,
    half_precision,
    to_channels_last,
    wants_compiling,
)
from harness.errors import HarnessError, ModelError


@dataclass
class ModelSession:
    """A model in this process, on its device, with the steered networks made so far (they share its weights)."""

    loaded: Scorable
    normalise: Callable[[Tensor], Tensor] | None = None
    steered_so_far: dict[Steering, nn.Module] = field(default_factory=dict)
    attacked_so_far: dict[tuple[Steering, Compile, Precision], nn.Module] = field(default_factory=dict)
    parametric: ParametricNetwork | None = None
    is_channels_last: bool = False

    def steered(self, steering: Steering, example: Tensor) -> nn.Module:
        """The network to score under ``steering``, made once."""
        if steering not in self.steered_so_far:
            self.steered_so_far[steering] = self.loaded.steered(steering, example).eval()
        return self.steered_so_far[steering]

    def enter(self, batch: Batch) -> Batch:
        """The images as the network here takes them."""
        return batch if self.normalise is None else replace(batch, x=self.normalise(batch.x))

    def to_channels_last(self, example: Tensor) -> None:
        """See `harness.engine.acceleration.to_channels_last`; once, before anything is steered."""
        if not self.is_channels_last:
            to_channels_last(self.loaded.body, example)
            self.is_channels_last = True

    def attacked(self, cell: Cell, example: Tensor) -> nn.Module:
        """The same network as attacks run it, made once; see `harness.engine.acceleration`.

        Raises:
            ModelError: it must be compiled, and cannot be; or a CPU is asked for TF32.
        """
        task = cell.task
        if task.precision == "tf32" and not example.is_cuda:
            raise ModelError("precision: tf32 is for a GPU, and this is a CPU; set precision=float32 or bfloat16")
        key = cell.steering, task.compile, task.precision
        if key not in self.attacked_so_far:
            network = self.steered(cell.steering, example)
            if wants_compiling(task.compile, task.device):
                must = task.compile == "always"
                network = self.loaded.compiled(network, lambda part: self._compiled(part, example, must))
            self.attacked_so_far[key] = half_precision(network, task.precision)
        return self.attacked_so_far[key]

    def _compiled(self, network: nn.Module, example: Tensor, must: bool) -> nn.Module:
        fast = compiled(network)
        if isinstance(network, Steered) and (curve_parameters := network.curve_parameters()) is not None:
            self.parametric = self.parametric or ParametricNetwork(network)
            fast = AtBeta(self.parametric, torch.tensor(curve_parameters, device=example.device))
        try:
            return checked(fast, network, example)
        except ModelError:
            if must:
                raise
            return network


@lru_cache(maxsize=2)
def model_session(model: Model, device: str, offline: bool, normalised: bool = False) -> ModelSession:
    """Load ``model`` once a process; with ``normalised`` the network that takes normalised images.

    Raises:
        ModelError: it cannot be loaded, or is not in eval mode.
    """
    try:
        loaded = model.load(offline=offline)
    except HarnessError:
        raise
    except Exception as error:  # whatever a builder or a library raises: it is this model's failure
        raise ModelError(f"cannot be loaded: {type(error).__name__}: {error}") from error
    training = [name or "the network" for name, module in loaded.body.named_modules() if module.training]
    if training:
        raise ModelError(f"it is in training mode ({training[0]}); call network.eval() where it is built")
    loaded.body.requires_grad_(False).to(device)
    return ModelSession(*loaded.normalised_space()) if normalised else ModelSession(loaded)
