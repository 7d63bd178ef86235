"""The proof that a steering misses nothing: the network is run once with the kink itself in place of φ.

Then the outputs must be the plain network's, nothing of the family may have been computed below Python, and the
gradient must have gone through what was replaced. The same run counts what was reached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from harness.activations import Activation
from harness.errors import IncompleteSteering, NothingToSteer
from harness.reroute import Reroute, Watch
from harness.types import Coverage

Call = tuple[tuple[Any, ...], dict[str, Any]]


def prove_rerouting(network: nn.Module, call: Call) -> tuple[Coverage, bool]:
    """What rerouting reaches, and whether in-place activations must write back into their inputs.

    Args:
        network: in eval mode.
        call: positional and keyword arguments of one call.

    Raises:
        NothingToSteer: the network executes none of the family.
        IncompleteSteering: something escapes, or the plain network does not come out.
    """
    reroute, watch = Reroute(_kink, write_back=True), Watch()
    with watch:
        rerouted = _outputs(network, call, through=reroute)
    if watch.left:
        raise IncompleteSteering(
            f"{_names(watch.left)} escaped the steering (called from compiled or scripted code, or recomputed by "
            "activation checkpointing); rewrite that part in plain PyTorch, or switch checkpointing off"
        )
    if reroute.detached:
        raise IncompleteSteering(
            "an activation is called inside an autograd.Function or under torch.no_grad(), so its gradient would not "
            "be φ's, and an attack would follow a false one; rewrite that part in plain PyTorch"
        )
    _same(_outputs(network, call), rerouted)
    coverage = Coverage(reroute.calls.total(), reroute.calls.total(), dict(reroute.calls + watch.others))
    if not coverage.steered:
        raise NothingToSteer(_nothing(coverage))
    fresh, written = (_outputs(network, call, through=Reroute(_lift, write_back)) for write_back in (False, True))
    return coverage, not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(fresh, written, strict=True))


def prove_replacement(network: nn.Module, call: Call) -> Coverage:
    """What replacing modules reached: activations that still are called as functions are left, and counted.

    Args:
        network: in eval mode, its registered activations replaced by `Activation`.
        call: positional and keyword arguments of one call.

    Raises:
        NothingToSteer: no registered module of the family is executed.
        IncompleteSteering: the plain network does not come out.
    """
    activations = [module for module in network.modules() if isinstance(module, Activation)]
    curves = [module.curve for module in activations]
    replaced: Counter[str] = Counter()

    def count(module: Activation, *_: Any) -> None:
        replaced[module.name] += 1

    def switch(curve: Any) -> None:
        for module in activations:
            module.curve = curve

    switch(torch.relu)
    plain = _outputs(network, call)
    hooks = [module.register_forward_hook(count) for module in activations]
    reroute, watch = Reroute(torch.relu), Watch()
    try:
        switch(_kink)
        with watch:
            kinked = _outputs(network, call, through=reroute)
    finally:
        for module, curve, hook in zip(activations, curves, hooks, strict=True):
            module.curve = curve
            hook.remove()
    _same(plain, kinked)
    sites = replaced.total() + reroute.calls.total()
    coverage = Coverage(sites, replaced.total(), dict(replaced + reroute.calls + watch.others))
    if not coverage.steered:
        raise NothingToSteer(_nothing(coverage))
    return coverage


@torch.enable_grad()
def _outputs(network: nn.Module, call: Call, through: Reroute | None = None) -> list[Tensor]:
    """All tensors that the network returns, after a forward and, where it can, a backward pass.

    The backward pass is run for what it would do behind the steering's back: activation checkpointing computes the
    forward again there, outside of the mode. Every pass draws the same random numbers.
    """
    leaves = [leaf for leaf in tree_leaves(call) if isinstance(leaf, Tensor)]
    inputs = [leaf.detach().requires_grad_(leaf.is_floating_point()) for leaf in leaves]
    swapped = {id(leaf): fresh.clone() for leaf, fresh in zip(leaves, inputs, strict=True)}  # in place needs no leaf
    args, kwargs = tree_map(lambda leaf: swapped.get(id(leaf), leaf), call)
    with torch.random.fork_rng(), through or nullcontext():
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


def _lift(x: Tensor) -> Tensor:
    """A curve that changes every value, so that writing in place shows."""
    return x.clamp_min(0) + 1


def _same(plain: list[Tensor], rerouted: list[Tensor]) -> None:
    if not all(torch.allclose(a, b, 1e-3, 1e-4, equal_nan=True) for a, b in zip(plain, rerouted, strict=True)):
        raise IncompleteSteering(
            "rerouting the activations at β = 1 does not reproduce the plain network: it depends on something that the "
            "steering does not see (in-place activations on shared tensors, or hidden state); make it a pure function"
        )


def _nothing(coverage: Coverage) -> str:
    if coverage.sites:
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
