"""Networks with their activations rerouted through φ, and the proof that none is missed.

The rerouting mode is entered inside the wrapper's ``forward``, in whichever thread runs it. No weight is copied: a
whole grid of β shares them. Where every activation is a registered module, the harness replaces modules instead, which
gives the same bits without the mode's microsecond per torch call.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode

from harness.api.records import Coverage, FamilyName, Sites, Steering
from harness.curvature.completeness import Call, outputs, prove_replacement, prove_rerouting
from harness.curvature.families import FAMILIES
from harness.curvature.phi import check_range
from harness.curvature.piecewise_affine import MODULES, Activation, Curve
from harness.curvature.pre_activations import Spreads
from harness.curvature.reroute import Reroute
from harness.curvature.shared_copy import copy_sharing_weights
from harness.curvature.smooth import with_plain_silu
from harness.errors import ModelError, SpecError
from harness.util.device_errors import raise_of_device
from harness.util.randomness import seeded


def steer(
    network: nn.Module,
    beta: float,
    c: float | None = None,
    sites: Sites = "all",
    example: Tensor | None = None,
    family: FamilyName = "relu",
) -> Steered:
    """Steer a network by Curvature Tuning (arXiv 2502.07783): replace every ReLU-like activation by φ(·; β, c).

    ReLU, LeakyReLU, PReLU, RReLU (in eval mode), ReLU6 and Hardtanh are reached, as modules, functions and methods, in
    place or not. The network itself is not changed; the steered one shares its weights.

    Args:
        network: any module that is neither scripted nor wrapped in DataParallel (wrap the result instead).
        beta: steering parameter in [0, 1]; 1 is the untouched network, bit by bit.
        c: weight of φ's swish term in [0, 1]; by default 0.5 as in the paper, and 1 for the smooth family.
        sites: "all"; or "modules" to replace registered modules only, as other implementations do, so that activations
            called as functions stay as they are.
        example: input on which to prove that no activation is missed. Without it, one is made up from the shape of
            the first layer; if the network does not take that, the proof is made on the first input of ``forward``.
        family: "relu"; or "smooth" for SiLU and GELU along c = 1, an extension of the paper in which the network is
            untouched at β = 0.5 and 0.64 respectively.

    Returns:
        The steered network; its ``coverage`` counts the activations that it reaches.

    Raises:
        SpecError: ``beta``, ``c``, ``sites`` or ``family`` is out of range, or they are not compatible.
        NothingToSteer: the network executes no activation of the family; the message names those that it executes.
        IncompleteSteering: an activation escapes the steering.
        ModelError: the network is scripted or wrapped in DataParallel.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> steer(network, beta=0.9).coverage.steered
        1
    """
    if family not in FAMILIES:
        raise SpecError(f"family: expected 'relu' or 'smooth', found {family!r}")
    if c is None:
        c = 1.0 if family == "smooth" else 0.5
    check_range(beta, c)
    if sites not in ("all", "modules"):
        raise SpecError(f"sites: expected 'all' or 'modules', found {sites!r}")
    if family == "smooth" and (c != 1.0 or sites != "all"):
        raise SpecError(f"family: smooth is steered along c = 1 at all sites; found c = {c:g}, sites = {sites!r}")
    _check_steerable(network)
    steered = Steered(network, Steering(beta, c, sites, family))
    if example is None:
        example = _plausible_input(network)
    if example is not None:
        steered.prove((example,), {})
    return steered


class Steered(nn.Module):
    """A network that runs with its activations steered; made by `steer`.

    Args:
        network: the plain network, whose weights are shared.
        steering: β, c, sites and family.
    """

    coverage: Coverage | None
    """Activations that the steering reaches; None until proven."""

    def __init__(self, network: nn.Module, steering: Steering) -> None:
        super().__init__()
        self.steering = steering
        self.coverage = None
        self.write_back = False
        self.skipped_output_shape: torch.Size | None = None
        self.modules_replaced = steering.sites == "modules"
        family = FAMILIES[steering.family]
        untouched = steering.family == "relu" and steering.is_baseline
        self.curve: Curve = family.original_op if untouched else family.curve(steering.beta, steering.c)
        self.network = network
        if self.modules_replaced:
            self.network = _with_modules_replaced(network, self.curve)
        elif steering.family == "smooth":
            self.network = with_plain_silu(network)
        self.has_fast_path = any(isinstance(module, nn.TransformerEncoderLayer) for module in network.modules())
        self.training = network.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the steered network, with the arguments and results of the plain one."""
        if self.coverage is None:
            self.prove(args, kwargs)
        if self.curve is torch.relu:
            return self.network(*args, **kwargs)
        with self._rerouted():
            return self.network(*args, **kwargs)

    def _rerouted(self) -> AbstractContextManager[object]:
        if not self.modules_replaced:
            return Reroute(self.curve, FAMILIES[self.steering.family], self.skipped_output_shape, self.write_back)
        if self.has_fast_path:
            return BaseTorchFunctionMode()  # disables TransformerEncoderLayer's fast path, which calls no modules
        return nullcontext()

    def prove(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count the activations that are reached in one call, and raise as `steer` does if one escapes."""
        call = (args, kwargs)
        with _eval_mode(self.network):
            if self.modules_replaced:
                self.coverage = prove_replacement(self.network, call)
                return
            proof = prove_rerouting(self.network, call, FAMILIES[self.steering.family])
            self.coverage, self.skipped_output_shape, self.write_back = (
                proof.coverage,
                proof.skipped_output_shape,
                proof.write_back,
            )

    def curve_parameters(self) -> tuple[float, ...] | None:
        """Return the parameters of this steering's curve; see `harness.curvature.families.Family`."""
        return FAMILIES[self.steering.family].curve_parameters(self.steering.beta, self.steering.c)

    def with_curve(self, curve: Curve) -> Steered:
        """Return a copy with another curve in place of φ, without a new proof."""
        other = copy.copy(self)
        other._modules = dict(self._modules)  # copy.copy would share the dict
        other.curve = curve
        if self.modules_replaced:
            other.network = copy_sharing_weights(self.network, lambda module: _with_curve(module, curve))
        return other

    def replace_modules(self, example: Tensor) -> None:
        """Steer by replaced modules in place of the mode, if that reaches every activation and gives the same bits.

        The network with replaced modules shares every weight but is another object: what is done to the original later
        (a hook, another dtype or device) does not reach it. Therefore only the owner of the network should call this.

        Args:
            example: input on which the two ways are compared.
        """
        if self.modules_replaced or self.write_back or self.steering.family != "relu" or self.curve is torch.relu:
            return
        call: Call = ((example,), {})
        with _eval_mode(self.network):
            rerouted = outputs(self.network, call, Reroute(self.curve))
            try:
                network = _with_modules_replaced(self.network, self.curve)
                reached = prove_replacement(network, call)
            except ModelError:
                return
            if reached == self.coverage and all(map(torch.equal, rerouted, outputs(network, call))):
                self.network, self.modules_replaced = network, True


def _with_curve(module: nn.Module, curve: Curve) -> Activation | None:
    return Activation(module.original, curve) if isinstance(module, Activation) else None


def _with_modules_replaced(network: nn.Module, curve: Curve) -> nn.Module:
    return copy_sharing_weights(network, lambda module: Activation(module, curve) if type(module) in MODULES else None)


def _check_steerable(network: nn.Module) -> None:
    """Raise ModelError if a part of the network is scripted or wrapped in DataParallel."""
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
    """Return an input that the network takes, guessed from its first convolution or linear layer; None if none fits."""
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
            with _eval_mode(network), seeded(0, example), torch.no_grad():
                network(example)
        except Exception as error:  # an input of the wrong shape may raise anything
            raise_of_device(error)
            continue
        return example
    return None


@contextmanager
def _eval_mode(network: nn.Module) -> Iterator[None]:
    """Put the network in eval mode within the block, so that running it leaves no trace in its statistics."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def steered_network(network: nn.Module, steering: Steering, example: Tensor | None = None) -> Steered:
    """Steer a network that the harness owns, by replacing modules where that reaches every activation; see `steer`.

    Args:
        network: the plain network.
        steering: any point of the grid but the baseline.
        example: images that the network takes.
    """
    steered = steer(network, steering.beta, steering.c, steering.sites, example, steering.family)
    if example is not None:
        steered.replace_modules(example)
    return steered


def coverage_of(network: nn.Module, sites: Sites, example: Tensor, family: FamilyName) -> Coverage:
    """Count the activations of ``network`` that steering reaches, and measure them; see `Scorable.coverage`."""
    steered = steered_network(network, Steering(0.75, 1.0, sites, family), example[:1])
    assert steered.coverage is not None
    spreads = Spreads(FAMILIES[family])
    with _eval_mode(network), seeded(0, example), torch.no_grad():
        steered.with_curve(spreads)(example)
    return replace(steered.coverage, spread=spreads.median())
