"""The network as attacks run it: compiled, channels last, in half precision; and that it is never what judges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.commands import Run
from helpers.networks import Wrong
from helpers.scored import task_of
from helpers.tiny import ATTACK, mapping
from torch import Tensor, nn
from torch.nn import functional as F

from harness import pipeline
from harness.api.records import BASELINE, Compile, FamilyName, Precision
from harness.api.work import Task
from harness.config.benchmark import parse_benchmark
from harness.curvature.families import FAMILIES
from harness.curvature.mixed import Mixed
from harness.curvature.steering import Steered, steer
from harness.datasets.digits import Digits
from harness.engine import acceleration, numerics, session
from harness.engine.acceleration import (
    WORTH,
    attacking,
    compiled,
    to_channels_last,
    wants_compiling,
)
from harness.engine.half_precision import HALF, half_precision, with_low_weights
from harness.engine.numerics import reproducible
from harness.engine.verification import logits
from harness.errors import ModelError, SpecError
from harness.models.demo import Demo
from harness.threats.lp import Linf

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def demo() -> nn.Module:
    return Demo(name="digits_plain").load().network


def gradient(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(network(x).square().sum(), x)[0]


def modules_replaced(network: nn.Module, beta: float, c: float = 0.5, example: Tensor = X, **options: Any) -> Steered:
    """As the harness steers a network of its own."""
    steered = steer(network, beta, 1.0 if options else c, example=example, **options)
    steered.replace_modules(example)
    return steered


# --- compiled ---


@pytest.mark.parametrize(
    ("family", "which"), [("relu", ()), ("smooth", ("silu",)), ("smooth", ("gelu",)), ("smooth", ("gelu_tanh",))]
)
@pytest.mark.parametrize("beta", [0.05, 0.5, 0.64, 0.9, 0.999])
def test_a_parametric_curve_is_the_curve(family: FamilyName, which: tuple[str, ...], beta: float) -> None:
    """Value and gradient, at 0 too, where a softplus put together by hand has none."""
    kind, c = FAMILIES[family], 0.5 if family == "relu" else 1.0
    numbers = kind.curve_parameters(beta, c)
    assert numbers is not None
    parameters = torch.tensor(numbers, dtype=torch.float64)
    curve = kind.curve(beta, c)

    def parametric(x: Tensor) -> Tensor:
        return kind.parametric(x, *which, parameters)

    def plain(x: Tensor) -> Tensor:
        return curve(x, *which)

    x = torch.cat([torch.linspace(-20, 20, 401, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)])
    torch.testing.assert_close(parametric(x), plain(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(parametric, x), gradient(plain, x), rtol=1e-12, atol=1e-12)
    half = kind.parametric(x.half(), *which, parameters.float())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half, plain(x.half()))


def test_an_end_of_a_family_has_no_parameters() -> None:
    assert FAMILIES["relu"].curve_parameters(1.0, 0.5) is None
    numbers = FAMILIES["relu"].curve_parameters(0.0, 0.5)
    assert numbers is not None
    assert numbers[:3] == (1.0, 0.0, 0.5)
    assert FAMILIES["smooth"].curve_parameters(0.0, 1.0) is FAMILIES["smooth"].curve_parameters(1.0, 1.0) is None


class Registered(nn.Sequential):
    """Every activation is a registered module, so modules are replaced."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.LeakyReLU(0.1), nn.Flatten(),
                         nn.Linear(64, 10))  # fmt: skip
        self.eval()


class OneRegistered(nn.Sequential):
    """The same with one activation, which is faster to compile."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        self.eval()


class Functional(nn.Module):
    """Its activation is a function, so it is rerouted."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 10)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(F.leaky_relu(self.first(x.flatten(1)), 0.1))
        return logits


