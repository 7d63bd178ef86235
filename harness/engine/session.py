"""A model loaded in this process, on its device, with the networks made from it so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.api.model import Model, Scorable
from harness.api.records import Batch, Precision, Steering
from harness.api.work import Task
from harness.curvature.mixed import Mixed, mixes
from harness.curvature.steering import Steered
from harness.engine.acceleration import Fast, compiled, fast, to_channels_last, wants_compiling
from harness.engine.fingerprint import fingerprint
from harness.engine.fixed_width import LADDER, FixedWidth, on_a_gpu
from harness.engine.footprint import kept_bytes
from harness.engine.images import ImageCache
from harness.engine.step_graph import CudaRecorder, Recorder
from harness.errors import HarnessError, ModelError
from harness.util.device_errors import give_back_memory
from harness.util.foreign import ANYTHING, told

OTHER_EACH_TIME = (
    "its weights are others each time that it is loaded, as of a network that was never trained; give the file with "
    "its trained weights (weights), or have its builder load them"
)
"""Message about a model whose weights are drawn by chance."""


class Lane(NamedTuple):
    """A network, and which of the curves that it can compute.

    Args:
        network: network of several steerings at once, or of one.
        parameters: parameters of one steering's curve, [p]; None where the network is of this steering alone.
        compiled: whether the network runs compiled.
    """

    network: FixedWidth
    parameters: Tensor | None
    compiled: bool

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
        fingerprint: hash of the state and the code of the network as it was loaded.
        is_asked: whether its answers were held against those of the process that started the run.
        images: images of each dataset that was read, by dataset and preprocessing.
    """

    loaded: Scorable
    normalise: Callable[[Tensor], Tensor] | None = None
    fingerprint: str = ""
    is_asked: bool = False
    images: dict[object, ImageCache] = field(default_factory=dict)
    _steered: dict[Steering, nn.Module] = field(default_factory=dict)
    _mixed: dict[Steering, Mixed | None] = field(default_factory=dict)
    _lanes: dict[tuple[object, ...], Fast] = field(default_factory=dict)
    _compiled_once: dict[Steering, nn.Module] = field(default_factory=dict)
    preparing: float = 0.0
    """Seconds spent so far on networks rather than on trials: on proofs of widths, and on compiling."""
    _recorder: Recorder | None = None
    _is_channels_last: bool = False
    _widest: int = LADDER[-1]

    def to_input_space(self, batch: Batch) -> Batch:
        """Return the batch as the network takes it: normalised under ``protocol: paper``, otherwise as it is."""
        return batch if self.normalise is None else replace(batch, x=self.normalise(batch.x))

    def to_channels_last(self, example: Tensor, precision: Precision = "float32") -> None:
        """Convert the weights once, before anything is steered; see `harness.engine.acceleration.to_channels_last`."""
        if not self._is_channels_last:
            to_channels_last(self.loaded.body, example, precision)
            self._is_channels_last = True

    def judge(self, task: Task, steering: Steering, example: Tensor) -> Lane:
        """Return the network that judges under a steering: plain, in float32.

        Args:
            task: says how wide a batch may be.
            steering: a point of the grid, or another method.
            example: images that the network takes, [m, c, h, w].
        """
        return self._lane(task, steering, example, ("judge",), partial(self._plain, task, example))

    def attacked(self, task: Task, steering: Steering, example: Tensor) -> Lane:
        """Return the network that is attacked under a steering: the judge, or that compiled or in another precision.

        Raises:
            ModelError: it must be compiled and cannot be, or TF32 is asked of a CPU.
        """
        if task.precision == "tf32" and not example.is_cuda:
            raise ModelError("precision: tf32 is for a GPU, and this is a CPU; set precision=float32 or bfloat16")
        if not wants_compiling(task.compile, example.device.type, math.inf) and task.precision == "float32":
            return self.judge(task, steering, example)
        made = partial(self._fast, task, example)
        return self._lane(task, steering, example, (task.compile, task.precision), made)

    def _lane(
        self, task: Task, steering: Steering, example: Tensor, kind: tuple[object, ...],
        made: Callable[..., Fast],
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
        if key not in self._lanes:
            started = perf_counter()
            rows = () if parameters is None else (parameters.expand(len(example), -1),)
            self._lanes[key] = made(network, rows)
            self.preparing += perf_counter() - started
        network_of_all, is_compiled = self._lanes[key]
        return Lane(network_of_all, parameters, is_compiled)

    def _plain(self, task: Task, example: Tensor, network: nn.Module, rows: tuple[Tensor, ...]) -> Fast:
        return Fast(self._at_widths(task, example, rows, network), compiled=False)

    def _fast(self, task: Task, example: Tensor, network: nn.Module, rows: tuple[Tensor, ...]) -> Fast:
        at_widths = partial(self._at_widths, task, example, rows)
        work = task.passes * kept_bytes(network, example, *rows)

        def compile(network: nn.Module) -> nn.Module:
            return self.loaded.compiled(network, lambda part: self._compiled_part(part, example))

        return fast(task, network, work, at_widths, compile)

    def _at_widths(
        self, task: Task, example: Tensor, rows: tuple[Tensor, ...], network: nn.Module, **options: Any
    ) -> FixedWidth:
        """Return a network at the widths of its device, or at those given."""
        widest = min(task.batch_size or LADDER[-1], self._widest)
        if "widths" not in options and example.is_cuda:
            options["widths"] = on_a_gpu(kept_bytes(network, example, *rows), self._widest)
        return FixedWidth(network, example, *rows, widest=widest, **options)

    def _compiled_part(self, part: nn.Module, example: Tensor) -> nn.Module:
        """Return a part of a network compiled: of a steered one, once for all β and c."""
        if not isinstance(part, Steered) or (values := part.curve_parameters()) is None:
            return compiled(part)
        which = _of_all_curves(part.steering)
        if which not in self._compiled_once:
            self._compiled_once[which] = compiled(Mixed(part))
        return AtBeta(self._compiled_once[which], torch.tensor(values, device=example.device))

    def recorder(self, task: Task) -> Recorder | None:
        """Return what records the steps of attacks, on a GPU and unless ``compile`` is "never"."""
        if not task.device.startswith("cuda") or task.compile == "never":
            return None
        if self._recorder is None:
            self._recorder = CudaRecorder(task.device)
        return self._recorder

    def narrow(self) -> tuple[int, bool]:
        """Halve the widest batch of all networks, as memory was short.

        Returns:
            The widest batch, and whether all networks give the same bits there; on a GPU some may not.

        Raises:
            ModelError: they cannot be narrower.
        """
        networks = [lane.network for lane in self._lanes.values()]
        used = max((network.used for network in networks), default=1) or max(network.width for network in networks)
        if used // 2 in (0, self._widest):
            raise ModelError(
                f"memory is too short for it, even in batches of {used} images; set executor.workers=1, or use a "
                "device with more memory"
            )
        self._widest = used // 2
        same = all(network.agrees(self._widest) for network in networks)
        networks.clear()
        self._lanes.clear()
        give_back_memory()
        return self._widest, same

    def steered(self, steering: Steering, example: Tensor) -> nn.Module:
        """Return the network to score under a steering, as its model makes it, at the first call."""
        if steering not in self._steered:
            self._steered[steering] = self.loaded.steered(steering, example[:1]).eval()
        return self._steered[steering]


def told_apart_by(loaded: Scorable) -> nn.Module:
    """Return the network whose answers tell whether it is the one of earlier results: of a fitted one, what is not."""
    return loaded.network if loaded.training is None else loaded.body


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
    except ANYTHING as error:  # whatever a builder or a library raises: it is this model's failure
        raise ModelError(f"cannot be loaded: {told(error)}") from error
    training = [name or "the network" for name, module in loaded.body.named_modules() if module.training]
    if training:
        raise ModelError(f"it is in training mode ({training[0]}); call network.eval() where it is built")
    found = fingerprint(loaded.body.requires_grad_(False), model.sources)
    loaded.body.to(device)
    scored, normalise = loaded.normalised_space() if normalised else (loaded, None)
    return ModelSession(scored, normalise, found)
