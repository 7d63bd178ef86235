"""SiLU and GELU steered along c = 1: against φ, their limits, and networks that call them in every way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import mapping
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from harness import pipeline
from harness.api.records import Steering
from harness.config.benchmark import parse_benchmark
from harness.curvature.activation_names import STEERED
from harness.curvature.families import FAMILIES
from harness.curvature.phi import phi
from harness.curvature.smooth import NATIVE, dilated, original_op, shadow_op, with_plain_silu
from harness.curvature.steering import steer
from harness.datasets.digits import Digits
from harness.errors import IncompleteSteering, NothingToSteer, SpecError
from harness.leaderboard import flags
from harness.scheduling.grid import grid

GRID = torch.linspace(-30, 30, 2401, dtype=torch.float64)
KINDS = ("silu", "gelu", "gelu_tanh")
X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class SwishFunction(torch.autograd.Function):
    """x·σ(x) as some networks have it: hidden in an autograd function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        s = torch.sigmoid(x)
        return grad * s * (1 + x * (1 - s))


class CustomSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return SwishFunction.apply(x)  # type: ignore[no-any-return]


class Call(nn.Module):
    """A function as a module; the buffer keeps it from being taken for a custom swish."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("buffer", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def network(middle: nn.Module, classes: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), middle, nn.Linear(8, classes)).double().eval()


STYLES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "nn.SiLU": (nn.SiLU, "silu"),
    "nn.SiLU in place": (lambda: nn.SiLU(inplace=True), "silu"),
    "F.silu": (lambda: Call(F.silu), "silu"),
    "F.silu in place": (lambda: Call(lambda x: F.silu(x, inplace=True)), "silu"),
    "custom swish": (CustomSwish, "silu"),
    "nn.GELU": (nn.GELU, "gelu"),
    "nn.GELU tanh": (lambda: nn.GELU("tanh"), "gelu_tanh"),
    "F.gelu": (lambda: Call(F.gelu), "gelu"),
}


# --- the curve ---


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.8, 0.99])
def test_silu_is_phi_with_c_1(beta: float) -> None:
    torch.testing.assert_close(dilated(GRID, "silu", beta), phi(GRID, beta, 1.0), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.64, 0.9])
@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh"])
def test_gelu_stays_near_phi_with_c_1(kind: Any, beta: float) -> None:
    """The distance 0.0148 at the native β shrinks and grows with the dilation."""
    bound = 0.0148 * min((0.64 / 0.36) / (beta / (1 - beta)), 1e9) if beta else 1e-12
    assert (dilated(GRID, kind, beta) - phi(GRID, beta, 1.0)).abs().max() <= bound * 1.05


@pytest.mark.parametrize("kind", KINDS)
def test_the_native_beta_is_the_activation_bit_by_bit_and_the_ends_are_relu_and_half_x(kind: Any) -> None:
    native = NATIVE[kind.partition("_")[0]]
    assert torch.equal(dilated(GRID, kind, native), original_op(GRID, kind))
    assert torch.equal(dilated(GRID, kind, 1.0), torch.relu(GRID))
    assert torch.equal(dilated(GRID, kind, 0.0), GRID / 2)
    near = dilated(GRID, kind, native + 1e-7)
    torch.testing.assert_close(near, original_op(GRID, kind), atol=1e-6, rtol=0)
    assert (dilated(GRID, kind, 0.9999) - torch.relu(GRID)).abs().max() < 1e-3


@pytest.mark.parametrize("beta", [0.2, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_right_and_half_types_are_float32_rounded(kind: Any, beta: float) -> None:
    x = torch.linspace(-3, 3, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dilated(x, kind, beta), (x,))
    half = GRID.bfloat16()
    assert torch.equal(dilated(half, kind, beta), dilated(half.float(), kind, beta).bfloat16())


@pytest.mark.parametrize("kind", KINDS)
def test_the_shadow_op_computes_the_same(kind: Any) -> None:
    x = torch.linspace(-200, 200, 4001)
    torch.testing.assert_close(shadow_op(x, kind), original_op(x, kind), atol=1e-6, rtol=1e-5)


# --- networks ---


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_steered(style: str) -> None:
    make, kind = STYLES[style]
    oracle = network(Call(lambda x: dilated(x, kind, 0.8)))  # type: ignore[arg-type]
    steered = steer(network(make()), 0.8, example=X, family="smooth")
    torch.testing.assert_close(steered(X), oracle(X), atol=1e-12, rtol=0)
    assert steered.coverage is not None
    assert (steered.coverage.sites, steered.coverage.steered) == (1, 1)
    assert steered.coverage.native == NATIVE[kind.partition("_")[0]]


@pytest.mark.parametrize("style", [style for style in STYLES if style != "custom swish"])
def test_the_native_beta_is_the_plain_network_bit_by_bit(style: str) -> None:
    make, kind = STYLES[style]
    plain = network(make())
    steered = steer(plain, NATIVE[kind.partition("_")[0]], example=X, family="smooth")
    assert torch.equal(steered(X.clone()), plain(X.clone()))


def test_a_custom_swish_is_recognised_by_what_it_computes_and_its_network_shares_the_weights() -> None:
    plain = network(CustomSwish())
    canonical = with_plain_silu(plain)
    assert isinstance(canonical, nn.Sequential)
    assert isinstance(canonical[1], nn.SiLU)
    assert canonical[0].weight is plain[0].weight
    assert isinstance(plain[1], CustomSwish)
    tanh = network(nn.Tanh())
    assert with_plain_silu(tanh) is tanh


def test_an_activation_of_the_outputs_is_skipped() -> None:
    class Mapped(nn.Module):
        """A map of the logits, as in MixedNUTS; not a hidden activation."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = network(nn.GELU())

        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(self.inner(x) - 0.1)

    plain = Mapped()
    steered = steer(plain, 0.9, example=X, family="smooth")
    assert steered.coverage is not None
    assert (steered.coverage.steered, steered.coverage.kinds) == (1, {"gelu": 2})
    oracle = network(Call(lambda x: dilated(x, "gelu", 0.9)))
    torch.testing.assert_close(steered(X), F.gelu(oracle(X) - 0.1))