@pytest.mark.slow
@pytest.mark.parametrize("build", [Functional, OneRegistered])
def test_one_compilation_serves_the_whole_grid(build: Callable[[], nn.Module]) -> None:
    """Of networks as small as can be: a C++ compiler takes seconds for each activation."""
    network = build()
    first = modules_replaced(network, 0.9)
    assert first.modules_replaced == (build is OneRegistered)
    fast = Mixed(first).through(compiled)
    graphs = []
    for beta, c in ((0.9, 0.5), (0.5, 1.0), (0.7, 0.0), (0.99, 0.5)):
        steered = modules_replaced(network, beta, c)
        parameters = steered.curve_parameters()
        assert parameters is not None
        rows = torch.tensor(parameters).expand(len(X), -1)
        torch.testing.assert_close(fast(X, rows), steered(X), rtol=1e-4, atol=1e-4)
        found = gradient(lambda x, rows=rows: fast(x, rows), X)  # type: ignore[misc]
        torch.testing.assert_close(found, gradient(steered, X), rtol=1e-3, atol=1e-3)
        leaf = X.clone().requires_grad_()
        logits = fast(leaf, rows)
        for lead in logits[:, :2].sum(0):  # several gradients of one pass, as FAB's
            torch.autograd.grad(lead, leaf, retain_graph=True)
        with torch.no_grad():
            torch.testing.assert_close(fast(X[:3], rows[:3]), steered(X[:3]), rtol=1e-4, atol=1e-4)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert len(set(graphs)) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_compiled_run_loses_the_same_images() -> None:
    asked = mapping(
        threat={"kind": "Linf", "eps": 0.1, "attack": ATTACK | {"iterations": 10, "queries": 30}},
        steering={"beta": [0.7, 0.9]},
        search={"kind": "full"},
    )
    boards = []
    for compiling in ("never", "always"):
        table = pipeline.run(parse_benchmark(asked | {"name": compiling, "compile": compiling}), runs="runs")
        boards.append(table[["beta", "status", "clean", "robust", "gained", "lost"]])
    assert boards[0].equals(boards[1])
    assert (boards[0]["robust"] > 0).all()
    assert (boards[0]["robust"] < boards[0]["clean"]).all()


def test_who_wants_compiling() -> None:
    assert [wants_compiling("auto", device, WORTH) for device in ("cpu", "cuda")] == [False, True]
    assert not wants_compiling("auto", "cuda", 0.9 * WORTH)
    assert wants_compiling("always", "cpu", 0)
    assert not wants_compiling("never", "cuda", WORTH)


