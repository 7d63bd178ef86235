"""A model loaded in this process, on its device, with the networks made from it so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.api.model import Model, Scorable
from harness.api.records import Batch, Steering
from harness.api.work import Task
from harness.curvature.mixed import Mixed, mixes
from harness.curvature.steering import Steered
from harness.engine.acceleration import checked, compiled, half_precision, to_channels_last, wants_compiling
from harness.engine.fixed_width import LADDER, FixedWidth
from harness.engine.images import ImageCache
from harness.errors import HarnessError, ModelError


class Lane(NamedTuple):
    """A network, and which of the curves that it can compute.

    Args:
        network: network of several steerings at once, or of one.
        parameters: parameters of one steering's curve, [p]; None where the network is of this steering alone.
    """

    network: FixedWidth
    parameters: Tensor | None

    def rows(self, n: int) -> tuple[Tensor, ...]:
        """Return what the network takes besides ``n`` images."""
        return () if self.parameters is None else (self.parameters.expand(n, -1),)


class OneSteering(nn.Module):
    """A lane as a network from images to answers; it counts the images.

    Args:
        lane: the lane.
    """

    def __init__(self, lane: Lane) -> None:
        super().__init__()
        self.lane, self.forwards, self.backwards = lane, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the answers [n, k] for images [n, c, h, w]."""
        self.forwards += len(x)
        self.backwards += len(x) if x.requires_grad and torch.is_grad_enabled() else 0
        answers: Tensor = self.lane.network(x, *self.lane.rows(len(x)))
        return answers


class NoNetwork(nn.Module):
    """The network of a threat that calls none."""

    def forward(self, x: Tensor) -> Tensor:
        """Refuse.

        Raises:
            ModelError: always.
        """
        raise ModelError("the threat is concurrent, so it may not call a network; let Threat.concurrent be False")


class AtBeta(nn.Module):
    """A mixed network with one curve for all images.

    Args:
        network: the mixed network.
        parameters: parameters of the curve, [p].
    """

    def __init__(self, network: nn.Module, parameters: Tensor) -> None:
        super().__init__()
        self.network, self.parameters_of_curve = network, parameters

    def forward(self, x: Tensor) -> Any:
        """Return the network's output for images [n, c, h, w]."""
        return self.network(x, self.parameters_of_curve)


@dataclass
class ModelSession:
    """A loaded model with the networks made from it so far, which share its weights.

    Args:
        loaded: the model, on its device.
        normalise: maps images to the network's input space under ``protocol: paper``; None if that is [0, 1].
        images: images of each dataset that was read, by dataset and preprocessing.
    """

    loaded: Scorable
    normalise: Callable[[Tensor], Tensor] | None = None
    images: dict[object, ImageCache] = field(default_factory=dict)
    _steered: dict[Steering, nn.Module] = field(default_factory=dict)
    _mixed: dict[Steering, Mixed | None] = field(default_factory=dict)
    _fixed: dict[tuple[object, ...], FixedWidth] = field(default_factory=dict)
    _compiled_once: dict[Steering, nn.Module] = field(default_factory=dict)
    _is_channels_last: bool = False

    def to_input_space(self, batch: Batch) -> Batch:
        """Return the batch as the network takes it: normalised under ``protocol: paper``, otherwise as it is."""
        return batch if self.normalise is None else replace(batch, x=self.normalise(batch.x))

    def to_channels_last(self, example: Tensor) -> None:
        """Convert the weights once, before anything is steered; see `harness.engine.acceleration.to_channels_last`."""
        if not self._is_channels_last:
            to_channels_last(self.loaded.body, example)
            self._is_channels_last = True

    def judge(self, task: Task, steering: Steering, example: Tensor) -> Lane:
        """Return the network that judges under a steering: plain, in float32.

        Args:
            task: says how wide a batch may be.
            steering: a point of the grid, or another method.
            example: images that the network takes, [m, c, h, w].
        """
        return self._lane(task, steering, example, ("judge",), lambda network, *_: network)

    def attacked(self, task: Task, steering: Steering, example: Tensor) -> Lane:
        """Return the network that is attacked under a steering: the judge, or that compiled or in another precision.

        Raises:
            ModelError: it must be compiled and cannot be, or TF32 is asked of a CPU.
        """
        if task.precision == "tf32" and not example.is_cuda:
            raise ModelError("precision: tf32 is for a GPU, and this is a CPU; set precision=float32 or bfloat16")
        if not wants_compiling(task.compile, task.device) and task.precision == "float32":
            return self.judge(task, steering, example)

        def faster(network: nn.Module, *rows: Tensor) -> nn.Module:
            if wants_compiling(task.compile, task.device):
                network = self._compiled(network, (example, *rows), must=task.compile == "always")
            return half_precision(network, task.precision)

        return self._lane(task, steering, example, (task.compile, task.precision), faster)

    def _lane(
        self, task: Task, steering: Steering, example: Tensor, kind: tuple[object, ...],
        made: Callable[..., nn.Module],
    ) -> Lane:  # fmt: skip
        network: nn.Module = self.steered(steering, example)
        parameters, which = None, steering
        if isinstance(network, Steered) and (values := network.curve_parameters()) is not None:
            which = _of_all_curves(steering)
            if which not in self._mixed:
                self._mixed[which] = Mixed(network) if mixes(network, example) else None
            if (mixed := self._mixed[which]) is not None:
                network, parameters = mixed, torch.tensor(values, device=example.device)
            else:
                which = steering
        key = (which, parameters is None, task.batch_size, *kind)  # the baseline is not the network of all β
        if key not in self._fixed:
            rows = () if parameters is None else (parameters.expand(len(example), -1),)
            self._fixed[key] = FixedWidth(made(network, *rows), example, *rows, widest=task.batch_size or LADDER[-1])
        return Lane(self._fixed[key], parameters)

    def steered(self, steering: Steering, example: Tensor) -> nn.Module:
        """Return the network to score under a steering, as its model makes it, at the first call."""
        if steering not in self._steered:
            self._steered[steering] = self.loaded.steered(steering, example[:1]).eval()
        return self._steered[steering]

    def _compiled(self, network: nn.Module, inputs: tuple[Tensor, ...], must: bool) -> nn.Module:
        """Return ``network`` compiled; as it is where it cannot be compiled and need not (``must``)."""
        try:
            return self.loaded.compiled(network, lambda part: checked(self._fast(part, inputs[0]), part, *inputs))
        except ModelError:
            if must:
                raise
            return network

    def _fast(self, part: nn.Module, example: Tensor) -> nn.Module:
        """Return a part of a network compiled: of a steered one, once for all β and c."""
        if not isinstance(part, Steered) or (values := part.curve_parameters()) is None:
            return compiled(part)
        which = _of_all_curves(part.steering)
        if which not in self._compiled_once:
            self._compiled_once[which] = compiled(Mixed(part))
        return AtBeta(self._compiled_once[which], torch.tensor(values, device=example.device))


def _of_all_curves(steering: Steering) -> Steering:
    """Return the key of a network that all β and c share."""
    return steering._replace(beta=steering.native, c=0.5)


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
