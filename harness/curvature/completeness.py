"""Proof that a steering misses no activation: one run with a shadow op, equal to the original, in place of φ.

The outputs must be the plain network's, no activation of the family may have been computed below Python, and the
gradient must have passed through the replacements. The same run counts the activations that are reached.
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
from harness.util.device_errors import raise_of_device
from harness.util.randomness import seeded

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call of a network."""


@dataclass(frozen=True)
class Proof:
    """The activations that rerouting reaches, and how it must be done.

    Args:
        coverage: numbers of activations executed and steered.
        skipped_output_shape: shape of the network's outputs, without the batch, if they are skipped; see `Reroute`.
        write_back: whether in-place activations must write into their inputs.
    """

    coverage: Coverage
    skipped_output_shape: torch.Size | None
    write_back: bool


def prove_rerouting(network: nn.Module, call: Call, family: Family) -> Proof:
    """Prove that rerouting reaches every activation of the family.

    Args:
        network: any module in eval mode.
        call: arguments of the call on which the proof is made.
        family: the activations to reroute.

    Raises:
        NothingToSteer: the network executes no activation of the family.
        IncompleteSteering: an activation escapes, the plain network's outputs are not reproduced, or the activations
            have no common β at which they are untouched.
    """
    plain = outputs(network, call)
    skips = family.skips_outputs and not getattr(network, "yields_hidden", False)
    skipped_output_shape = plain[0].shape[1:] if skips and plain and plain[0].ndim == 2 else None
    counts, below_python = CallCounts(), ActivationCounter(family)
    with below_python:
        rerouted = outputs(
            network, call, Reroute(family.shadow_op, family, skipped_output_shape, True, counts), backward=True
        )
    if escaped := below_python.left - counts.skipped:
        raise IncompleteSteering(
            f"{_listing(escaped)} escaped the steering (called from compiled or scripted code, or recomputed by "
            "activation checkpointing); rewrite that part in plain PyTorch, or switch checkpointing off"
        )
    if counts.detached:
        raise IncompleteSteering(
            "an activation is called inside an autograd.Function or under torch.no_grad(), so its gradient would not "
            "be φ's and would mislead an attack; rewrite that part in plain PyTorch"
        )
    _require_same(plain, rerouted)
    kinds = counts.calls + counts.skipped + counts.spelt + below_python.others
    if not counts.calls:
        raise NothingToSteer(_nothing_to_steer(Coverage(0, 0, kinds), family))
    missed = counts.spelt if family is FAMILIES["relu"] else Counter[str]()
    sites, steered = (counts.calls + counts.skipped + missed).total(), counts.calls.total()
    coverage = Coverage(sites, steered, dict(kinds), _native_beta(counts.calls, family))
    fresh, written = (
        outputs(network, call, Reroute(family.shifted_shadow_op, family, skipped_output_shape, write_back))
        for write_back in (False, True)
    )
    differ = any(not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(fresh, written, strict=True))
    return Proof(coverage, skipped_output_shape, write_back=differ)


def _unseen(x: Tensor) -> Tensor:
    """Compute the shadow op where no mode sees it, which would take it for a ReLU spelt otherwise."""
    with torch._C.DisableTorchFunction():
        return FAMILIES["relu"].shadow_op(x)


def _native_beta(calls: Mapping[str, int], family: Family) -> float:
    """Return the β at which all of these activations are untouched."""
    betas = {family.native[name] for name in calls}
    if len(betas) > 1:
        raise IncompleteSteering(
            f"the network mixes {_listing(calls)}, which are untouched at different β, so no β leaves the network as "
            "it is; steer networks of one smooth activation"
        )
    return betas.pop()