class NoCompiler(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no compiler\nand more")


class Tilted(nn.Module):
    """Honest forward, and another gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(0.9 * x + (0.1 * x).detach())
        return logits


class WithoutGradient(nn.Module):
    """Another program where no gradient is recorded, as of Square."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits if torch.is_grad_enabled() else logits.flip(1)


def opened(compile: Compile, precision: Precision = "float32") -> tuple[session.ModelSession, Task]:
    model = Demo(name="digits_plain")
    return session.ModelSession(model.load()), task_of(
        model, Digits(n=4), Linf(eps=0.1), compile=compile, precision=precision
    )


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (lambda network: NoCompiler(), r"\(RuntimeError: no compiler\)"),
        (lambda network: nn.Sequential(network, nn.ReLU()), "compiled, it computes something else"),
        (Tilted, "compiled, it computes something else"),
        (WithoutGradient, "compiled, it computes something else"),
        (lambda network: nn.Sequential(network, nn.Dropout()).train(), "compiled, it answers by chance"),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_cannot_be_compiled_is_refused_where_it_must_be_and_told_where_it_need_not(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[[nn.Module], nn.Module], told: str, precision: Precision
) -> None:
    monkeypatch.setattr(session, "compiled", broken)
    must, task = opened("always", precision)
    with pytest.raises(ModelError, match=rf"^compile: .*{told}.*C\+\+ compiler.*compile=never"):
        must.attacked(task, BASELINE, X)
    monkeypatch.setattr(acceleration, "wants_compiling", lambda compile, device, work: True)
    monkeypatch.setattr(session, "wants_compiling", lambda compile, device, work: True)
    may, task = opened("auto", precision)
    with pytest.warns(UserWarning, match=rf"^digits_plain: .*{told}.*attacked uncompiled"):
        lane = may.attacked(task, BASELINE, X)
    assert not lane.compiled
    logits: Tensor = lane.network(X)
    torch.testing.assert_close(logits, demo()(X), rtol=0.05, atol=0.2)


def test_a_compiled_network_is_compared_in_the_precision_of_the_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.dtype, int, bool]] = []

    class Watched(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            seen.append((torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype, len(x),
                         torch.is_grad_enabled()))  # fmt: skip
            logits: Tensor = self.network(x)
            return logits

    monkeypatch.setattr(session, "compiled", Watched)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        seen.clear()
        must, task = opened("always", precision)  # type: ignore[arg-type]
        lane = must.attacked(task, BASELINE, X)
        for n in (3, 20, 100):
            lane.network(X[:1].expand(n, -1, -1, -1))
        assert lane.compiled
        assert {one[0] for one in seen} == {dtype}
        assert {one[2] for one in seen} == {False, True}
        assert len({one[1] for one in seen}) <= 2, "more than four graphs: two shapes, with and without gradients"
        assert must.preparing > 0


# --- channels last ---


def test_the_weights_of_convolutions_have_their_channels_last() -> None:
    network, plain = demo(), demo()
    to_channels_last(network, X)
    weights = [parameter for parameter in network.parameters() if parameter.ndim == 4 and parameter.shape[1] > 1]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    torch.testing.assert_close(network(X), plain(X))


def test_a_network_that_does_not_run_that_way_is_left() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3)
            self.last = nn.Linear(4 * 36, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).view(len(x), -1))  # type: ignore[no-any-return]

    network = Viewing()
    x = torch.rand(2, 3, 8, 8)
    before = network(x)
    to_channels_last(network, x)
    assert network.first.weight.is_contiguous()
    assert torch.equal(network(x), before)


# --- in half precision ---


def test_a_network_in_half_precision_answers_in_float32() -> None:
    network = demo()
    seen = []
    network.get_submodule("stem").register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    low = half_precision(network, "bfloat16")
    assert low(X).dtype == torch.float32
    assert seen == [torch.bfloat16]
    torch.testing.assert_close(low(X), network(X), rtol=0.05, atol=0.2)
    assert half_precision(network, "float32") is half_precision(network, "tf32") is network


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("mixed", [False, True])
def test_weights_are_cast_once_and_give_the_same_bits(precision: Precision, mixed: bool) -> None:
    network = demo()
    rows = torch.tensor(FAMILIES["relu"].curve_parameters(0.8, 0.5)).expand(len(X), -1)
    plain = Mixed(modules_replaced(network, 0.8)) if mixed else network
    low = with_low_weights(plain, precision)
    with torch.autocast("cpu", HALF[precision]):
        found, expected = (part(X, rows) if mixed else part(X) for part in (low, plain))
    assert torch.equal(found, expected)
    dtypes = {module.weight.dtype for module in low.modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert dtypes == {HALF[precision]}
    assert all(parameter.dtype == torch.float32 for parameter in plain.parameters())
    assert with_low_weights(plain, "float32") is with_low_weights(plain, "tf32") is plain


def test_a_gradient_that_float16_cannot_hold_is_kept() -> None:
    """Of a network so sure of itself that its gradients are below the least number of float16, 6·10⁻⁸."""

    class Sure(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.layers(x)
            return logits

    def ascent(network: nn.Module) -> Tensor:
        x = X.clone().requires_grad_()
        logits = network(x)
        weights = 1e-9 * torch.tensor([1.0, 1e3, 1e-3, 1.0, 0.0, 10.0])[:, None]  # each image at a size of its own
        return torch.autograd.grad((weights * logits.softmax(1) * torch.arange(10)).sum(), x)[0]

    network = Sure().requires_grad_(False).eval()
    exact = ascent(network)
    with torch.autocast("cpu", torch.float16):
        assert (ascent(network)[[0, 2, 3]] == 0).all(), "this network would not need it"
    found = ascent(half_precision(network, "float16"))
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.02 * float(other.abs().max()))
    first, *_ = ascent(half_precision(network, "float16"))
    assert torch.equal(first, found[0])


def older() -> None:
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = False


def newer() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]


