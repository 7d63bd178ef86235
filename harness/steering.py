"""A network with its piecewise-affine activations rerouted through φ, and the proof that none was missed.

The rerouting mode is entered inside the wrapper's ``forward``, in whichever thread runs it. Nothing of the network is
copied, so a whole grid of β shares its weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode

from harness.activations import MODULES, Activation, Curve
from harness.errors import ModelError, SpecError
from harness.phi import check_range, curve
from harness.proof import prove_replacement, prove_rerouting
from harness.reroute import Reroute
from harness.types import Coverage, Sites, Steering


def steer(
    network: nn.Module, beta: float, c: float = 0.5, sites: Sites = "all", example: Tensor | None = None
) -> Steered:
    """Curvature Tuning (arXiv 2502.07783) of ``network``: every ReLU-like activation becomes φ(·; β, c).

    Reaches ReLU, LeakyReLU, PReLU, RReLU (eval mode), ReLU6 and Hardtanh, as modules, functions, methods or in place.
    The network itself is not changed, and its weights are shared.

    Args:
        network: any module; not a scripted one, and not wrapped in DataParallel (wrap the result instead).
        beta: in [0, 1]; 1 is the untouched network, bit by bit.
        c: in [0, 1].
        sites: "all", or "modules" for plain replacement of registered modules (what other implementations do:
            activations called as functions keep their kinks).
        example: an input on which to prove that nothing was missed. Without it a plausible one is made up from the
            first layer; where none runs, the proof is made on the first input of ``forward``.

    Returns:
        The steered network; ``.coverage`` counts the activations it reached.

    Raises:
        SpecError: ``beta``, ``c`` or ``sites`` is out of range.
        NothingToSteer: no such activation is executed; names those that are.
        IncompleteSteering: one escapes the steering.
        ModelError: the network is scripted or wrapped in DataParallel.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> steer(network, beta=0.9).coverage.steered
        1
    """
    check_range(beta, c)
    if sites not in ("all", "modules"):
        raise SpecError(f"sites: expected 'all' or 'modules', found {sites!r}")
    _refuse(network)
    steered = Steered(network, Steering(beta, c, sites))
    if example is None:
        example = _plausible_input(network)
    if example is not None:
        steered.prove((example,), {})
    return steered


class Steered(nn.Module):
    """What `steer` returns: runs the network with its activations rerouted."""

    coverage: Coverage | None
    """What was reached; None until proven."""

    def __init__(self, network: nn.Module, steering: Steering) -> None:
        super().__init__()
        self.steering = steering
        self.coverage = None
        self.write_back = False
        bent = partial(curve, beta=steering.beta, c=steering.c)
        self.curve: Curve = torch.relu if steering.is_baseline else bent
        self.network = network
        if steering.sites == "modules":
            self.network = _replace_modules(network, self.curve)
        self.training = network.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own arguments and results."""
        if self.coverage is None:
            self.prove(args, kwargs)
        if self.steering.is_baseline:
            return self.network(*args, **kwargs)
        if self.steering.sites == "modules":
            with BaseTorchFunctionMode():  # keeps TransformerEncoderLayer off its fast path, which calls no modules
                return self.network(*args, **kwargs)
        with Reroute(self.curve, self.write_back):
            return self.network(*args, **kwargs)

    def prove(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count what is reached in one call, and refuse to go on where something is not; see `steer`."""
        call = (args, kwargs)
        with _evaluating(self.network):
            if self.steering.sites == "modules":
                self.coverage = prove_replacement(self.network, call)
            else:
                self.coverage, self.write_back = prove_rerouting(self.network, call)


def _replace_modules(network: nn.Module, bent: Curve) -> nn.Module:
    """A copy of the network's structure, sharing its weights, in which registered activations compute ``bent``."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    try:
        twin = copy.deepcopy(network, shared)
    except RuntimeError as error:
        raise ModelError(f"its modules cannot be copied to be replaced ({error}); use sites: all") from error
    if type(twin) in MODULES:
        return Activation(twin, bent)
    for module in list(twin.modules()):
        for name, child in module._modules.items():  # named_children() passes over a module seen before
            if child is not None and type(child) in MODULES:
                setattr(module, name, Activation(child, bent))
    return twin


def _refuse(network: nn.Module) -> None:
    for name, module in network.named_modules():
        place = f"its part {name!r}" if name else "the network"
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{place} is a scripted module ({type(module).__name__}), whose activations cannot be reached from "
                "Python; steer the module it was scripted from"
            )
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise ModelError(f"{place} is wrapped in {type(module).__name__}; steer its .module and wrap the result")


def _plausible_input(network: nn.Module) -> Tensor | None:
    """One input that the network takes, judged by its first convolution or linear layer; None if none is found."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)), None)
    shapes: list[tuple[int, ...]] = [(1, 3, 32, 32)]
    if isinstance(first, nn.Conv2d):
        shapes = [(1, first.in_channels, side, side) for side in (32, 224, 64, 28, 8)]
    elif isinstance(first, nn.Linear):
        shapes = [(1, first.in_features)]
    like = next(network.parameters(), torch.zeros(()))
    for shape in shapes:
        example = torch.full(shape, 0.5, dtype=like.dtype, device=like.device)
        try:
            with _evaluating(network), torch.random.fork_rng(), torch.no_grad():
                network(example)
        except Exception:  # whatever a network raises on an input of a shape that it does not take
            continue
        return example
    return None


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode for the length of the block, so that a look at the network leaves no trace in its statistics."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
