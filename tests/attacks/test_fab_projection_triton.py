"""FAB's projections as one kernel: equal to the reference in Triton's interpreter, and compiled for GPUs without one.

What a GPU computes is tested where there is one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from helpers.hyperplanes import CLOSE, DEGENERATE, assert_reached, rows
from helpers.interpreted import Interpreter
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.attacks import fab, fab_projection
from harness.attacks.norms import Norm

triton = pytest.importorskip("triton")

REFERENCE = {"linf": fab_projection.linf, "l2": fab_projection.l2}

names = pytest.mark.parametrize("name", REFERENCE)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    with Interpreter() as started:
        yield started


@names
@dtypes
@given(
    n=st.integers(1, 4),
    d=st.integers(1, 80),
    seed=st.integers(0, 2**32 - 1),
    ties=st.booleans(),
    chunk=st.sampled_from([None, 16]),
)
@example(n=2, d=1, seed=0, ties=False, chunk=None)
@example(n=2, d=5001, seed=0, ties=False, chunk=None)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equal_to_the_reference(
    interpreter: Interpreter, name: str, dtype: torch.dtype, n: int, d: int, seed: int, ties: bool, chunk: int | None
) -> None:
    given_ = rows(n, d, seed, ties, dtype)
    moves = interpreter.project(name, *given_, chunk=chunk)
    assert moves.dtype == dtype
    torch.testing.assert_close(moves, REFERENCE[name](*given_), atol=CLOSE[dtype], rtol=0)


@names
@given(n=st.integers(1, 4), seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.5, 2.0, 5.0]))
@settings(max_examples=30, deadline=None)
def test_outside_the_box_equal_to_the_reference(
    interpreter: Interpreter, name: str, n: int, seed: int, scale: float
) -> None:
    points, normals, offsets = rows(n, 30, seed)
    given_ = scale * (points - 0.5), normals, offsets
    torch.testing.assert_close(interpreter.project(name, *given_), REFERENCE[name](*given_))


@names
@dtypes
@given(d=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), ties=st.booleans())
@settings(max_examples=20, deadline=None)
def test_in_the_box_and_on_the_hyperplane_or_in_the_corner_nearest_to_it(
    interpreter: Interpreter, name: str, dtype: torch.dtype, d: int, seed: int, ties: bool
) -> None:
    points, normals, offsets = rows(6, d, seed, ties, dtype)
    assert_reached(points + interpreter.project(name, points, normals, offsets), normals, offsets)


@names
@dtypes
def test_degenerate_rows_are_treated_as_the_reference_does(
    interpreter: Interpreter, name: str, dtype: torch.dtype
) -> None:
    given_ = [torch.tensor(values, dtype=dtype) for values in zip(*DEGENERATE.values(), strict=True)]
    ours, theirs = interpreter.project(name, *given_), REFERENCE[name](*given_)
    for case, our, their in zip(DEGENERATE, ours, theirs, strict=True):
        assert torch.allclose(our, their, atol=1e-6, rtol=0, equal_nan=True), f"{case}: {our}, not {their}"


@names
@pytest.mark.parametrize("offset", [1e-30, 1e30, -1e30, 3e38])
def test_offsets_of_any_size(interpreter: Interpreter, name: str, offset: float) -> None:
    points, normals, offsets = rows(3, 17, 2, dtype=torch.float32)
    given_ = points, normals, torch.full_like(offsets, offset)
    torch.testing.assert_close(interpreter.project(name, *given_), REFERENCE[name](*given_), atol=2e-4, rtol=0)


@names
def test_weights_over_many_orders_of_magnitude(interpreter: Interpreter, name: str) -> None:
    drawn = torch.Generator().manual_seed(0)
    points = torch.rand(4, 3072, generator=drawn) ** 8
    normals = torch.randn(4, 3072, generator=drawn).sign() * 10 ** (12 * torch.rand(4, 3072, generator=drawn) - 8)
    height = (normals * points).sum(1)
    offsets = height + torch.rand(4, generator=drawn) * (normals.clamp(min=0).sum(1) - height)
    moves = interpreter.project(name, points, normals, offsets)
    left = ((normals * (points + moves)).double().sum(1) - offsets).abs() / normals.abs().double().sum(1)
    assert left.max() < 1e-5


@names
def test_two_points_share_a_hyperplane_in_one_launch(interpreter: Interpreter, name: str) -> None:
    points, normals, offsets = rows(5, 30, 4)
    both = torch.stack([points, points.flip(1)])
    together = interpreter.project(name, both, normals, offsets)
    for moves, one in zip(together, both, strict=True):
        assert torch.equal(moves, interpreter.project(name, one, normals, offsets))
    expanded = points.expand(2, *points.shape)
    assert torch.equal(*interpreter.project(name, expanded, normals, offsets))


@names
def test_no_rows(interpreter: Interpreter, name: str) -> None:
    assert interpreter.project(name, torch.rand(0, 5), torch.rand(0, 5), torch.rand(0)).shape == (0, 5)


@names
def test_a_row_does_not_depend_on_the_others(interpreter: Interpreter, name: str) -> None:
    """To the last bit, whatever they hold, and wherever it stands."""
    given_ = rows(6, 300, 5, dtype=torch.float32)
    together = interpreter.project(name, *given_)
    assert torch.equal(together[3:5], interpreter.project(name, *(tensor[3:5] for tensor in given_)))
    assert torch.equal(together, interpreter.project(name, *(tensor.flip(0) for tensor in given_)).flip(0))
    broken = [tensor.clone() for tensor in given_]
    broken[0][0], broken[1][1], broken[2][2] = torch.nan, torch.inf, torch.nan
    assert torch.equal(together[3:], interpreter.project(name, *broken)[3:])


@pytest.mark.parametrize("euclidean", [False, True])
@pytest.mark.parametrize("number", ["fp32", "fp64"])
@pytest.mark.parametrize(("hyperplanes", "size", "block"), [(1, 1, 1), (9, 64, 64), (64, 150_528, 4096)])
def test_it_compiles_for_a_gpu(euclidean: bool, number: str, hyperplanes: int, size: int, block: int) -> None:
    """The compiler needs none; Triton makes a constant of a number that is 1."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from harness.attacks import fab_projection_triton

    kernel = fab_projection_triton._project
    constants = {"EUCLIDEAN": euclidean, "NEGLIGIBLE": 1e-8, "STEPS": 20, "BLOCK": block}
    constants |= {name: 1 for name, value in (("hyperplanes", hyperplanes), ("size", size)) if value == 1}
    types = dict.fromkeys(("points", "normals", "offsets", "moves"), f"*{number}") | {
        "hyperplanes": "i32",
        "size": "i32",
    }
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]