def both() -> None:
    older()
    newer()


@pytest.fixture
def _as_before() -> Iterator[None]:
    older_setting, newer_setting = torch.get_float32_matmul_precision(), tf32()
    yield
    numerics._set_float32(older_setting, newer_setting)
    assert torch.get_float32_matmul_precision() == older_setting


def tf32() -> list[str]:
    return [place.fp32_precision for place in numerics._places()]


def by_the_older_interface() -> tuple[bool, bool]:
    """Raises where the two interfaces disagree."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("plug_in", [lambda: None, older, newer, both])
def test_tf32_is_on_for_the_attack_alone_whatever_a_plug_in_has_set(plug_in: Callable[[], None]) -> None:
    plug_in()
    before = tf32()
    with attacking("float32"):
        assert set(tf32()) == {"ieee"}
        assert by_the_older_interface() == (False, False)
        with attacking("tf32"):
            assert set(tf32()) == {"tf32"}
            assert by_the_older_interface() == (True, True)
        assert set(tf32()) == {"ieee"}
    with pytest.raises(ZeroDivisionError), attacking("tf32"):
        _ = 1 / 0
    assert tf32() == before


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("plug_in", [older, newer, both])
def test_the_judge_is_in_full_float32_whatever_a_plug_in_allows_meanwhile(plug_in: Callable[[], None]) -> None:
    """As a network of another author may, when it is built or in its first forward pass."""
    seen: list[Any] = []

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((set(tf32()), torch.is_autocast_enabled("cpu")))
            return x.flatten(1)

    with reproducible():
        plug_in()
        with torch.autocast("cpu", torch.bfloat16):
            logits(Watching(), X)
    assert seen == [({"ieee"}, False)]


def test_new_tensors_are_not_filled_first() -> None:
    settings: Any = torch.utils.deterministic
    assert settings.fill_uninitialized_memory
    with reproducible():
        assert not settings.fill_uninitialized_memory
        assert torch.are_deterministic_algorithms_enabled()
    assert settings.fill_uninitialized_memory


def test_no_clock_chooses_a_kernel_whatever_a_plug_in_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with reproducible():
        assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark


def test_weights_that_are_computed_in_every_pass_stay_in_float32() -> None:
    with pytest.warns(FutureWarning):
        convolution = nn.utils.weight_norm(nn.Conv2d(3, 8, 3))
    network = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval().requires_grad_(False)
    x = torch.rand(2, 3, 8, 8)
    network(x)
    low = half_precision(with_low_weights(network, "bfloat16"), "bfloat16")
    assert torch.equal(low(x), half_precision(network, "bfloat16")(x))


def test_a_network_that_cannot_be_copied_is_attacked_in_half_precision_all_the_same() -> None:
    class Locked(nn.Linear):
        def __deepcopy__(self, memo: object) -> None:
            raise RuntimeError("cannot be copied")

    network = Locked(2, 2)
    assert with_low_weights(network, "bfloat16") is network


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_what_is_lost_is_judged_in_float32(run: Run, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """A network that is always wrong while it is attacked, so that the attack is content with its first images."""
    monkeypatch.setattr(acceleration, "with_low_weights", lambda network, precision: network)
    monkeypatch.setattr(acceleration, "half_precision", lambda network, precision: Wrong(network))
    benchmark = mapping(models=[{"kind": "demo", "name": "digits_plain"}], dataset={"kind": "digits", "n": 16},
                        threat={"kind": "Linf", "eps": 0.004, "attack": ATTACK}, steering={"beta": 0.9},
                        precision=precision)  # fmt: skip
    ended = run(benchmark)
    assert ended.code == 0
    board = pd.read_csv("leaderboards/tiny.csv")
    assert (board["robust"] == board["clean"]).all()
    assert board["clean"].min() > 0.9
    assert set(board["attack"]) == {f"custom:apgd-ce+square+{precision}"}


# --- modules replaced ---


def test_modules_are_replaced_where_that_reaches_all_and_gives_the_same_bits() -> None:
    network = Registered()
    steered, by_mode = modules_replaced(network, 0.8), steer(network, 0.8, example=X)
    assert steered.modules_replaced
    assert not by_mode.modules_replaced
    assert type(network[1]) is nn.ReLU
    assert torch.equal(steered(X), by_mode(X))
    assert torch.equal(gradient(steered, X), gradient(by_mode, X))
    assert all(a is b for a, b in zip(steered.parameters(), network.parameters(), strict=True))


def test_a_network_that_was_steered_from_outside_is_the_same_object() -> None:
    """So what its owner does to it afterwards reaches both: another dtype, a hook, another head."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval()
    steered = steer(network, 0.9, example=X)
    network.double()
    assert steered(X.double()).dtype == network(X.double()).dtype == torch.float64
    steered.float()
    assert network(X).dtype == torch.float32
    seen: list[nn.Module] = []
    network[0].register_forward_hook(lambda module, args, output: seen.append(module))
    network[4] = nn.Linear(72, 7)
    assert steered(X).shape == (6, 7)
    assert seen == [network[0]]


