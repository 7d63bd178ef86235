"""A network with its piecewise-affine activations rerouted through φ, and the proof that none was missed.

A `TorchFunctionMode` entered inside the wrapper's ``forward`` sees every activation however the network calls it, so
nothing of the network is copied and a whole grid of β shares its weights. The mode belongs to the thread that runs
``forward``, hence inside the wrapper; handlers run with torch functions disabled, so wrappers may be nested.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from harness.activations import FUNCTIONS, IN_PLACE, MODULES, OTHERS, PIECEWISE_AFFINE, Activation, Curve
from harness.errors import IncompleteSteering, ModelError, NothingToSteer, SpecError
from harness.phi import check_range, curve
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
        steered.prove(example)
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
            self.prove(next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), args, kwargs)
        if self.steering.is_baseline or self.steering.sites == "modules":
            return self.network(*args, **kwargs)
        with Reroute(self.curve, self.write_back):
            return self.network(*args, **kwargs)

    def prove(self, example: Tensor, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None) -> None:
        """Count what is reached on ``example`` and refuse to go on where something is not; see `steer`."""
        call = ((example,) if args is None else args, kwargs or {})
        with _evaluating(self.network):
            if self.steering.sites == "modules":
                self.coverage = _modules_coverage(self.network, call)
            else:
                self.coverage, self.write_back = _prove_rerouting(self.network, call)
        if not self.coverage.steered:
            raise NothingToSteer(_nothing(self.coverage, self.steering.sites))


class Reroute(TorchFunctionMode):
    """While it is entered, every piecewise-affine activation is computed with ``curve`` in place of ReLU.

    Args:
        curve: φ at one β and c.
        write_back: whether ``inplace=True`` really writes into the input. Nearly all networks use only what the
            call returns; a fresh tensor is then cheaper and kinder to autograd. `steer` finds out which it is.
    """

    def __init__(self, curve: Curve, write_back: bool = False) -> None:
        super().__init__()
        self.curve = curve
        self.write_back = write_back
        self.calls: Counter[str] = Counter()

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in FUNCTIONS:
            return func(*args, **kwargs)
        name, smooth = FUNCTIONS[func]
        self.calls[name] += 1
        with torch._C.DisableTorchFunction():
            if func in IN_PLACE or (self.write_back and kwargs.get("inplace")):
                target = args[0] if args else kwargs.pop("input")
                return target.copy_(smooth(self.curve, target.clone(), *args[1:], **kwargs))
            return smooth(self.curve, *args, **kwargs)


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the activations that are computed below Python, forward and backward, by name of the operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left: Counter[str] = Counter()
        self.others: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in PIECEWISE_AFFINE:
            self.left[PIECEWISE_AFFINE[name]] += 1
        elif name in OTHERS:
            self.others[OTHERS[name]] += 1
        return func(*args, **(kwargs or {}))


Call = tuple[tuple[Any, ...], dict[str, Any]]


def _prove_rerouting(network: nn.Module, call: Call) -> tuple[Coverage, bool]:
    """Reroute with the kink itself: nothing may be left, and the plain network's outputs must come out."""
    plain = _outputs(network, call)
    for write_back in (False, True):
        reroute, watch = Reroute(_kink, write_back), Watch()
        with watch:
            rerouted = _outputs(network, call, through=reroute)
        if watch.left:
            raise IncompleteSteering(
                f"{_names(watch.left)} escaped the steering (called from compiled or scripted code, or recomputed by "
                "activation checkpointing); rewrite that part in plain PyTorch, or switch checkpointing off"
            )
        if all(torch.allclose(a, b, 1e-3, 1e-4, equal_nan=True) for a, b in zip(plain, rerouted, strict=True)):
            sites = reroute.calls.total()
            return Coverage(sites, sites, dict(reroute.calls + watch.others)), write_back
    raise IncompleteSteering(
        "rerouting the activations at β = 1 does not reproduce the plain network: it depends on something that the "
        "steering does not see (in-place activations on shared tensors, or hidden state); make it a pure function"
    )


def _modules_coverage(network: nn.Module, call: Call) -> Coverage:
    """Activations that replaced modules run are steered; those still called as functions are left."""
    replaced: Counter[str] = Counter()

    def count(module: Activation, *_: Any) -> None:
        replaced[module.name] += 1

    activations = [module for module in network.modules() if isinstance(module, Activation)]
    curves = [module.curve for module in activations]
    hooks = [module.register_forward_hook(count) for module in activations]
    reroute, watch = Reroute(torch.relu), Watch()
    try:
        for module in activations:
            module.curve = _kink  # φ is made of other activations, which are not the network's
        with watch:
            _outputs(network, call, through=reroute)
    finally:
        for module, bent, hook in zip(activations, curves, hooks, strict=True):
            module.curve = bent
            hook.remove()
    sites = replaced.total() + reroute.calls.total()
    return Coverage(sites, replaced.total(), dict(replaced + reroute.calls + watch.others))


def _outputs(network: nn.Module, call: Call, through: Reroute | None = None) -> list[Tensor]:
    """All tensors that the network returns, after a forward and, where it can, a backward pass.

    The backward pass is run for what it would do behind the steering's back: activation checkpointing computes the
    forward again there, outside of the mode. Every pass draws the same random numbers.
    """
    leaves = [leaf for leaf in tree_leaves(call) if isinstance(leaf, Tensor)]
    inputs = [leaf.detach().requires_grad_(leaf.is_floating_point()) for leaf in leaves]
    swapped = {id(leaf): fresh for leaf, fresh in zip(leaves, inputs, strict=True)}
    args, kwargs = tree_map(lambda leaf: swapped.get(id(leaf), leaf), call)
    with torch.random.fork_rng(), torch.enable_grad(), through or nullcontext():
        torch.manual_seed(0)
        result = network(*args, **kwargs)
    outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    wanted = [leaf for leaf in inputs if leaf.requires_grad]
    total = [leaf.double().sum() for leaf in outputs if leaf.requires_grad]
    if total and wanted and through is not None:
        try:
            torch.autograd.grad(torch.stack(total).sum(), wanted, allow_unused=True)
        except RuntimeError as error:
            raise IncompleteSteering(
                f"the gradient with respect to the input cannot be taken, which every attack needs: {error}"
            ) from error
    return [leaf.detach() for leaf in outputs]


def _kink(x: Tensor) -> Tensor:
    """ReLU by an operation that is not one of those watched for."""
    return x.clamp_min(0)


def _replace_modules(network: nn.Module, bent: Curve) -> nn.Module:
    """A copy of the network's structure, sharing its weights, in which registered activations compute ``bent``."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    twin = copy.deepcopy(network, shared)
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
            with _evaluating(network), torch.no_grad():
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


def _nothing(coverage: Coverage, sites: Sites) -> str:
    if sites == "modules" and coverage.sites:
        return (
            f"none of the {coverage.sites} activations that it executes is a registered module "
            f"({_names(coverage.kinds)}, called as functions); use sites: all"
        )
    found = f"it uses {_names(coverage.kinds)}" if coverage.kinds else "no activation was seen at all"
    return (
        "nothing to steer: Curvature Tuning acts on ReLU, LeakyReLU, PReLU, RReLU, ReLU6 and Hardtanh, and the "
        f"network executes none of them; {found}"
    )


def _names(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ×{count}" for name, count in sorted(counts.items()))