def test_relu_is_another_family() -> None:
    mixed = nn.Sequential(network(nn.ReLU(), 3), network(nn.SiLU()))
    steered = steer(mixed, 0.9, example=X, family="smooth")
    assert steered.coverage is not None
    assert steered.coverage.kinds == {"silu": 1, "relu": 1}
    with pytest.raises(NothingToSteer, match=r"smooth family is SiLU and GELU.*it uses relu ×1"):
        steer(network(nn.ReLU()), 0.9, example=X, family="smooth")


def test_activations_without_a_common_native_beta_are_refused() -> None:
    both = nn.Sequential(network(nn.GELU(), 3), network(nn.SiLU()))
    with pytest.raises(IncompleteSteering, match=r"gelu ×1, silu ×1.*different β.*one smooth activation"):
        steer(both, 0.9, example=X, family="smooth")


def test_a_call_below_python_is_refused() -> None:
    with pytest.raises(IncompleteSteering, match="silu ×1 escaped"):
        steer(network(Call(torch.ops.aten.silu)), 0.9, example=X, family="smooth")


def test_the_smooth_family_is_steered_along_c_1_at_all_sites() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [({"c": 0.5}, "found c = 0.5"), ({"sites": "modules"}, "'modules'")]
    for arguments, found in wrong:
        with pytest.raises(SpecError, match=f"family: smooth.*c = 1.*all sites.*{found}"):
            steer(network(nn.SiLU()), 0.9, family="smooth", **arguments)
    with pytest.raises(SpecError, match=r"family: .*'relu' or 'smooth'.*'silu'"):
        steer(network(nn.SiLU()), 0.9, family="silu")  # type: ignore[arg-type]


# --- benchmarks ---


def test_the_flags_know_the_steered_activations() -> None:
    for name, family in FAMILIES.items():
        assert STEERED[name] == set(family.native)


def test_the_baseline_of_the_grid_is_the_native_beta() -> None:
    points = grid([0.3, 0.5, 0.9, 1.0], [1.0], "all", "smooth", 0.5)
    assert [point.beta for point in points] == [0.5, 1.0, 0.9, 0.3]
    assert [point.is_baseline for point in points] == [True, False, False, False]
    assert points[0].identity() == "baseline"
    assert points[1].identity() == [1.0, 1.0, "all", "smooth"]
    assert Steering(0.9).identity() == [0.9, 0.5, "all"]


def test_a_benchmark_of_a_silu_network(here: Path) -> None:
    """From YAML to leaderboard: the baseline is β = 0.5, and its bits are the plain network's."""
    save_file(silu_network().state_dict(), here / "silu.safetensors")
    fields = mapping(
        name="silu",
        models=[SILU],
        dataset={"kind": "digits", "n": 20},
        steering={"beta": [0.4, 0.5, 0.7], "family": "smooth"},
        executor={"kind": "inline"},
    )
    [entry] = pipeline.entries(parse_benchmark(fields), runs="runs")
    assert sorted(score.steering.beta for score in entry.scores) == [0.4, 0.5, 0.7]
    (baseline,) = (score for score in entry.scores if score.steering.is_baseline)
    assert baseline.steering.beta == 0.5
    batch = Digits(n=20).open().read(tuple(range(20)))
    with torch.no_grad():
        expected = silu_network().eval()(batch.x).argmax(1) == batch.y
    np.testing.assert_array_equal(baseline.clean, expected.float().numpy())
    table = pipeline.run(parse_benchmark(fields), runs="runs")
    rows = table[table.status == "ok"]
    assert set(rows.family) == {"smooth"}
    assert rows[rows.p_holm.isna()].beta.tolist() == [0.5]


def silu_network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.SiLU(), nn.Linear(16, 10))


SILU = {
    "kind": "checkpoint",
    "name": "silu",
    "builder": "curvature.test_smooth:silu_network",
    "weights": "silu.safetensors",
}


@pytest.mark.parametrize(
    "steering", [{"beta": [0.5], "family": "smooth", "c": 0.5}, {"beta": [0.5], "family": "smooth", "sites": "modules"}]
)
@pytest.mark.usefixtures("installed")
def test_a_benchmark_with_c_or_sites_for_the_smooth_family_is_refused(steering: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"steering: family: smooth.*leave c and"):
        parse_benchmark(mapping(steering=steering))


class Configured(nn.Module):
    """A class whose instances compute different functions."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_only_instances_that_compute_a_swish_are_replaced() -> None:
    net = nn.Sequential(
        nn.Linear(6, 8), Configured(SwishFunction.apply), nn.Linear(8, 8), Configured(torch.sigmoid), nn.Linear(8, 3)
    )
    x = torch.randn(5, 6)
    steered = steer(net.eval(), 0.5, family="smooth", example=x)
    torch.testing.assert_close(steered(x), net(x))
    assert steered.coverage is not None
    assert (steered.coverage.sites, steered.coverage.steered) == (1, 1)


def test_a_hidden_activation_that_is_skipped_for_its_shape_is_counted() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 3), nn.SiLU(), nn.Linear(3, 3)).eval()
    coverage = steer(net, 0.7, family="smooth", example=torch.randn(5, 6)).coverage
    assert coverage is not None
    assert (coverage.sites, coverage.steered) == (2, 1)
    assert flags.of_coverage(coverage, "smooth") == {"partial"}
