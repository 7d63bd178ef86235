"""The proof that a steering misses nothing: the network is run once with the kink itself in place of φ.

Then the outputs must be the plain network's, nothing of the family may have been computed below Python, and the
gradient must have gone through what was replaced. The same run counts what was reached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from harness.api.records import Coverage
from harness.curvature.families import FAMILIES, Family
from harness.curvature.piecewise_affine import Activation
from harness.curvature.reroute import ActivationCounter, CallCounts, Reroute
from harness.errors import IncompleteSteering, NothingToSteer

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Proof:
    """What rerouting reaches, and how it must be done.

    Args:
        coverage: the counts.
        skipped_output_shape: shape, without the batch, of the network's outputs where they are skipped; see `Reroute`.
        write_back: whether in-place activations must write back into their inputs.
    """

    coverage: Coverage
    skipped_output_shape: torch.Size | None
    write_back: bool


def prove_rerouting(network: nn.Module, call: Call, family: Family) -> Proof:
    """What rerouting reaches.

    Args:
        network: in eval mode.
        call: positional and keyword arguments of one call.
        family: the activations to reroute.

    Raises:
        NothingToSteer: the network executes none of the family.
        IncompleteSteering: something escapes, the plain network does not come out, or the activations have no common
            β at which they are untouched.
    """
    plain = outputs(network, call)
    spares = family.skips_outputs and not getattr(network, "yields_hidden", False)
    skipped_output_shape = plain[0].shape[1:] if spares and plain and plain[0].ndim == 2 else None
    met, watch = CallCounts(), ActivationCounter(family)
    with watch:
        rerouted = outputs(
            network, call, Reroute(family.shadow_op, family, skipped_output_shape, True, met), backward=True
        )
    if escaped := watch.left - met.skipped:
        raise IncompleteSteering(
            f"{_names(escaped)} escaped the steering (called from compiled or scripted code, or recomputed by "
            "activation checkpointing); rewrite that part in plain PyTorch, or switch checkpointing off"
        )
    if met.detached:
        raise IncompleteSteering(
            "an activation is called inside an autograd.Function or under torch.no_grad(), so its gradient would not "
            "be φ's, and an attack would follow a false one; rewrite that part in plain PyTorch"
        )
    _same(plain, rerouted)
    kinds = met.calls + met.skipped + watch.others
    if not met.calls:
        raise NothingToSteer(_nothing(Coverage(0, 0, kinds), family))
    sites, steered = (met.calls + met.skipped).total(), met.calls.total()
    coverage = Coverage(sites, steered, dict(kinds), _native(met.calls, family))
    fresh, written = (
        outputs(network, call, Reroute(family.shifted_shadow_op, family, skipped_output_shape, write_back))
        for write_back in (False, True)
    )
    differ = any(not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(fresh, written, strict=True))
    return Proof(coverage, skipped_output_shape, write_back=differ)


def _native(calls: Mapping[str, int], family: Family) -> float:
    """The β at which all of them are untouched."""
    found = {family.native[name] for name in calls}
    if len(found) > 1:
        raise IncompleteSteering(
            f"the network mixes {_names(calls)}, which are untouched at different β, so no β is its own; steer "
            "networks of one smooth activation"
        )
    return found.pop()


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
    plain = outputs(network, call)
    hooks = [module.register_forward_hook(count) for module in activations]
    family = FAMILIES["relu"]
    met, watch = CallCounts(), ActivationCounter(family)
    try:
        switch(family.shadow_op)
        with watch:
            kinked = outputs(network, call, Reroute(family.original_op, counts=met), backward=True)
    finally:
        for module, curve, hook in zip(activations, curves, hooks, strict=True):
            module.curve = curve
            hook.remove()
    _same(plain, kinked)
    sites = replaced.total() + met.calls.total()
    coverage = Coverage(sites, replaced.total(), dict(replaced + met.calls + watch.others))
    if not coverage.steered:
        raise NothingToSteer(_nothing(coverage, family))
    return coverage


@torch.enable_grad()
def outputs(network: nn.Module, call: Call, through: Reroute | None = None, backward: bool = False) -> list[Tensor]:
    """All tensors that the network returns; every pass draws the same random numbers.

    A backward pass is run for what it would do behind the steering's back: activation checkpointing computes the
    forward again there, outside of the mode.
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
    if total and wanted and backward:
        try:
            torch.autograd.grad(torch.stack(total).sum(), wanted, allow_unused=True)
        except RuntimeError as error:
            raise IncompleteSteering(
                f"the gradient with respect to the input cannot be taken, which every attack needs: {error}"
            ) from error
    return [leaf.detach() for leaf in outputs]


def _same(plain: list[Tensor], rerouted: list[Tensor]) -> None:
    if not all(torch.allclose(a, b, 1e-3, 1e-4, equal_nan=True) for a, b in zip(plain, rerouted, strict=True)):
        raise IncompleteSteering(
            "rerouting the activations unbent does not reproduce the plain network: it depends on something that the "
            "steering does not see (in-place activations on shared tensors, or hidden state); make it a pure function"
        )


def _nothing(coverage: Coverage, family: Family) -> str:
    if coverage.sites:
        return (
            f"none of the {coverage.sites} activations that it executes is a registered module "
            f"({_names(coverage.kinds)}, called as functions); use sites: all"
        )
    found = f"it uses {_names(coverage.kinds)}" if coverage.kinds else "no activation was seen at all"
    if family is FAMILIES["smooth"]:
        what = "the smooth family is SiLU and GELU, and the network executes neither within it"
        return f"nothing to steer: {what}; {found}"
    return (
        "nothing to steer: Curvature Tuning acts on ReLU, LeakyReLU, PReLU, RReLU, ReLU6 and Hardtanh, and the "
        f"network executes none of them; {found}"
    )


def _names(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ×{count}" for name, count in sorted(counts.items()))
