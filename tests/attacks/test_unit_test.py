"""Attack unit test: what is planted is there, any attack that sees it finds it, and one that is blind does not."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from helpers.networks import digits, network_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.api.records import Batch
from harness.attacks.square import Square
from harness.attacks.unit_test import QUERIES, REACH, plant, run
from harness.threats.lp import L1, L2, Linf, Lp
from harness.util.noise import Noise, key_of

THREATS = [Linf(eps=0.1), L2(eps=0.5), L1(eps=2)]
N = 12


def noise(n: int = N) -> Noise:
    return Noise(0, torch.tensor([key_of("unit test", i) for i in range(n)]))


def batch(x: Tensor, y: Tensor) -> Batch:
    return Batch(x, y, torch.arange(len(x)))


@pytest.fixture(scope="module")
def example() -> tuple[Tensor, Tensor]:
    x, y = digits("digits_plain", 20)
    return x[:N], y[:N]


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.kind)
def test_a_readout_is_crossed_within_the_ball_and_not_on_the_clean_image(
    threat: Lp, example: tuple[Tensor, Tensor]
) -> None:
    network, (x, _) = network_of("digits_plain"), example
    readout, planted = plant(network, x, noise(), threat.norm, threat.eps)
    assert planted.sum() >= N - 2  # a search of a hundred queries does not always get on
    clean = readout(network(x))
    assert (clean.argmax(1) == 0).all()
    torch.testing.assert_close(clean[:, 0], torch.full((N,), REACH))
    search = Square(N, (1, 8, 8), norm=threat.norm, eps=threat.eps, queries=10 * QUERIES)
    run(search, lambda images: readout(network(images)), x, torch.arange(N))
    crossed = (search.fooled & planted).nonzero().flatten()
    assert len(crossed) > N // 2
    assert (readout.part(crossed)(network(search.found[crossed])).argmax(1) == 1).all()
    threat.check(x[crossed], search.found[crossed])


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.kind)
@pytest.mark.parametrize("stage", ["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"])
def test_every_attack_finds_what_is_planted_in_a_healthy_network(
    stage: str, threat: Lp, example: tuple[Tensor, Tensor]
) -> None:
    brief = {"stages": [stage], "iterations": 20, "queries": 2000}
    found = (
        type(threat)
        .model_validate({"eps": threat.eps, "attack": brief})
        .unit_test(network_of("digits_plain"), batch(*example), noise())
    )
    assert found.nanmean() >= 0.95


class Blind(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = network_of("digits_plain")(x)
        return logits.detach() + 0 * x.sum()


@pytest.mark.parametrize("also", [[], ["square"]])
def test_a_blind_attack_finds_little_though_square_sees(also: list[str], example: tuple[Tensor, Tensor]) -> None:
    attack = {"stages": ["apgd-ce", "fab-t", *also], "iterations": 10, "queries": 500}
    found = Linf.model_validate({"eps": 0.1, "attack": attack}).unit_test(Blind(), batch(*example), noise())
    assert found.nanmean() < 0.3


def test_nothing_is_planted_where_the_ball_leaves_the_logits_as_they_are(example: tuple[Tensor, Tensor]) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x.flatten(1)[:, :3] + torch.tensor([1.0, 0, 0])

    assert Linf(eps=0.1).unit_test(Constant(), batch(*example), noise()).isnan().all()


@pytest.mark.parametrize("scale", [1e-4, 1e5])
def test_the_scale_of_the_logits_does_not_matter(scale: float, example: tuple[Tensor, Tensor]) -> None:
    network, (x, _) = network_of("digits_plain"), example
    plain, planted = plant(network, x, noise(), "Linf", 0.1)
    scaled, also = plant(lambda images: scale * network(images), x, noise(), "Linf", 0.1)
    torch.testing.assert_close(scaled.length[planted] / scale, plain.length[planted], rtol=1e-3, atol=0)
    assert torch.equal(planted, also)


def test_an_image_s_result_does_not_depend_on_the_others(example: tuple[Tensor, Tensor]) -> None:
    network, (x, _) = network_of("digits_plain"), example
    of_all, _ = plant(network, x, noise(), "L2", 0.5)
    of_some, _ = plant(network, x[:8], noise(8), "L2", 0.5)
    torch.testing.assert_close(of_some.length, of_all.length[:8], rtol=1e-4, atol=0)
    torch.testing.assert_close(of_some.direction, of_all.direction[:8], rtol=0, atol=0)


class Steps(Linf):
    """A few signed steps as a plain function, upwards or downwards."""

    kind: ClassVar[str] = "steps"
    upwards: bool = True

    def attack_machine(self, stage: str, slots: int, shape: tuple[int, ...], classes: int, device: str) -> Any:
        return None

    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        x = batch.x
        for _ in range(4):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(network(x), batch.y, reduction="sum"), x)
            x = (x + (1 if self.upwards else -1) * self.eps / 4 * gradient.sign()).clamp(0, 1)
        return x.detach()


@pytest.mark.parametrize("upwards", [True, False])
def test_an_attack_that_is_a_plain_function_is_tested_too(upwards: bool, example: tuple[Tensor, Tensor]) -> None:
    threat = Steps.model_validate({"eps": 0.1, "attack": {"stages": ["apgd-ce"]}, "upwards": upwards})
    found = threat.unit_test(network_of("digits_plain"), batch(*example), noise())
    assert found.nanmean() == float(upwards)