def prove_replacement(network: nn.Module, call: Call) -> Coverage:
    """Count the activations that replacing modules reaches, and those called as functions, which it does not.

    Args:
        network: module in eval mode whose registered activations are replaced by `Activation`.
        call: arguments of the call on which the proof is made.

    Raises:
        NothingToSteer: no registered module of the family is executed.
        IncompleteSteering: the plain network's outputs are not reproduced.
    """
    activations = [module for module in network.modules() if isinstance(module, Activation)]
    curves = [module.curve for module in activations]
    replaced: Counter[str] = Counter()

    def count(module: Activation, *_: Any) -> None:
        replaced[module.name] += 1

    def set_curve(curve: Any) -> None:
        for module in activations:
            module.curve = curve

    set_curve(torch.relu)
    plain = outputs(network, call)
    hooks = [module.register_forward_hook(count) for module in activations]
    family = FAMILIES["relu"]
    counts, below_python = CallCounts(), ActivationCounter(family)
    try:
        set_curve(_unseen)
        with below_python:
            shadowed = outputs(network, call, Reroute(family.original_op, counts=counts), backward=True)
    finally:
        for module, curve, hook in zip(activations, curves, hooks, strict=True):
            module.curve = curve
            hook.remove()
    _require_same(plain, shadowed)
    sites = replaced.total() + counts.calls.total() + counts.spelt.total()
    coverage = Coverage(sites, replaced.total(), dict(replaced + counts.calls + counts.spelt + below_python.others))
    if not coverage.steered:
        raise NothingToSteer(_nothing_to_steer(coverage, family))
    return coverage


@torch.enable_grad()
def outputs(network: nn.Module, call: Call, through: Reroute | None = None, backward: bool = False) -> list[Tensor]:
    """Run the network and return all tensors of its result; every run draws the same random numbers.

    Args:
        network: any module.
        call: its arguments.
        through: rerouting to be entered for the forward pass.
        backward: whether to run the backward pass too, where activation checkpointing computes the forward pass again,
            outside of the rerouting.

    Raises:
        IncompleteSteering: the gradient with respect to the input cannot be taken.
    """
    leaves = [leaf for leaf in tree_leaves(call) if isinstance(leaf, Tensor)]
    inputs = [leaf.detach().requires_grad_(leaf.is_floating_point()) for leaf in leaves]
    swapped = {id(leaf): fresh.clone() for leaf, fresh in zip(leaves, inputs, strict=True)}  # a leaf refuses writes
    args, kwargs = tree_map(lambda leaf: swapped.get(id(leaf), leaf), call)
    with seeded(0, next(iter(leaves), None)), through or nullcontext():
        result = network(*args, **kwargs)
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    differentiable = [leaf for leaf in inputs if leaf.requires_grad]
    sums = [leaf.double().sum() for leaf in tensors if leaf.requires_grad]
    if sums and differentiable and backward:
        try:
            torch.autograd.grad(torch.stack(sums).sum(), differentiable, allow_unused=True)
        except RuntimeError as error:
            raise_of_device(error)
            raise IncompleteSteering(
                f"the gradient with respect to the input cannot be taken, which every attack needs: {error}"
            ) from error
    return [leaf.detach() for leaf in tensors]


def _require_same(plain: list[Tensor], rerouted: list[Tensor]) -> None:
    if not all(torch.allclose(a, b, 1e-3, 1e-4, equal_nan=True) for a, b in zip(plain, rerouted, strict=True)):
        raise IncompleteSteering(
            "rerouting the activations unchanged does not reproduce the plain network's outputs: they depend on "
            "something that steering does not see (in-place activations on shared tensors, or hidden state); make the "
            "network a pure function"
        )


def _nothing_to_steer(coverage: Coverage, family: Family) -> str:
    if coverage.sites:
        return (
            f"none of the {coverage.sites} activations that it executes is a registered module "
            f"({_listing(coverage.kinds)}, called as functions); use sites: all"
        )
    found = f"it uses {_listing(coverage.kinds)}" if coverage.kinds else "no activation was seen at all"
    if family is FAMILIES["smooth"]:
        reason = "the smooth family is SiLU and GELU, and the network executes neither before its outputs"
        return f"nothing to steer: {reason}; {found}"
    return (
        "nothing to steer: Curvature Tuning acts on ReLU, LeakyReLU, PReLU, RReLU, ReLU6 and Hardtanh, and the "
        f"network executes none of them; {found}"
    )


def _listing(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ×{count}" for name, count in sorted(counts.items()))
