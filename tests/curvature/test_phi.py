"""φ against Eq. 7 in 60 digits, its derivative, its bounds in closed form, and its behaviour in every dtype."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import harness.curvature.phi
from harness.curvature import blocks, piecewise_affine
from harness.curvature.phi import curve, curve_parameters, parametric, phi, plain, slope
from harness.errors import ModelError, SpecError

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
HALF = DTYPES[2:]
BETAS_BELOW_1 = [0.0, 0.3, 0.5, 0.9, 0.99, 0.9999, 1 - 2.0**-24, 1 - 2.0**-53]
"""β < 1, up to the float next to 1."""
CS = [0.0, 0.3, 0.5, 1.0]

unit = st.floats(0.0, 1.0)
below_one = st.floats(0.0, 1.0, exclude_max=True)
moderate = st.floats(-1e4, 1e4)


def eq_7(x: float, beta: float, c: float) -> mpmath.mpf:
    """Compute Eq. 7 as printed in the paper, in 60 digits."""
    with mpmath.workdps(60):
        x, beta, c = mpmath.mpf(x), mpmath.mpf(beta), mpmath.mpf(c)
        s = 1 - beta
        swish = x / (1 + mpmath.exp(-beta * x / s))
        return c * swish + (1 - c) * s * mpmath.log1p(mpmath.exp(x / s))


def grid(dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """Return [-1e4, 1e4] in even steps, and ± powers from the smallest numbers to 1e4."""
    powers = torch.logspace(-42, 4, 461, dtype=torch.float64)
    even = torch.linspace(-1e4, 1e4, 2001, dtype=torch.float64)
    return torch.cat([even, powers, -powers, torch.linspace(-30, 30, 6001, dtype=torch.float64)]).to(device, dtype)


def gradient(x: Tensor, beta: float, c: float) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(phi(x, beta, c).sum(), x)[0]


# --- the value ---


@settings(deadline=None, max_examples=200)
@given(moderate, below_one, unit)
def test_the_value_is_equation_7(x: float, beta: float, c: float) -> None:
    found = phi(torch.tensor(x, dtype=torch.float64), beta, c).item()
    assert abs(found - eq_7(x, beta, c)) <= 4e-15 * (abs(x) + 1 - beta)


@settings(deadline=None, max_examples=100)
@given(st.floats(-60, 60), below_one, unit)
def test_the_value_is_equation_7_around_the_kink(u: float, beta: float, c: float) -> None:
    x = u * (1 - beta)  # in units of the curve's width: where the softplus kernel changes its branch
    found = phi(torch.tensor(x, dtype=torch.float64), beta, c).item()
    assert abs(found - eq_7(x, beta, c)) <= 4e-15 * (abs(x) + 1 - beta)


@settings(deadline=None, max_examples=100)
@given(st.floats(-50, 50), st.floats(0.0, 0.999), unit)
def test_the_gradient_is_the_derivative_of_equation_7(u: float, beta: float, c: float) -> None:
    x = u * (1 - beta)
    with mpmath.workdps(60):
        expected = mpmath.diff(lambda v: eq_7(v, beta, c), mpmath.mpf(x), h=mpmath.mpf(10) ** -20)
    found = gradient(torch.tensor(x, dtype=torch.float64), beta, c).item()
    assert abs(found - expected) <= 1e-13


def test_c_is_one_half_by_default() -> None:
    x = grid(torch.float64)
    assert torch.equal(phi(x, 0.8), phi(x, 0.8, 0.5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("c", CS)
def test_beta_1_is_relu_bit_by_bit_and_its_gradient_too(dtype: torch.dtype, c: float) -> None:
    x = grid(dtype)
    assert torch.equal(phi(x, 1.0, c), torch.relu(x))
    assert torch.equal(gradient(x, 1.0, c), (x > 0).to(dtype))  # not 1/2 at 0, as a β close to 1 has


def test_special_cases_of_the_family() -> None:
    x = torch.linspace(-30, 30, 2001, dtype=torch.float64)
    assert torch.equal(phi(x, 0.0, 1.0), x / 2)
    torch.testing.assert_close(phi(x, 0.5, 1.0), torch.nn.functional.silu(x), rtol=0, atol=1e-14)
    torch.testing.assert_close(phi(x, 0.0, 0.0), x.exp().log1p(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shape_and_dtype_are_those_of_the_input(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.zeros(shape, dtype=dtype)
    for beta in (0.5, 1.0):
        assert phi(x, beta).shape == x.shape
        assert phi(x, beta).dtype == dtype
        assert gradient(x, beta, 0.5).dtype == dtype


def test_strides_do_not_matter_and_the_input_stays_as_it_is() -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    for view in (x.t(), x[:, ::2], x[:1].expand(6, 8), x.view(1, 6, 2, 4).to(memory_format=torch.channels_last)):
        for value, expected in (
            (phi(view, 0.7), phi(view.contiguous(), 0.7)),
            (gradient(view, 0.7, 0.5), gradient(view.contiguous(), 0.7, 0.5)),
        ):
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
    assert torch.equal(x, before)


# --- bounds in closed form, s = 1 − β ---


@settings(deadline=None, max_examples=60)
@given(below_one, unit)
def test_the_difference_to_relu_is_even_and_shrinks_like_s(beta: float, c: float) -> None:
    s = 1 - beta
    u = torch.linspace(0, 60, 601, dtype=torch.float64)
    differences = [phi(sign * u * s, beta, c) - torch.relu(sign * u * s) for sign in (1, -1)]
    expected = s * ((1 - c) * torch.log1p(torch.exp(-u)) - c * u * torch.sigmoid(-beta * u))
    for found in differences:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13 * s)


@settings(deadline=None, max_examples=60)
@given(st.floats(0.386, 0.9999))
def test_sup_norm_of_the_difference_to_relu(beta: float) -> None:
    x = torch.cat([torch.linspace(-60, 60, 24001, dtype=torch.float64) * (1 - beta), torch.zeros(1).double()])
    difference = (phi(x, beta) - torch.relu(x)).abs()
    assert difference.max().item() == pytest.approx(0.5 * math.log(2) * (1 - beta), rel=1e-12)
    assert difference.max() == difference[-1]  # at 0


def test_below_beta_0_385_the_largest_difference_to_relu_lies_elsewhere() -> None:
    x = torch.linspace(-60, 60, 24001, dtype=torch.float64)
    assert (phi(x, 0.38) - torch.relu(x)).abs().max() > 0.5 * math.log(2) * 0.62 * (1 + 1e-4)


@settings(deadline=None, max_examples=60)
@given(st.floats(0.0, 0.9999), unit)
def test_the_largest_curvature_is_at_0(beta: float, c: float) -> None:
    s = 1 - beta
    x = (torch.linspace(-60, 60, 4001, dtype=torch.float64) * s).requires_grad_()  # 0 among them
    (first,) = torch.autograd.grad(phi(x, beta, c).sum(), x, create_graph=True)
    second = torch.autograd.grad(first.sum(), x)[0].abs() if first.requires_grad else torch.zeros_like(x)
    assert second.max().item() == pytest.approx((1 - c + 2 * c * beta) / (4 * s), rel=1e-9, abs=1e-12)
    assert second.max() == second[2000]


def test_the_slope_leaves_0_to_1_a_little_and_is_one_half_at_0() -> None:
    slopes = gradient(torch.linspace(-3, 3, 60001, dtype=torch.float64), 0.9, 0.5)
    assert slopes.min().item() == pytest.approx(-0.027, abs=5e-4)
    assert slopes.max().item() == pytest.approx(1.027, abs=5e-4)
    for beta in BETAS_BELOW_1:  # so ReLU is never recovered below β = 1
        assert gradient(torch.zeros(1).double(), beta, 0.5).item() == 0.5
        assert phi(torch.zeros(1).double(), beta).item() > 0


# --- the derivative ---


@pytest.mark.parametrize("beta", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("c", CS)
def test_gradcheck_and_second_derivative(beta: float, c: float) -> None:
    x = torch.tensor([-7.0, -1.0, -0.1, 0.0, 1e-3, 0.2, 2.0, 9.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: phi(v, beta, c), x)
    assert torch.autograd.gradgradcheck(lambda v: phi(v, beta, c), x)


@pytest.mark.parametrize("c", CS)
@pytest.mark.parametrize("beta", BETAS_BELOW_1)
def test_the_gradient_is_the_same_with_and_without_a_graph(beta: float, c: float) -> None:
    x = grid(torch.float64).requires_grad_()
    upstream = torch.linspace(-2, 3, x.numel(), dtype=torch.float64)
    (plain,) = torch.autograd.grad(phi(x, beta, c), x, upstream)
    (graphed,) = torch.autograd.grad(phi(x, beta, c), x, upstream, create_graph=True)
    torch.testing.assert_close(plain, graphed, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        plain, upstream * slope(x.detach(), 1 / (1 - beta), beta / (1 - beta), c), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_but_the_input_is_kept_for_the_backward_pass(dtype: torch.dtype) -> None:
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(1000).to(dtype).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        phi(x, 0.9)
    assert [tensor.numel() for tensor in kept] == [1000]
    assert torch.equal(kept[0].to(dtype), x)
    if dtype not in HALF:
        assert kept[0].data_ptr() == x.data_ptr()


def test_per_sample_gradients_through_vmap() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def total(row: Tensor) -> Tensor:
        return phi(row, 0.7).sum()

    per_sample: Any = torch.func.vmap(torch.func.grad(total))
    torch.testing.assert_close(per_sample(x), gradient(x, 0.7, 0.5), rtol=0, atol=1e-14)


# --- dtypes ---


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_value_and_gradient_are_finite_up_to_1e4(dtype: torch.dtype, device: str) -> None:
    x = grid(dtype, device).requires_grad_()
    for beta in (*BETAS_BELOW_1, 1.0):
        for c in CS:
            value = phi(x, beta, c)
            assert value.isfinite().all(), (beta, c)
            for create_graph in (False, True):
                (found,) = torch.autograd.grad(value.sum(), x, create_graph=create_graph, retain_graph=True)
                assert found.isfinite().all(), (beta, c, create_graph)


@settings(deadline=None, max_examples=200)
@given(st.floats(-1e4, 1e4, width=32), below_one, unit)
def test_float32_is_finite_for_every_beta_below_1(x: float, beta: float, c: float) -> None:
    point = torch.tensor([x], dtype=torch.float32)
    assert phi(point, beta, c).isfinite()
    assert gradient(point, beta, c).isfinite()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("c", "tolerance"), [(0.0, 2e-7), (0.5, 5.5e-7), (1.0, 1.1e-6)])
def test_float32_against_float64(c: float, tolerance: float, device: str) -> None:
    x = grid(torch.float32, device)
    for beta in (*BETAS_BELOW_1[:-2], 1 - 1e-9):  # as close to 1 as a float32 network can tell from 1, and closer
        wide = x.double()
        assert (gradient(x, beta, c).double() - gradient(wide, beta, c)).abs().max() < tolerance
        error = (phi(x, beta, c).double() - phi(wide, beta, c)).abs()
        assert (error <= 4e-7 * (wide.abs() + 1 - beta)).all(), beta


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("c", CS)
def test_half_types_are_float32_rounded_once(dtype: torch.dtype, c: float, device: str) -> None:
    x = grid(dtype, device)
    for beta in BETAS_BELOW_1:
        assert torch.equal(phi(x, beta, c), phi(x.float(), beta, c).to(dtype))
        assert torch.equal(gradient(x, beta, c), gradient(x.float(), beta, c).to(dtype))


# --- one curve for all images, or one for each ---

Act = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
ACTS: list[Act] = [
    piecewise_affine.relu,
    partial(piecewise_affine.leaky_relu, negative_slope=0.1),
    partial(piecewise_affine.prelu, weight=torch.tensor([0.25])),
    piecewise_affine.relu6,
    piecewise_affine.hardtanh,
]
points = st.tuples(st.floats(0.0, 1 - 2.0**-24), st.one_of(st.sampled_from(CS), unit))
shapes = st.sampled_from([(1,), (3,), (31,), (33,), (5, 7), (2, 3, 4), (3, 5, 5)])


def value_and_gradient(act: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(x), and the gradient of a sum of f(x) whose weights have all signs."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = act(x)
    upstream = torch.linspace(-2, 3, x[0].numel(), dtype=x.dtype).view(x[0].shape).expand(x.shape)
    return y.detach(), torch.autograd.grad(y, x, upstream)[0]


def rows(steerings: list[tuple[float, float]], dtype: torch.dtype) -> Tensor:
    return torch.tensor([curve_parameters(beta, c) for beta, c in steerings], dtype=dtype)


@settings(deadline=None, max_examples=150)
@given(st.lists(points, min_size=1, max_size=6), shapes, st.sampled_from(ACTS), st.integers(0, 2**31), st.data())
def test_an_image_has_the_same_bits_alone_mixed_and_elsewhere(
    steerings: list[tuple[float, float]], shape: tuple[int, ...], act: Act, seed: int, data: st.DataObject
) -> None:
    """Value and gradient, with the curve of β and c and with the parametric one."""
    n = len(steerings)
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    generator = torch.Generator().manual_seed(seed)
    widths = torch.tensor([1 - beta for beta, _ in steerings]).view(n, *[1] * len(shape))
    scale = 8.0 * widths if data.draw(st.booleans()) else torch.ones(())
    x = (torch.randn(n, *shape, generator=generator) * scale).to(dtype)
    if len(shape) == 3 and data.draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    table = rows(steerings, torch.float64 if dtype == torch.float64 else torch.float32)
    mixed = value_and_gradient(lambda v: act(partial(parametric, curve_parameters=table), v), x)
    order = torch.tensor(data.draw(st.permutations(range(n))))
    moved = value_and_gradient(lambda v: act(partial(parametric, curve_parameters=table[order]), v), x[order])
    with torch.no_grad():
        assert torch.equal(act(partial(parametric, curve_parameters=table), x), mixed[0])
    for image, (beta, c) in enumerate(steerings):
        together = value_and_gradient(lambda v: act(partial(curve, beta=beta, c=c), v), x)  # noqa: B023
        alone = value_and_gradient(lambda v: act(partial(curve, beta=beta, c=c), v), x[image : image + 1])  # noqa: B023
        one = value_and_gradient(lambda v: act(partial(parametric, curve_parameters=table[image]), v), x)  # noqa: B023
        place = order.tolist().index(image)
        for k in (0, 1):
            for other in (together[k][image], alone[k][0], one[k][image], moved[k][place]):
                assert torch.equal(other, mixed[k][image])


@pytest.mark.parametrize("block", [64, 192, 1000])
def test_bits_do_not_depend_on_the_size_of_a_block(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    x = torch.randn(5, 3, 9, 11, generator=torch.Generator().manual_seed(0)).mul_(0.2)
    table = rows([(0.9, 0.5), (0.3, 0.0), (0.99, 1.0), (0.5, 0.3), (0.0, 0.5)], torch.float32)
    for v in (x, x.to(memory_format=torch.channels_last)):
        for act in (partial(curve, beta=0.9, c=0.5), partial(parametric, curve_parameters=table)):
            whole = value_and_gradient(act, v)
            with monkeypatch.context() as patch:
                patch.setattr(blocks, "BLOCK", block)
                parts = value_and_gradient(act, v)
            for a, b in zip(whole, parts, strict=True):
                assert torch.equal(a, b)
            assert parts[0].stride() == v.stride()


def test_the_cubic_is_log1p() -> None:
    """At c = 0 and x ≤ 0, φ is (1 − β)·log1p(exp(x/(1 − β)))."""
    x = -torch.linspace(0, 40, 400_001)
    expected = x.double().exp().log1p()
    assert (curve(x, 0.0, 0.0).double() - expected).abs().max() < 2.5e-7
    assert (phi(x, 0.0, 0.5).double() - (0.5 * expected + 0.25 * x.double())).abs().max() < 1.3e-7 * 41


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", CS)
def test_in_blocks_and_in_plain_operations_it_is_the_same_curve(dtype: torch.dtype, c: float) -> None:
    x = grid(dtype)
    for beta in BETAS_BELOW_1[:-2]:
        columns = blocks.Columns(*rows([(beta, c)], dtype)[0].unbind())
        bound = (x.abs() + 1 - beta) * (5e-7 if dtype == torch.float32 else 4e-15)
        assert ((curve(x, beta, c) - plain(x, columns)).abs() <= bound).all()


def test_another_number_of_rows_than_images_is_refused() -> None:
    table = rows([(0.9, 0.5)] * 4, torch.float32)
    for shape in ((8, 3), (1, 4), ()):
        with pytest.raises(ModelError, match=r"mixed β: expected an activation of 4 images.*found shape"):
            parametric(torch.zeros(shape), table)


# --- what is refused ---


@pytest.mark.parametrize("value", [-1e-9, 1.0000001, math.nan, math.inf, "0.5", None])
@pytest.mark.parametrize("name", ["beta", "c"])
def test_beta_and_c_outside_0_to_1_are_refused(name: str, value: Any) -> None:
    arguments: dict[str, Any] = {"beta": 0.5, "c": 0.5} | {name: value}
    with pytest.raises(SpecError) as error:
        phi(torch.zeros(1), **arguments)
    assert str(error.value).startswith(f"{name}: ")
    assert "[0, 1]" in str(error.value)
    assert repr(value) in str(error.value)


@given(unit, unit)
def test_all_of_0_to_1_is_accepted(beta: float, c: float) -> None:
    phi(torch.zeros(1), beta, c)
    phi(torch.zeros(1), int(beta), int(c))


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(harness.curvature.phi).failed == 0
