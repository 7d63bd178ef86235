"""Steering reaches every piecewise-affine activation however it is called, and refuses a network where it cannot.

The oracle is the same network written out by hand with φ, or a network whose ``F.relu`` is replaced from outside.
"""

from __future__ import annotations

import copy
import doctest
import pickle
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import harness.curvature.steering
from harness.api.records import Sites, Steering
from harness.curvature.phi import phi
from harness.curvature.piecewise_affine import FUNCTIONS
from harness.curvature.reroute import CallCounts, Reroute
from harness.curvature.steering import Steered, steer
from harness.errors import IncompleteSteering, ModelError, NothingToSteer, SpecError

BETA, C = 0.7, 0.3
WIDTH = 6
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


class Between(nn.Module):
    """Linear, ``middle`` on the hidden layer, linear; in float64, so that oracles agree to many digits."""

    def __init__(self, middle: Callable[[Tensor], Tensor], seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first, self.last = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3)
        self.middle = middle
        for parameter in (*self.first.parameters(), *self.last.parameters()):
            nn.init.normal_(parameter, std=1.5, generator=generator)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.middle(self.first(x)))
        return logits


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


X = images(32, 4)


def outputs_and_gradient(network: nn.Module, x: Tensor = X) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    logits = network(x)
    weights = torch.arange(1.0, 1 + logits.numel(), dtype=logits.dtype, device=logits.device).sin().view_as(logits)
    return logits.detach(), torch.autograd.grad((logits * weights).sum(), x)[0]


