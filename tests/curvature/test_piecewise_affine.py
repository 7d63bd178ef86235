"""Every piecewise-affine activation against the rule behind all of them: each kink of the function becomes φ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from harness.curvature.phi import phi
from harness.curvature.piecewise_affine import FUNCTIONS, MODULES, Activation, SteeredOp
from harness.errors import ModelError

GRID = torch.linspace(-12, 12, 1201, dtype=torch.float64)
POINTS = [(0.0, 1.0), (0.0, 0.5), (0.6, 0.3), (0.9, 0.5), (0.99, 1.0)]


def eq_7(x: NDArray[np.float64], beta: float, c: float) -> NDArray[np.float64]:
    s = 1 - beta
    swish = x / (1 + np.exp(-np.clip(beta * x / s, -700, 700)))
    value: NDArray[np.float64] = c * swish + (1 - c) * s * np.logaddexp(0, x / s)
    return value


def rounded_off(plain: Callable[[Tensor], Tensor], kinks: Sequence[float], beta: float, c: float) -> Tensor:
    """Evaluate ``plain`` on the grid with its kinks replaced by φ, knowing only its values and where its kinks are.

    A piecewise-affine function is a line and, for each kink k, the change of slope there times relu(x − k).
    """
    knots = np.array([kinks[0] - 1, *kinks, kinks[-1] + 1], dtype=np.float64)
    values = plain(torch.from_numpy(knots)).numpy()
    slopes = np.diff(values) / np.diff(knots)
    x = GRID.numpy()
    result = values[0] + slopes[0] * (x - knots[0])
    for kink, change in zip(kinks, np.diff(slopes), strict=True):
        result = result + change * eq_7(x - kink, beta, c)
    return torch.from_numpy(result)


def steered_op_of(name: str) -> SteeredOp:
    return next(steered_op for known, steered_op in FUNCTIONS.values() if known == name)


def slope(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


CASES: list[tuple[str, Callable[[Tensor], Tensor], dict[str, Any], list[float]]] = [
    ("relu", torch.relu, {}, [0]),
    ("leaky_relu", F.leaky_relu, {}, [0]),
    ("leaky_relu", lambda x: F.leaky_relu(x, 0.2), {"negative_slope": 0.2}, [0]),
    ("leaky_relu", lambda x: F.leaky_relu(x, -0.5), {"negative_slope": -0.5}, [0]),
    ("leaky_relu", lambda x: F.leaky_relu(x, 1.5), {"negative_slope": 1.5}, [0]),
    ("prelu", lambda x: F.prelu(x, slope(0.3)), {"weight": slope(0.3)}, [0]),
    ("rrelu", F.rrelu, {}, [0]),
    ("rrelu", lambda x: F.rrelu(x, 0.1, 0.5), {"lower": 0.1, "upper": 0.5}, [0]),
    ("relu6", F.relu6, {}, [0, 6]),
    ("hardtanh", F.hardtanh, {}, [-1, 1]),
    ("hardtanh", lambda x: F.hardtanh(x, -2.5, 4.0), {"min_val": -2.5, "max_val": 4.0}, [-2.5, 4]),
    ("hardtanh", lambda x: F.hardtanh(x, 1.0, 3.0), {"min_val": 1.0, "max_val": 3.0}, [1, 3]),
]


@pytest.mark.parametrize(("beta", "c"), POINTS)
@pytest.mark.parametrize(("name", "plain", "arguments", "kinks"), CASES)
def test_every_kink_becomes_phi(
    name: str,
    plain: Callable[[Tensor], Tensor],
    arguments: dict[str, Any],
    kinks: list[float],
    beta: float,
    c: float,
) -> None:
    steered_op = steered_op_of(name)
    found = steered_op(lambda x: phi(x, beta, c), GRID, **arguments)
    torch.testing.assert_close(found, rounded_off(plain, kinks, beta, c), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("name", "plain", "arguments", "kinks"), CASES)
def test_with_relu_in_place_of_phi_each_is_itself(
    name: str, plain: Callable[[Tensor], Tensor], arguments: dict[str, Any], kinks: list[float]
) -> None:
    steered_op = steered_op_of(name)
    torch.testing.assert_close(steered_op(torch.relu, GRID, **arguments), plain(GRID), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(5,), (4, 3), (4, 3, 2), (4, 3, 2, 2), (2, 3, 2, 2, 2)])
def test_prelu_has_a_slope_for_each_channel_of_dimension_1_or_one_for_all(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steered_op = FUNCTIONS[F.prelu][1]
    for values in ([0.3], [0.1, -0.4, 2.0]) if len(shape) > 1 else ([0.3],):
        weight = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(steered_op(torch.relu, x, weight), F.prelu(x, weight), rtol=0, atol=1e-14)


def test_the_slope_of_prelu_keeps_its_gradient() -> None:
    weight = slope(0.3).requires_grad_()
    value = FUNCTIONS[F.prelu][1](lambda x: phi(x, 0.7), GRID, weight)
    (gradient,) = torch.autograd.grad(value.sum(), weight)
    torch.testing.assert_close(gradient, (GRID - phi(GRID, 0.7)).sum().view(1))


def test_rrelu_in_training_mode_is_refused() -> None:
    with pytest.raises(ModelError, match=r"RReLU in training mode.*call network\.eval\(\)"):
        FUNCTIONS[F.rrelu][1](torch.relu, GRID, training=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "relu6", "hardtanh"])
def test_half_types_lose_no_more_than_their_own_rounding(name: str, dtype: torch.dtype) -> None:
    # Half types must be widened before x − a, not inside φ alone: the difference of two rounded φ made relu6(1000) 8
    # and hardtanh(1000) 0 in bfloat16.
    steered_op = steered_op_of(name)
    x = torch.cat([torch.linspace(-8, 8, 401), torch.tensor([100.1, 300.0, 1000.0])]).to(dtype)
    expected = steered_op(lambda v: phi(v, 0.9), x.double())
    found = steered_op(lambda v: phi(v, 0.9), x).double()
    worst = ((found - expected).abs() / (expected.abs() + 0.05)).max().item()
    assert worst <= torch.finfo(dtype).eps


# --- the tables ---


def test_every_in_place_function_is_known_to_be_one() -> None:
    x = torch.tensor([-2.0, 8.0])
    for function, (name, _) in FUNCTIONS.items():
        target = x.clone()
        arguments = {"prelu": (torch.full((1,), 0.25),), "hardtanh": (-1.0, 1.0)}.get(name, ())
        function(target, *arguments)
        assert function.__name__.endswith("_") == (not torch.equal(target, x)), function


def test_every_public_spelling_is_in_the_table() -> None:
    names = ["relu", "leaky_relu", "prelu", "rrelu", "relu6", "hardtanh"]
    places = [torch, F, Tensor, torch._C._nn]
    for name in [*names, *[f"{name}_" for name in names]]:
        for place in places:
            if hasattr(place, name):
                assert FUNCTIONS[getattr(place, name)][0] == name.rstrip("_"), (place, name)


@pytest.mark.parametrize(
    "module",
    [nn.ReLU(), nn.LeakyReLU(0.2), nn.PReLU(3, 0.4), nn.PReLU(), nn.RReLU(0.1, 0.4), nn.ReLU6(), nn.Hardtanh(-2, 3)],
)
def test_a_replaced_module_is_the_original_at_beta_1_and_steered_below(module: nn.Module) -> None:
    module.double().eval()
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    assert torch.equal(Activation(module, torch.relu)(x), module(x))
    shadowed = Activation(module, lambda v: v.clamp(min=0))
    assert shadowed.name == type(module).__name__.lower().replace("leakyrelu", "leaky_relu")
    torch.testing.assert_close(shadowed(x), module(x), rtol=0, atol=1e-14)
    assert (Activation(module, lambda v: phi(v, 0.5))(x) - module(x)).abs().max() > 0.05
    assert type(module) in MODULES