@names
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("d", [1, 300, 3072, 9001])
def test_on_a_gpu_as_the_reference_on_the_cpu(name: str, d: int) -> None:
    from harness.attacks import fab_projection_triton

    given_ = rows(50, d, 1, dtype=torch.float32)
    there: Tensor = getattr(fab_projection_triton, name)(*(tensor.cuda() for tensor in given_))
    torch.testing.assert_close(there.cpu(), REFERENCE[name](*given_), atol=2e-4, rtol=0)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_gpus_with_triton_take_the_kernel_and_all_else_the_reference(
    norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.attacks import fab_projection_triton

    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    kernel = {"Linf": fab_projection_triton.linf, "L2": fab_projection_triton.l2, "L1": fab_projection.l1}[norm]
    monkeypatch.setattr(fab_projection_triton, "compiles", lambda device: True)
    assert fab.projection(norm, cpu) is fab.PROJECT[norm]
    assert fab.projection(norm, gpu) is kernel
    monkeypatch.setattr(fab, "find_spec", lambda name: None)
    assert fab.projection(norm, gpu) is fab.PROJECT[norm]
    monkeypatch.undo()
    monkeypatch.setattr(fab_projection_triton, "compiles", lambda device: False)
    assert fab.projection(norm, gpu) is fab.PROJECT[norm]


def test_where_triton_does_not_compile_a_warning_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.attacks import fab_projection_triton

    def fails(*given_: Tensor) -> Tensor:
        raise RuntimeError("Failed to find C compiler.\nPlease specify …")

    monkeypatch.setattr(fab_projection_triton, "linf", fails)
    with pytest.warns(UserWarning, match=r"^FAB takes longer: .*RuntimeError: Failed .*\); install a C compiler$"):
        assert not fab_projection_triton.compiles.__wrapped__(torch.device("cpu"))


def test_memory_that_is_short_is_no_fault_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.attacks import fab_projection_triton

    def full(*given_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fab_projection_triton, "linf", full)
    with pytest.raises(torch.OutOfMemoryError):
        fab_projection_triton.compiles.__wrapped__(torch.device("cpu"))


def test_on_a_cpu_triton_is_not_imported() -> None:
    code = (
        "import sys, torch; from harness.attacks import autoattack; autoattack.project(torch.rand(2, 1, 4, 4), 'L2'); "
        "sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