class Function(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.relu(x) - 0.5)


class Ignored(nn.Module):
    """Uses what an in-place module wrote, not what it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = 1 * x
        self.relu(x)
        return x


@pytest.mark.parametrize("build", [Function, Ignored, lambda: nn.Sequential(nn.SiLU(), nn.Linear(4, 2))])
def test_otherwise_they_are_rerouted(build: Callable[[], nn.Module]) -> None:
    network = build()
    family: FamilyName = "smooth" if isinstance(network, nn.Sequential) else "relu"
    assert not modules_replaced(network, 0.8, family=family, example=torch.randn(3, 4)).modules_replaced


def test_modules_that_would_give_other_bits_are_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.curvature import piecewise_affine

    name, smooth, arguments = piecewise_affine.MODULES[nn.ReLU]
    monkeypatch.setitem(
        piecewise_affine.MODULES, nn.ReLU, (name, lambda curve, x: smooth(curve, x) * (1 + 1e-6), arguments)
    )
    assert not modules_replaced(Registered(), 0.8).modules_replaced


@pytest.mark.usefixtures("here")
def test_what_is_about_attacks_is_refused_where_there_are_none() -> None:
    fog = {"kind": "corruptions", "source": "generated", "corruptions": ["fog"], "severities": [1]}
    for key, value in {"precision": "bfloat16", "compile": "always"}.items():
        with pytest.raises(SpecError, match=f"^{key}: .*corruptions.*leave it out"):
            parse_benchmark(mapping(threat=fog, **{key: value}) | {"name": "tiny"})
    parse_benchmark(mapping(threat=fog, precision="float32", compile="never") | {"name": "tiny"})


@pytest.mark.usefixtures("here")
def test_a_cpu_has_no_tf32() -> None:
    board = pipeline.run(parse_benchmark(mapping(precision="tf32") | {"name": "tiny"}), runs="runs")
    assert board["status"].str.contains("failed: precision: tf32").all()
    assert board["status"].str.contains("set precision=float32").all()


@pytest.mark.usefixtures("here")
def test_the_compiler_is_not_asked_unless_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(network: nn.Module) -> nn.Module:
        raise AssertionError

    monkeypatch.setattr(session, "compiled", fail)
    monkeypatch.setattr(acceleration, "compiled", fail)
    board = pipeline.run(parse_benchmark(mapping() | {"name": "tiny"}), runs="runs")
    assert not board["status"].str.contains("failed").any()