def assert_agree(network: nn.Module, oracle: nn.Module, x: Tensor = X, tolerance: float = 1e-12) -> None:
    for found, expected in zip(outputs_and_gradient(network, x), outputs_and_gradient(oracle, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def same_bits(network: nn.Module, oracle: nn.Module, x: Tensor = X) -> bool:
    pairs = zip(outputs_and_gradient(network, x), outputs_and_gradient(oracle, x), strict=True)
    return all(torch.equal(found, expected) for found, expected in pairs)


def steered_relu(x: Tensor) -> Tensor:
    return phi(x, BETA, C)


def ignoring(change: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """Use the tensor that is written into, not the one that the call returns."""

    def middle(x: Tensor) -> Tensor:
        change(x)
        return x

    return middle


def made_inside(x: Tensor, inplace: bool = False) -> Tensor:
    relu: Middle = nn.ReLU(inplace)
    return relu(x)


def before_and_after(x: Tensor) -> Tensor:
    return torch.relu_(x) + x  # the second term is written into as well


SLOPE = torch.tensor([0.3], dtype=torch.float64)
SLOPES = torch.linspace(-0.2, 0.8, WIDTH, dtype=torch.float64)
PRELU, CHANNELS = nn.PReLU().double(), nn.PReLU(WIDTH).double()
PRELU.weight.data.copy_(SLOPE)
CHANNELS.weight.data.copy_(SLOPES)


def leaky(slope: float | Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: slope * x + (1 - slope) * steered_relu(x)


def clipped(a: float, b: float) -> Callable[[Tensor], Tensor]:
    return lambda x: a + steered_relu(x - a) - steered_relu(x - b)


Middle = Callable[[Tensor], Tensor]
STYLES: dict[str, tuple[Middle, Middle]] = {
    # the way in which the network calls it, and the oracle
    "module": (nn.ReLU(), steered_relu),
    "module, in place": (nn.ReLU(inplace=True), steered_relu),
    "module, in place, result ignored": (ignoring(nn.ReLU(inplace=True)), steered_relu),
    "module made inside forward": (made_inside, steered_relu),
    "module made inside forward, in place, ignored": (ignoring(partial(made_inside, inplace=True)), steered_relu),
    "F.relu": (F.relu, steered_relu),
    "F.relu by keyword": (lambda x: F.relu(input=x, inplace=False), steered_relu),
    "F.relu in place": (lambda x: F.relu(x, inplace=True), steered_relu),
    "F.relu in place, positional": (lambda x: F.relu(x, True), steered_relu),
    "F.relu in place, ignored": (ignoring(lambda x: F.relu(x, inplace=True)), steered_relu),
    "F.relu in place, positional, ignored": (ignoring(lambda x: F.relu(x, True)), steered_relu),
    "F.relu_": (F.relu_, steered_relu),
    "F.relu_ ignored": (ignoring(F.relu_), steered_relu),
    "partial": (partial(F.relu, inplace=False), steered_relu),
    "torch.relu": (torch.relu, steered_relu),
    "torch.relu by keyword": (lambda x: torch.relu(input=x), steered_relu),
    "torch.relu_": (torch.relu_, steered_relu),
    "torch.relu_ ignored": (ignoring(torch.relu_), steered_relu),
    "method": (lambda x: x.relu(), steered_relu),
    "method in place": (lambda x: x.relu_(), steered_relu),
    "method in place, ignored": (ignoring(lambda x: x.relu_()), steered_relu),
    "unbound method": (Tensor.relu, steered_relu),
    "view, in place, ignored": (ignoring(lambda x: x[:, :].relu_()), steered_relu),
    "in place, and both used": (before_and_after, lambda x: 2 * steered_relu(x)),
    "LeakyReLU": (nn.LeakyReLU(0.2), leaky(0.2)),
    "LeakyReLU in place, ignored": (ignoring(nn.LeakyReLU(0.2, inplace=True)), leaky(0.2)),
    "F.leaky_relu": (F.leaky_relu, leaky(0.01)),
    "F.leaky_relu, positional": (lambda x: F.leaky_relu(x, 0.3), leaky(0.3)),
    "F.leaky_relu_ ignored": (ignoring(lambda x: F.leaky_relu_(x, 0.3)), leaky(0.3)),
    "PReLU": (PRELU, leaky(SLOPE)),
    "PReLU by channel": (CHANNELS, leaky(SLOPES)),
    "F.prelu": (lambda x: F.prelu(x, SLOPE), leaky(SLOPE)),
    "torch.prelu": (lambda x: torch.prelu(x, SLOPES), leaky(SLOPES)),
    "method prelu": (lambda x: x.prelu(SLOPES), leaky(SLOPES)),
    "RReLU": (nn.RReLU(0.1, 0.5).eval(), leaky(0.3)),
    "RReLU in place, ignored": (ignoring(nn.RReLU(0.1, 0.5, inplace=True).eval()), leaky(0.3)),
    "F.rrelu": (F.rrelu, leaky((1 / 8 + 1 / 3) / 2)),
    "F.rrelu_ ignored": (ignoring(lambda x: F.rrelu_(x, 0.1, 0.5)), leaky(0.3)),
    "torch.rrelu": (lambda x: torch.rrelu(x, 0.1, 0.5), leaky(0.3)),
    "ReLU6": (nn.ReLU6(), clipped(0, 6)),
    "ReLU6 in place, ignored": (ignoring(nn.ReLU6(inplace=True)), clipped(0, 6)),
    "F.relu6": (F.relu6, clipped(0, 6)),
    "F.relu6 in place, ignored": (ignoring(lambda x: F.relu6(x, True)), clipped(0, 6)),
    "Hardtanh": (nn.Hardtanh(-2, 3), clipped(-2, 3)),
    "Hardtanh in place, ignored": (ignoring(nn.Hardtanh(-2, 3, inplace=True)), clipped(-2, 3)),
    "F.hardtanh": (F.hardtanh, clipped(-1, 1)),
    "F.hardtanh by keyword": (lambda x: F.hardtanh(x, max_val=2.0, min_val=0.5), clipped(0.5, 2)),
    "F.hardtanh_ ignored": (ignoring(lambda x: F.hardtanh_(x, -2.0, 3.0)), clipped(-2, 3)),
}


# --- every way of calling ---


@pytest.mark.parametrize("style", STYLES)
def test_every_style_of_call_is_steered(style: str) -> None:
    called, expected = STYLES[style]
    steered = steer(Between(called), BETA, C, example=X)
    assert_agree(steered, Between(expected))
    with torch.no_grad():
        torch.testing.assert_close(steered(X), Between(expected)(X), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_of_call_is_counted(style: str) -> None:
    coverage = steer(Between(STYLES[style][0]), BETA, C, example=X).coverage
    assert coverage is not None
    assert coverage.sites == coverage.steered == 1
    assert sum(coverage.kinds.values()) == coverage.sites
    assert set(coverage.kinds) <= {name for name, _ in FUNCTIONS.values()}


@pytest.mark.parametrize("sites", ["all", "modules"])
@pytest.mark.parametrize("style", [style for style, (called, _) in STYLES.items() if isinstance(called, nn.Module)])
def test_beta_1_is_the_plain_network_bit_by_bit(style: str, sites: Sites) -> None:
    network = Between(STYLES[style][0])
    assert same_bits(steer(network, 1.0, C, sites, example=X), network)


@pytest.mark.parametrize("style", STYLES)
def test_beta_1_reaches_the_same_sites_and_changes_nothing(style: str) -> None:
    network = Between(STYLES[style][0])
    assert same_bits(steer(network, 1.0, C, example=X), network)


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        (ignoring(lambda x: F.relu(x, inplace=True)), steered_relu),
        (ignoring(nn.ReLU(inplace=True)), steered_relu),
        (lambda x: F.relu(x, inplace=True) + x, lambda x: 2 * steered_relu(x)),
    ],
)
def test_in_place_is_written_back_even_where_the_example_does_not_show_it(called: Middle, expected: Middle) -> None:
    # Where all hidden units are positive on the example, ReLU in place changes nothing that the proof could see. If the
    # value returned were taken for the one that is used, the network would run unsteered, with coverage 1 of 1.
    network, oracle = Between(called), Between(expected)
    network.first.bias.data.fill_(50)
    oracle.first.bias.data.fill_(50)
    assert_agree(steer(network, BETA, C, example=torch.zeros(1, 4).double()), oracle, 30 * X)


# --- the limits of β ---


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 7, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(7 * 16, 10),
    ).double()
    network(images(16, 3, 8, 8))  # running statistics other than 0 and 1
    return network.eval()


NETWORK, IMAGE = convolutional(), images(2, 3, 8, 8, seed=1)


@settings(deadline=None, max_examples=25)
@given(st.floats(-3, 4), st.integers(0, 10**6))
def test_c_1_beta_0_is_an_affine_network(share: float, seed: int) -> None:
    affine = steer(NETWORK, 0.0, 1.0, example=IMAGE)
    a, b = images(2, 4, 3, 8, 8, seed=seed)
    mixed = affine(share * a + (1 - share) * b)
    torch.testing.assert_close(mixed, share * affine(a) + (1 - share) * affine(b), rtol=1e-11, atol=1e-11)


def test_c_below_1_and_beta_above_0_are_not_affine() -> None:
    a, b = images(2, 4, 3, 8, 8)
    for beta, c in ((0.0, 0.9), (0.1, 1.0)):
        steered = steer(NETWORK, beta, c, example=IMAGE)
        assert (steered((a + b) / 2) - (steered(a) + steered(b)) / 2).abs().max() > 1e-4


@settings(deadline=None, max_examples=25)
@given(st.floats(0.386, 1.0))
def test_logits_converge_to_the_plain_ones_within_the_sup_norm_of_phi_minus_relu(beta: float) -> None:
    network = Between(nn.ReLU())
    bound = network.last.weight.abs().sum(1) * 0.5 * torch.tensor(2.0).double().log() * (1 - beta)
    difference = (steer(network, beta, example=X)(X) - network(X)).abs().amax(0)
    assert (difference <= bound + 1e-13).all()


# --- what is not steered ---


def test_clamp_and_maximum_are_not_activations_and_stay() -> None:
    clamped = Between(lambda x: torch.maximum(x.clamp(min=0.1), torch.zeros(())).clamp_(max=2).clip(max=1.5))
    with pytest.raises(NothingToSteer, match="executes none of them; no activation was seen"):
        steer(clamped, BETA, C, example=X)
    both = Between(lambda x: F.relu(x.clamp(-1, 2)))
    assert_agree(steer(both, BETA, C, example=X), Between(lambda x: steered_relu(x.clamp(-1, 2))))


def test_smooth_activations_stay_and_are_named() -> None:
    network = Between(lambda x: F.relu(F.gelu(x)) + F.silu(x) + torch.tanh(x) + F.gelu(x))
    steered = steer(network, BETA, C, example=X)
    assert steered.coverage is not None
    assert (steered.coverage.sites, steered.coverage.steered) == (1, 1)
    assert steered.coverage.kinds == {"relu": 1, "gelu": 2, "silu": 1, "tanh": 1}
    assert_agree(steered, Between(lambda x: steered_relu(F.gelu(x)) + F.silu(x) + torch.tanh(x) + F.gelu(x)))


def test_nothing_to_steer_names_what_is_used() -> None:
    with pytest.raises(NothingToSteer) as error:
        steer(Between(lambda x: F.gelu(F.silu(F.gelu(x)))), BETA)
    assert "ReLU, LeakyReLU, PReLU, RReLU, ReLU6 and Hardtanh" in str(error.value)
    assert str(error.value).endswith("it uses gelu ×2, silu ×1")


@pytest.mark.parametrize("sites", ["all", "modules"])
@pytest.mark.parametrize("training", [True, False])
def test_steer_leaves_no_trace_in_the_network(sites: Sites, training: bool) -> None:
    network = convolutional().train(training)
    network[0].eval()  # a frozen layer in a network that trains
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = {name: module.training for name, module in network.named_modules()}
    modules = dict(network.named_modules())
    state = torch.get_rng_state()
    steered = steer(network, BETA, C, sites)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert dict(network.named_modules()) == modules
    assert steered.training == training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert not any(module._forward_hooks for module in [*network.modules(), *steered.modules()])
    assert torch.equal(torch.get_rng_state(), state)
    assert same_bits(network.eval(), NETWORK, IMAGE)


class Noisy(nn.Module):
    """Draws a random number in its forward, as a randomised defence does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x + torch.randn_like(x)))


@pytest.mark.parametrize("example", [torch.ones(1, 4), None], ids=["example given", "example made up"])
def test_steering_a_randomised_network_draws_no_random_numbers(example: Tensor | None) -> None:
    # An input that is made up must be tried on the network within fork_rng, too.
    network = Noisy().eval()
    state = torch.get_rng_state()
    steer(network, BETA, example=example)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("sites", ["all", "modules"])
def test_the_weights_are_shared_not_copied(sites: Sites) -> None:
    inner = convolutional()
    network = nn.Sequential(inner, nn.PReLU(10).double()).eval()
    steered = [steer(network, beta, C, sites, example=IMAGE) for beta in (0.5, 0.9)]
    pointers = {tensor.data_ptr() for tensor in network.state_dict().values()}
    for one in steered:
        assert {tensor.data_ptr() for tensor in one.state_dict().values()} == pointers
        assert {id(parameter) for parameter in one.parameters()} == {id(p) for p in network.parameters()}
    before = [one(IMAGE) for one in steered]
    with torch.no_grad():
        next(inner.parameters()).mul_(2)
    assert not any(torch.equal(one(IMAGE), old) for one, old in zip(steered, before, strict=True))


@pytest.mark.parametrize("sites", ["all", "modules"])
@pytest.mark.parametrize("beta", [BETA, 1.0])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_and_pickles_give_the_same_outputs(sites: Sites, beta: float, copied: Callable[[Any], Any]) -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(0.2), nn.Linear(5, 5), nn.ReLU6(), nn.Linear(5, 2)).double()
    steered = steer(network, beta, C, sites)
    again = copied(steered)
    assert isinstance(again, Steered)
    assert same_bits(again, steered)
    assert again.coverage == steered.coverage
    assert again.steering == steered.steering == Steering(beta, C, sites)
    addresses = {parameter.data_ptr() for parameter in network.parameters()}
    assert addresses.isdisjoint(parameter.data_ptr() for parameter in again.parameters())


# --- modules only ---


class Block(nn.Module):
    """One ReLU that is registered and called twice, one that is only a function call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.relu: nn.Module = nn.ReLU()
        self.act: Callable[[Tensor], Tensor] = F.relu
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.layers[0](x))
        x = self.relu(self.layers[1](x))
        return self.act(self.layers[2](x))


class SteeredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return steered_relu(x)


def test_sites_modules_is_plain_module_replacement() -> None:
    network, replaced = Block(), Block()
    replaced.relu = SteeredReLU()
    steered = steer(network, BETA, C, "modules")
    assert same_bits(steered, replaced)
    assert type(network.relu) is nn.ReLU
    assert steered.coverage is not None
    assert (steered.coverage.sites, steered.coverage.steered, steered.coverage.kinds) == (3, 2, {"relu": 3})


def test_sites_all_reaches_the_function_call_as_well() -> None:
    replaced = Block()
    replaced.relu, replaced.act = SteeredReLU(), steered_relu
    steered = steer(Block(), BETA, C)
    assert same_bits(steered, replaced)
    assert steered.coverage is not None
    assert (steered.coverage.sites, steered.coverage.steered, steered.coverage.kinds) == (3, 3, {"relu": 3})


def test_a_module_shared_by_several_parents_is_replaced_in_each() -> None:
    relu = nn.ReLU()
    first, second = nn.Sequential(nn.Linear(4, 4), relu), nn.Sequential(relu, nn.Linear(4, 4), relu)
    network = nn.Sequential(first, second, relu).double()
    steered = steer(network, BETA, C, "modules")
    assert steered.coverage is not None
    assert (steered.coverage.sites, steered.coverage.steered) == (4, 4)
    assert same_bits(steered, steer(network, BETA, C))


def test_a_network_that_is_one_activation() -> None:
    for sites in ("all", "modules"):
        steered = steer(nn.ReLU(), BETA, C, sites, example=X)
        assert torch.equal(steered(X), steered_relu(X))


def test_modules_alone_have_nothing_to_steer_where_all_are_functions() -> None:
    with pytest.raises(NothingToSteer) as error:
        steer(Between(lambda x: F.relu6(F.relu(F.relu(x)))), BETA, sites="modules")
    assert "none of the 3 activations" in str(error.value)
    assert "relu ×2, relu6 ×1" in str(error.value)
    assert str(error.value).endswith("use sites: all")


def test_modules_whose_result_is_ignored_are_refused_or_write_it_back() -> None:
    # A replaced module that returned a new tensor here would make the activation vanish.
    class Net(Between):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            self.middle(hidden)
            logits: Tensor = self.last(hidden)
            return logits

    try:
        steered = steer(Net(nn.ReLU(inplace=True)), BETA, C, "modules", example=X)
    except IncompleteSteering:
        return
    assert_agree(steered, Between(steered_relu))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_old_weight_norm_is_steered_by_modules_or_refused() -> None:
    # deepcopy refuses the weight that weight_norm computes; its bare RuntimeError must not reach the user.
    layer = nn.utils.weight_norm(nn.Linear(4, 4))
    try:
        steered = steer(nn.Sequential(layer, nn.ReLU()), BETA, C, "modules")
    except ModelError:
        return
    torch.testing.assert_close(steered(X.float()), steered_relu(layer(X.float())))


# --- wrappers in wrappers, threads, DataParallel ---


def test_a_steered_part_keeps_its_own_beta_inside_a_steered_whole() -> None:
    part, whole = Between(torch.relu), Between(torch.relu, seed=1)
    outer = nn.Sequential(steer(part, 0.5), nn.ReLU(), nn.Linear(3, 4).double(), whole)
    steered = steer(outer, 0.9, example=X)
    assert steered.coverage is not None
    assert steered.coverage.steered == 2
    oracle = nn.Sequential(
        Between(lambda x: phi(x, 0.5)),
        Lambda(lambda x: phi(x, 0.9)),
        outer[2],
        Between(lambda x: phi(x, 0.9), seed=1),
    )
    assert_agree(steered, oracle)


class Lambda(nn.Module):
    def __init__(self, function: Middle) -> None:
        super().__init__()
        self.forward = function


def test_a_network_steered_already_has_nothing_left_to_steer() -> None:
    with pytest.raises(NothingToSteer, match="it uses sigmoid ×3"):
        steer(steer(Between(torch.relu), 0.5), 0.9)
    twice = steer(steer(Between(torch.relu), 1.0), BETA, C)  # the untouched network can still be steered
    assert_agree(twice, Between(steered_relu))


def test_of_nested_reroutes_the_inner_one_wins() -> None:
    counts = CallCounts()
    with Reroute(torch.zeros_like, counts=counts), Reroute(torch.relu):
        found = [F.relu(X), F.leaky_relu(X, 0.5), X.clone().relu_()]
    for value, expected in zip(found, [F.relu(X), F.leaky_relu(X, 0.5), F.relu(X)], strict=True):
        torch.testing.assert_close(value, expected)
    assert not counts.calls


def test_the_steering_ends_with_the_forward_pass_and_with_an_error() -> None:
    network = Between(torch.relu)
    steered = steer(network, BETA, C)
    steered(X)
    assert torch.equal(F.relu(X), X.clamp(min=0))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        steered(X[:, :3])
    assert torch.equal(F.relu(X), X.clamp(min=0))


def test_threads_with_different_betas_do_not_interfere() -> None:
    steered = [steer(NETWORK, beta, example=IMAGE) for beta in (0.3, 0.9, 1.0)]
    alone = [outputs_and_gradient(one, IMAGE) for one in steered]
    start = threading.Barrier(len(steered))
    wrong: list[Tensor] = []

    def work(one: Steered, expected: tuple[Tensor, Tensor]) -> None:
        start.wait()
        for _ in range(25):
            found = outputs_and_gradient(one, IMAGE)
            wrong.extend(a for a, b in zip(found, expected, strict=True) if not torch.equal(a, b))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(steered, alone, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_wrapper_goes_inside_data_parallel() -> None:
    network = Between(nn.ReLU())
    assert same_bits(nn.DataParallel(steer(network, BETA, C)), steer(network, BETA, C))
    for wrapped, place in (
        (nn.DataParallel(network), "the network"),
        (Outer(nn.DataParallel(network)), "its part 'n'"),
    ):
        with pytest.raises(ModelError) as error:
            steer(wrapped, BETA)
        assert str(error.value).startswith(f"{place} is wrapped in DataParallel")
        assert "steer its .module" in str(error.value)


class Outer(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.n = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.n(x)
        return logits


# --- what escapes is refused ---

ESCAPED = "^{} ×{} escaped .*(compiled|scripted|checkpointing)"
BELOW_PYTHON: dict[str, Middle] = {
    "relu": torch.ops.aten.relu,
    "leaky_relu": lambda x: torch.ops.aten.leaky_relu(x, 0.2),
    "prelu": lambda x: torch.ops.aten.prelu(x, SLOPE),
    "rrelu": lambda x: torch.ops.aten.rrelu_with_noise(x, torch.zeros_like(x), 0.1, 0.3, False),
    "hardtanh": lambda x: torch.ops.aten.hardtanh(x, -2.0, 2.0),
}


@pytest.mark.parametrize("name", BELOW_PYTHON)
def test_a_call_below_python_is_refused(name: str) -> None:
    with pytest.raises(IncompleteSteering, match=ESCAPED.format(name, 1)):
        steer(Between(BELOW_PYTHON[name]), BETA)


def test_a_recurrent_layer_with_relu_inside_is_refused() -> None:
    with pytest.raises(IncompleteSteering, match=ESCAPED.format("relu", 5)):
        steer(nn.RNN(3, 4, nonlinearity="relu", batch_first=True), BETA, example=torch.randn(1, 5, 3))


def test_a_call_below_python_in_part_of_the_network_is_refused() -> None:
    with pytest.raises(IncompleteSteering, match=ESCAPED.format("relu", 1)):
        steer(Between(lambda x: F.relu(torch.ops.aten.relu(x))), BETA)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_modules_and_functions_are_refused() -> None:
    for scripted in (
        torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.ReLU())),
        torch.jit.trace(nn.Linear(4, 3), torch.ones(1, 4)),  # type: ignore[no-untyped-call]
    ):
        for network, place in ((scripted, "the network"), (Outer(scripted), "its part 'n'")):
            with pytest.raises(ModelError) as error:
                steer(network, BETA)
            assert str(error.value).startswith(f"{place} is a scripted module ({type(scripted).__name__})")
            assert "steer the module it was scripted from" in str(error.value)
    with pytest.raises(IncompleteSteering, match=ESCAPED.format("relu", 1)):
        steer(Between(torch.jit.script(scripted_relu)), BETA)


def scripted_relu(x: Tensor) -> Tensor:
    return torch.relu(x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_activation_checkpointing_is_refused(device: str) -> None:
    network = Between(lambda x: checkpoint(F.relu, x, use_reentrant=False)).to(device)
    with pytest.raises(IncompleteSteering, match=ESCAPED.format("relu", 1)):
        steer(network, BETA)
    network = Between(lambda x: checkpoint(F.relu, x, use_reentrant=True)).to(device)
    with pytest.raises(IncompleteSteering, match=r"gradient with respect to the input.*use_reentrant=True"):
        steer(network, BETA)


class CustomGradient(torch.autograd.Function):
    """ReLU with a backward pass of its own, as memory-saving layers have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.relu(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return grad * (x > 0)


def test_a_relu_with_a_gradient_of_its_own_is_refused_or_steered_whole() -> None:
    # A call rerouted inside the function's forward alone would give φ with the gradient of ReLU: attacks would be weak
    # and the network would look robust.
    network = Between(CustomGradient.apply)
    try:
        steered = steer(network, BETA, C, example=X)
    except IncompleteSteering:
        return
    assert_agree(steered, Between(steered_relu))


def test_a_network_that_changes_between_passes_is_refused() -> None:
    class Drifting(Between):
        passes = 0

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            return super().forward(x) * self.passes

    with pytest.raises(IncompleteSteering, match=r"does not reproduce the plain network's outputs.*pure function"):
        steer(Drifting(torch.relu), BETA, example=X)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", F.relu, nn.ReLU()], ids=["name", "function", "module"])
def test_the_fast_path_of_transformer_layers_is_steered_too(norm_first: bool, activation: Any) -> None:
    def layer(activation: Any) -> nn.Module:
        torch.manual_seed(0)
        return nn.TransformerEncoderLayer(
            8, 2, 16, activation=activation, batch_first=True, norm_first=norm_first, dtype=torch.float64
        ).eval()

    x = images(2, 5, 8)
    steered = steer(layer(activation), BETA, C, example=x)
    assert_agree(steered, layer(steered_relu), x)
    with torch.no_grad():  # where the plain layer takes its fast path
        torch.testing.assert_close(steered(x), layer(steered_relu)(x), rtol=1e-12, atol=1e-12)


def test_modules_mean_the_same_with_and_without_gradients() -> None:
    # The layer remembers that its activation was ReLU and takes its fused path without gradients: an attack would see
    # φ, and the pass that verifies its result ReLU.
    x = images(2, 5, 8)
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.ReLU(), batch_first=True, dtype=torch.float64).eval()
    try:
        steered = steer(layer, BETA, C, "modules", example=x)
    except IncompleteSteering:
        return
    with torch.no_grad():
        without_gradients = steered(x)
    torch.testing.assert_close(without_gradients, steered(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("module", [nn.ReLU(), nn.LeakyReLU(), nn.PReLU(), nn.ReLU6(), nn.Hardtanh()])
def test_networks_in_narrow_types_are_steered(dtype: torch.dtype, module: nn.Module) -> None:
    # In half precision Hardtanh as a + relu(x − a) − relu(x − b) is rounded too often to reproduce the plain network.
    network = Between(copy.deepcopy(module)).to(dtype)
    steered = steer(network, BETA, example=X.to(dtype))
    assert steered(X.to(dtype)).dtype == dtype
    wide = steer(copy.deepcopy(network).double(), BETA, example=X)
    error = (steered(X.to(dtype)).double() - wide(X.to(dtype).double())).abs().max().item()
    assert error < 60 * torch.finfo(dtype).eps


def test_autocast_is_steered() -> None:
    network, oracle = Between(nn.ReLU()).float(), Between(steered_relu).float()
    x = X.float()
    steered = steer(network, BETA, C)
    with torch.autocast("cpu", torch.bfloat16):
        assert same_bits(steered, oracle, x)


def test_compiled_from_outside_and_from_inside() -> None:
    steered = steer(Between(nn.ReLU()), BETA, C)
    outside: Any = torch.compile(steered, backend="aot_eager", fullgraph=True)
    assert_agree(outside, Between(steered_relu))
    inside: Any = torch.compile(Between(nn.ReLU()), backend="aot_eager")
    inside(X)  # compiled for the plain network first
    assert_agree(steer(inside, BETA, C), Between(steered_relu))


@pytest.mark.parametrize("sites", ["all", "modules"])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_steering_where_gradients_are_switched_off(sites: Sites, guard: Callable[[], Any]) -> None:
    # The proof takes a gradient, so it must enable gradients itself.
    network = Between(nn.ReLU())
    with guard():
        steered = steer(network, BETA, C, sites)
    assert_agree(steered, Between(steered_relu))


# --- proven on the first input, where none can be made up ---


class Pair(nn.Module):
    def __init__(self, activation: Middle) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3).double()
        self.activation = activation

    def forward(self, x: Tensor, scale: Tensor, flip: bool = False) -> Tensor:
        hidden = self.activation(self.layer(x) * scale)
        return -hidden if flip else hidden


@pytest.mark.parametrize("sites", ["all", "modules"])
@pytest.mark.parametrize("guard", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_proof_waits_for_the_first_input(sites: Sites, guard: Callable[[], Any]) -> None:
    network, scale = Pair(nn.ReLU()), images(3)
    steered = steer(network, BETA, C, sites)
    assert steered.coverage is None
    with guard():
        found = steered(X, scale=scale, flip=True)
        assert torch.equal(found, -steered_relu(network.layer(X) * scale))
        assert found.requires_grad == torch.is_grad_enabled()
    assert steered.coverage is not None
    assert (steered.coverage.sites, steered.coverage.steered) == (1, 1)


@pytest.mark.parametrize(("activation", "fault"), [(F.gelu, NothingToSteer), (torch.ops.aten.relu, IncompleteSteering)])
def test_a_proof_that_fails_late_fails_every_time(activation: Middle, fault: type[Exception]) -> None:
    # If coverage were set before the error, the second pass would run unsteered without a word.
    steered = steer(Pair(activation), BETA, C)
    for _ in range(2):
        with pytest.raises(fault):
            steered(X, images(3))
    assert steered.coverage is None


def test_an_input_is_made_up_for_images_of_any_usual_size() -> None:
    for channels, side in ((3, 32), (1, 28), (3, 224), (3, 64), (1, 8)):
        flat = channels * side * side
        network = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Flatten(), nn.Linear(flat, 2))
        coverage = steer(network, BETA).coverage
        assert coverage is not None
        assert coverage.steered == 1


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n in ("beta", "c") for v in (-0.1, 1.1, float("nan"), "0.5")] + [("beta", None)]
)
def test_beta_and_c_outside_0_to_1_are_refused(name: str, value: Any) -> None:
    arguments: dict[str, Any] = {"beta": 0.5, "c": 0.5} | {name: value}
    with pytest.raises(SpecError) as error:
        steer(NETWORK, **arguments)
    assert str(error.value).startswith(f"{name}: ")
    assert "[0, 1]" in str(error.value)
    assert repr(value) in str(error.value)


def test_unknown_sites_are_refused() -> None:
    with pytest.raises(SpecError) as error:
        steer(NETWORK, 0.5, sites="some")  # type: ignore[arg-type]
    assert str(error.value).startswith("sites: ")
    assert "'all' or 'modules'" in str(error.value)
    assert "'some'" in str(error.value)


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(harness.curvature.steering).failed == 0


# --- RobustBench's architectures ---

Build = Callable[[], nn.Module]


@pytest.fixture(scope="module")
def zoo() -> dict[str, Build]:
    from harness.models.robustbench import import_robustbench

    import_robustbench()
    from robustbench.model_zoo.architectures import dm_wide_resnet, resnet, resnext, wide_resnet

    dm = partial(dm_wide_resnet.DMWideResNet, num_classes=10, depth=10, width=1)
    return {
        "ResNet18": resnet.ResNet18,
        "PreActResNet18": resnet.PreActResNet18,
        "ResNeXt": partial(resnext.CifarResNeXt, resnext.ResNeXtBottleneck, 11, 10, 2, 4),
        "WideResNet": partial(wide_resnet.WideResNet, depth=10, widen_factor=1),
        "DMWideResNet": partial(dm, activation_fn=nn.ReLU),
        "DMWideResNet, swish": partial(dm, activation_fn=dm_wide_resnet.Swish),
    }


def build(zoo: dict[str, Build], name: str) -> nn.Module:
    torch.manual_seed(0)
    return zoo[name]().eval()


PIXELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "executed", "modules"),
    [
        ("ResNet18", 17, 0),
        ("PreActResNet18", 16, 0),
        ("ResNeXt", 10, 0),
        ("WideResNet", 7, 7),
        ("DMWideResNet", 7, 7),
    ],
)
def test_architectures_of_the_zoo(
    zoo: dict[str, Build], monkeypatch: pytest.MonkeyPatch, name: str, executed: int, modules: int
) -> None:
    network = build(zoo, name)
    steered = steer(network, BETA, C)
    assert steered.coverage is not None
    assert (steered.coverage.sites, steered.coverage.steered) == (executed, executed)
    assert steered.coverage.kinds == {"relu": executed}
    if modules:
        replaced = steer(network, BETA, C, "modules")
        assert replaced.coverage == steered.coverage
        assert same_bits(steered, replaced, PIXELS)
    else:
        with pytest.raises(NothingToSteer, match=f"none of the {executed} activations.*use sites: all"):
            steer(network, BETA, C, "modules")
    monkeypatch.setattr(
        F, "relu", lambda x, inplace=False: steered_relu(x)
    )  # the oracle: every ReLU replaced from outside
    assert same_bits(steered, network, PIXELS)


def test_an_architecture_without_relu_is_named(zoo: dict[str, Build]) -> None:
    with pytest.raises(NothingToSteer, match="it uses sigmoid ×14"):
        steer(build(zoo, "DMWideResNet, swish"), BETA)


def test_beta_1_and_the_resnet_of_pyautoattack() -> None:
    from pyautoattack.examples.resnet import ResNet18

    network = ResNet18().eval()
    steered = steer(network, 1.0)
    assert steered.coverage is not None
    assert steered.coverage.steered == 17
    assert same_bits(steered, network, PIXELS)
