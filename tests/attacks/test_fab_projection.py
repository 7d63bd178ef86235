"""The projections of FAB: equal to the library's, the shortest by first principles, and used by the attack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.hyperplanes import CLOSE, DEGENERATE, assert_reached, rows
from helpers.pretend_gpu import PretendGpu
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyautoattack import fab_projections
from scipy.optimize import brentq, linprog
from torch import Tensor

from harness.attacks import autoattack, fab_projection
from harness.attacks.fab import PROJECT
from harness.attacks.norms import Norm

OURS: dict[Norm, Any] = {"Linf": fab_projection.linf, "L2": fab_projection.l2, "L1": fab_projection.l1}
LIBRARY: dict[Norm, Any] = {
    "Linf": fab_projections.projection_linf,
    "L2": fab_projections.projection_l2,
    "L1": fab_projections.projection_l1,
}
norms = pytest.mark.parametrize("norm", list(OURS))
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def counter(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[int]:
    """Count the calls of a function from now on: a list that grows by one for each."""
    calls: list[int] = []
    project = getattr(owner, name)

    def counted(*given_: Any, **more: Any) -> Any:
        calls.append(1)
        return project(*given_, **more)

    monkeypatch.setattr(owner, name, counted)
    return calls


@norms
@dtypes
@given(n=st.integers(1, 7), d=st.integers(1, 80), seed=st.integers(0, 2**32 - 1), ties=st.booleans())
@example(n=3, d=3072, seed=0, ties=False)
@settings(max_examples=150, deadline=None)
def test_equal_to_the_library(norm: Norm, dtype: torch.dtype, n: int, d: int, seed: int, ties: bool) -> None:
    given_ = rows(n, d, seed, ties and norm != "L1", dtype)  # which of two equal weights goes first is L1's own choice
    kept = [tensor.clone() for tensor in given_]
    ours = OURS[norm](*given_)
    assert ours.dtype == dtype
    assert all(torch.equal(now, then) for now, then in zip(given_, kept, strict=True))
    exact = LIBRARY[norm](*(tensor.double() for tensor in given_))
    torch.testing.assert_close(ours.double(), exact, atol=CLOSE[dtype], rtol=0)


@norms
@given(n=st.integers(1, 7), seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.5, 2.0, 5.0]))
@example(n=3, seed=0, scale=5.0)
@settings(max_examples=80, deadline=None)
def test_outside_the_box_equal_to_the_library(norm: Norm, n: int, seed: int, scale: float) -> None:
    """Normalised images are outside; there the walls may be behind a point."""
    points, normals, offsets = rows(n, 64, seed)
    points = scale * (points - 0.5)
    torch.testing.assert_close(OURS[norm](points, normals, offsets), LIBRARY[norm](points, normals, offsets))


@norms
@dtypes
@given(d=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), ties=st.booleans())
@settings(max_examples=60, deadline=None)
def test_in_the_box_and_on_the_hyperplane_or_in_the_corner_nearest_to_it(
    norm: Norm, dtype: torch.dtype, d: int, seed: int, ties: bool
) -> None:
    points, normals, offsets = rows(6, d, seed, ties, dtype)
    assert_reached(points + OURS[norm](points, normals, offsets), normals, offsets)


@given(d=st.integers(1, 12), seed=st.integers(0, 2**32 - 1), ties=st.booleans())
@settings(max_examples=40, deadline=None)
def test_linf_is_the_shortest_by_linear_programming(d: int, seed: int, ties: bool) -> None:
    """min r such that |z − t| ≤ r, <w, z> = b and 0 ≤ z ≤ 1."""
    for t, w, b in zip(*rows(3, d, seed, ties), strict=True):
        move = fab_projection.linf(t[None], w[None], b[None])[0]
        one = torch.eye(d, dtype=t.dtype)
        r = torch.ones(d, 1, dtype=t.dtype)
        best = linprog(
            [0.0] * d + [1.0],
            A_ub=torch.cat([torch.cat([one, -r], 1), torch.cat([-one, -r], 1)]).tolist(),
            b_ub=torch.cat([t, -t]).tolist(),
            A_eq=[[*w.tolist(), 0.0]],
            b_eq=[b.item()],
            bounds=[(0, 1)] * d + [(0, None)],
        )
        if best.status == 0:
            assert move.abs().max().item() == pytest.approx(best.fun, abs=1e-7)
        else:
            assert best.status == 2  # out of reach
            corner = torch.where(w == 0, t, (w * (b - w @ t) > 0).to(t.dtype))
            torch.testing.assert_close(t + move, corner)


@given(d=st.integers(1, 12), seed=st.integers(0, 2**32 - 1), ties=st.booleans())
@settings(max_examples=40, deadline=None)
def test_l1_is_the_shortest_by_linear_programming(d: int, seed: int, ties: bool) -> None:
    """min Σ up + down such that <w, t + up − down> = b, 0 ≤ up ≤ 1 − t and 0 ≤ down ≤ t."""
    for t, w, b in zip(*rows(3, d, seed, ties), strict=True):
        move = fab_projection.l1(t[None], w[None], b[None])[0]
        best = linprog(
            [1.0] * 2 * d,
            A_eq=[[*w.tolist(), *(-w).tolist()]],
            b_eq=[(b - w @ t).item()],
            bounds=[(0, room) for room in [*(1 - t).tolist(), *t.tolist()]],
        )
        if best.status == 0:
            assert move.abs().sum().item() == pytest.approx(best.fun, abs=1e-7)
        else:
            assert best.status == 2  # out of reach
            corner = torch.where(w == 0, t, (w * (b - w @ t) > 0).to(t.dtype))
            torch.testing.assert_close(t + move, corner)


@given(d=st.integers(1, 12), seed=st.integers(0, 2**32 - 1), ties=st.booleans())
@settings(max_examples=60, deadline=None)
def test_l2_is_the_shortest_by_its_optimality_conditions(d: int, seed: int, ties: bool) -> None:
    """z = clip(t − α w, 0, 1) with the α that puts it on the hyperplane (Karush, Kuhn and Tucker)."""
    for t, w, b in zip(*rows(3, d, seed, ties), strict=True):

        def height(alpha: float, t: Tensor = t, w: Tensor = w, b: Tensor = b) -> float:
            return float(w @ (t - alpha * w).clamp(0, 1) - b)

        if height(-11) <= 0 or height(11) >= 0:  # |w| ≥ 0.1: all are at a wall by then
            continue
        best = (t - brentq(height, -11, 11, xtol=1e-14) * w).clamp(0, 1)
        torch.testing.assert_close(t + fab_projection.l2(t[None], w[None], b[None])[0], best, atol=1e-9, rtol=0)


NAN = float("nan")
OTHERWISE = {
    ("Linf", "NaN in the normal"): [0.75, 0.0, 1.0, -1.0],  # it does not count; the library goes down there
    ("L2", "infinite point"): [NAN] * 4,
}
"""Rows that are not finite, which the library takes to some corner, or, from an infinite point, out of the box."""


@norms
@dtypes
def test_degenerate_rows_are_treated_as_the_library_does(norm: Norm, dtype: torch.dtype) -> None:
    """All in one batch, where NaN and infinity must not spread; and NaN where the library has NaN."""
    given_ = [torch.tensor(values, dtype=dtype) for values in zip(*DEGENERATE.values(), strict=True)]
    ours, theirs = OURS[norm](*given_), LIBRARY[norm](*given_)
    for name, our, their in zip(DEGENERATE, ours, theirs, strict=True):
        expected = torch.tensor(OTHERWISE[norm, name], dtype=dtype) if (norm, name) in OTHERWISE else their
        assert torch.allclose(our, expected, atol=1e-6, rtol=0, equal_nan=True), f"{name}: {our}, not {expected}"


def test_in_l1_all_are_sorted_only_if_the_first_do_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    points, normals, offsets = rows(12, 3072, 8)
    near = (normals * points).sum(1) + 0.1 * (offsets - (normals * points).sum(1))
    expected = LIBRARY["L1"](points, normals, near)
    assert 20 < (expected != 0).sum(1).max() < fab_projection.FIRST
    sorts = counter(monkeypatch, torch.Tensor, "argsort")
    torch.testing.assert_close(fab_projection.l1(points, normals, near), expected)
    assert not sorts
    far = torch.where(torch.arange(12) == 5, offsets, near)
    torch.testing.assert_close(fab_projection.l1(points, normals, far), LIBRARY["L1"](points, normals, far))
    assert sorts


@norms
def test_points_that_share_a_hyperplane(norm: Norm) -> None:
    points, normals, offsets = rows(20, 30, 4)
    both = torch.stack([points, points.flip(1)])
    for moves, one in zip(OURS[norm](both, normals, offsets), both, strict=True):
        assert torch.equal(moves, OURS[norm](one, normals, offsets))


@norms
def test_no_rows(norm: Norm) -> None:
    assert OURS[norm](torch.rand(0, 5), torch.rand(0, 5), torch.rand(0)).shape == (0, 5)


@norms
def test_same_bits_alone_in_company_and_again(norm: Norm) -> None:
    given_ = rows(40, 300, 5, dtype=torch.float32)
    together = OURS[norm](*given_)
    assert torch.equal(together, OURS[norm](*given_))
    for i in range(0, 40, 7):
        assert torch.equal(together[i : i + 2], OURS[norm](*(tensor[i : i + 2] for tensor in given_)))
    turned = OURS[norm](*(tensor.flip(0) for tensor in given_)).flip(0)
    assert torch.equal(together, turned)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_few_steps_also_where_weights_span_many_orders_of_magnitude(
    norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = counter(monkeypatch, torch, "equal")
    drawn = torch.Generator().manual_seed(0)
    points = torch.rand(100, 3072, generator=drawn) ** 8
    normals = torch.randn(100, 3072, generator=drawn).sign() * 10 ** (12 * torch.rand(100, 3072, generator=drawn) - 8)
    coverage_of = normals.clamp(min=0).sum(1) - (normals * points).sum(1)
    offsets = (normals * points).sum(1) + torch.rand(100, generator=drawn) * coverage_of
    moves = OURS[norm](points, normals, offsets)
    assert len(steps) <= fab_projection.STEPS
    left = ((normals * (points + moves)).double().sum(1) - offsets).abs() / normals.abs().double().sum(1)
    assert left.max() < 1e-5


@norms
def test_other_devices_do_not_look_whether_all_have_arrived_and_come_to_the_same(norm: Norm) -> None:
    given_ = rows(20, 300, 6)
    gpu = PretendGpu()
    with gpu:
        there = OURS[norm](*map(gpu.tensor, given_))
    assert not gpu.waits
    assert not gpu.strays
    torch.testing.assert_close(there.here, OURS[norm](*given_), atol=1e-12, rtol=0)


@norms
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_as_on_the_cpu(norm: Norm) -> None:
    given_ = rows(50, 300, 1, dtype=torch.float32)
    there = OURS[norm](*(tensor.cuda() for tensor in given_))
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), OURS[norm](*given_), atol=2e-4, rtol=0)


@pytest.mark.parametrize(("norm", "name"), [("Linf", "linf"), ("L2", "l2"), ("L1", "l1")])
def test_the_estimate_projects_two_points_an_image(norm: Norm, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[torch.Size] = []
    own = PROJECT[norm]

    def seen(points: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
        shapes.append(points.shape)
        return own(points, normals, offsets)

    monkeypatch.setitem(PROJECT, norm, seen)
    autoattack.project(torch.rand(3, 1, 8, 8), norm)
    assert own is getattr(fab_projection, name)
    assert shapes == [(2, 3, 64)]
