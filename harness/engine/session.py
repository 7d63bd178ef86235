"""A model loaded in this process, on its device, with the networks made from it so far."""

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
    """A loaded model with the networks made from it so far, which share its weights.

    Args:
        loaded: the model, on its device.
        normalise: maps images to the network's input space under ``protocol: paper``; None if that is [0, 1].
        steered_networks: networks to score, by steering.
        attacked_networks: the same networks as attacks run them.
        parametric: one compiled network for all β and c, once there is one.
        is_channels_last: whether the weights have been converted.
    """

    loaded: Scorable
    normalise: Callable[[Tensor], Tensor] | None = None
    steered_networks: dict[Steering, nn.Module] = field(default_factory=dict)
    attacked_networks: dict[tuple[Steering, Compile, Precision], nn.Module] = field(default_factory=dict)
    parametric: ParametricNetwork | None = None
    is_channels_last: bool = False

    def to_input_space(self, batch: Batch) -> Batch:
        """Return the batch as the network takes it: normalised under ``protocol: paper``, otherwise as it is."""
        return batch if self.normalise is None else replace(batch, x=self.normalise(batch.x))

    def to_channels_last(self, example: Tensor) -> None:
        """Convert the weights once, before anything is steered; see `harness.engine.acceleration.to_channels_last`."""
        if not self.is_channels_last:
            to_channels_last(self.loaded.body, example)
            self.is_channels_last = True

    def steered(self, steering: Steering, example: Tensor) -> nn.Module:
        """Return the network to score under ``steering``, making it at the first call.

        Args:
            steering: one point of the grid, or another method.
            example: images that the network takes, [n, c, h, w].
        """
        if steering not in self.steered_networks:
            self.steered_networks[steering] = self.loaded.steered(steering, example).eval()
        return self.steered_networks[steering]

    def attacked(self, cell: Cell, example: Tensor) -> nn.Module:
        """Return the network of ``cell`` as attacks run it, making it at the first call.

        Args:
            cell: says under which steering, and whether compiled and in which precision.
            example: images that the network takes, [n, c, h, w].

        Raises:
            ModelError: it must be compiled and cannot be, or TF32 is asked of a CPU.
        """
        task = cell.task
        if task.precision == "tf32" and not example.is_cuda:
            raise ModelError("precision: tf32 is for a GPU, and this is a CPU; set precision=float32 or bfloat16")
        key = cell.steering, task.compile, task.precision
        if key not in self.attacked_networks:
            network = self.steered(cell.steering, example)
            if wants_compiling(task.compile, task.device):
                must = task.compile == "always"
                network = self.loaded.compiled(network, lambda part: self._compiled(part, example, must))
            self.attacked_networks[key] = half_precision(network, task.precision)
        return self.attacked_networks[key]

    def _compiled(self, network: nn.Module, example: Tensor, must: bool) -> nn.Module:
        """Return ``network`` compiled; as it is where it cannot be compiled and need not (``must``)."""
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
    """Load ``model``, once in a process.

    Args:
        model: the model as the benchmark describes it.
        device: device to run it on, such as "cpu" or "cuda:1".
        offline: whether to refuse every download.
        normalised: whether to split off the normalisation, for ``protocol: paper``.

    Raises:
        ModelError: it cannot be loaded, is not in eval mode, or its normalisation is asked for and not known.
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
