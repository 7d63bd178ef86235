"""The built-in parts pass the suites that third parties are given."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.api.attack import Attack, Network, Trials
from harness.api.records import Batch
from harness.api.threat import Threat
from harness.api.trial import Attempt
from harness.datasets.arrays import Arrays
from harness.datasets.digits import Digits
from harness.errors import ModelError
from harness.executors.local import Local
from harness.models.checkpoint import Checkpoint
from harness.models.demo import Demo
from harness.models.loaded import Loaded
from harness.testing import DatasetContract, ExecutorContract, ModelContract, ThreatContract
from harness.threats.clean import Clean
from harness.threats.lp import L1, L2, Linf
from harness.util.noise import Noise

BRIEF = {"stages": ["apgd-ce", "apgd-t", "fab-t", "square"], "iterations": 6, "queries": 20}


class TestDemo(ModelContract):
    shape = (1, 8, 8)

    @pytest.fixture(params=["digits_plain", "digits_robust"])
    def part(self, request: pytest.FixtureRequest) -> Demo:
        return Demo(name=request.param)


class TestCheckpoint(ModelContract):
    @pytest.fixture
    def part(self) -> Checkpoint:
        return Checkpoint(
            builder="pyautoattack.examples.resnet:ResNet18", weights="pkg:pyautoattack/examples/model_test.pt"
        )


class TestDigits(DatasetContract):
    @pytest.fixture(params=["test", "train"])
    def part(self, request: pytest.FixtureRequest) -> Digits:
        return Digits(split=request.param)


class TestArrays(DatasetContract):
    @pytest.fixture
    def part(self, tmp_path: Path) -> Arrays:
        rng = np.random.default_rng(0)
        np.savez(tmp_path / "x.npz", x=rng.integers(0, 256, (30, 3, 4, 4), np.uint8), y=rng.integers(0, 5, 30))
        return Arrays(path=str(tmp_path / "x.npz"))


class TestLinf(ThreatContract):
    @pytest.fixture(params=["standard", BRIEF])
    def part(self, request: pytest.FixtureRequest) -> Linf:
        return Linf.model_validate({"eps": "8/255", "attack": request.param})


class TestL2(ThreatContract):
    @pytest.fixture
    def part(self) -> L2:
        return L2.model_validate({"eps": 0.5, "attack": BRIEF})


class TestL1(ThreatContract):
    @pytest.fixture
    def part(self) -> L1:
        return L1.model_validate({"eps": 2, "attack": BRIEF})


class TestClean(ThreatContract):
    @pytest.fixture
    def part(self) -> Clean:
        return Clean()


@pytest.mark.slow
class TestLocal(ExecutorContract):
    """With one worker, boards are those of this process: see tests/executors."""

    @pytest.fixture
    def part(self) -> Local:
        return Local(workers=2)


# --- the suites find what they look for ---


class PlainThreat(Threat):
    """A random step, as it should be; its faulty versions below differ in one thing."""

    kind: ClassVar[str] = "plain"
    stages: ClassVar[tuple[str, ...]] = ("step",)

    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        return (batch.x + 0.1 * noise.signs(tuple(batch.x.shape[1:]))).clamp(0, 1)


class DrawsForTheBatch(PlainThreat):
    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        drawn = torch.rand(
            batch.x.shape, generator=torch.Generator().manual_seed(int(noise.integers((), 2**31 - 1)[0]))
        )
        return (batch.x + 0.1 * drawn).clamp(0, 1)


class LooksAtTheBatch(PlainThreat):
    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        return (batch.x + 0.1 * (batch.x - batch.x.mean(0))).clamp(0, 1)


class DrawsGlobally(PlainThreat):
    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        return (batch.x + 0.1 * torch.rand_like(batch.x)).clamp(0, 1)


class Overwrites(PlainThreat):
    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        return batch.x.mul_(0.5)


class TakesAnOwnStage(PlainThreat):
    stages: ClassVar[tuple[str, ...]] = ("replay",)


class RepeatsAttempts(PlainThreat):
    def attempts(self, stage: str, ranking: Sequence[int]) -> tuple[Attempt, ...]:
        return (Attempt(stage), Attempt(stage))


class SharesIdentities(PlainThreat):
    stages: ClassVar[tuple[str, ...]] = ("one", "two")

    def stage_identity(self, stage: str) -> dict[str, Any]:
        return {"stage": "any"}


class Rebinding(Attack):
    """Ends after a step, and says that it can be captured, but puts another tensor in the place of one."""

    capturable = True
    forwards, backwards = 1, 0

    def __init__(self, slots: int, shape: tuple[int, ...]) -> None:
        self.found = torch.zeros(slots, *shape)
        self.fooled, self.finished = torch.zeros(2, slots, dtype=torch.bool)

    def start(self, slots: Tensor, trials: Trials) -> None:
        self.found[slots] = trials.x

    def step(self, network: Network) -> None:
        network(self.found)
        self.finished = ~self.finished


class RebindsATensor(PlainThreat):
    def attack_machine(self, stage: str, slots: int, shape: tuple[int, ...], classes: int, device: str) -> Attack:
        return Rebinding(slots, shape)


class AsksTheNetworkAhead(PlainThreat):
    concurrent: ClassVar[bool] = True

    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        wanted: Tensor = network(batch.x).argmax(1)
        return (batch.x + 0.1 * wanted[:, None, None, None].sign()).clamp(0, 1)


@pytest.mark.parametrize(
    ("threat", "test"),
    [
        (AsksTheNetworkAhead, "test_concurrent_stages_need_no_network"),
        (DrawsForTheBatch, "test_an_image_alone_becomes_what_it_becomes_among_others"),
        (LooksAtTheBatch, "test_an_image_alone_becomes_what_it_becomes_among_others"),
        (DrawsGlobally, "test_same_key_same_image"),
        (Overwrites, "test_proposes_an_image_for_each"),
        (TakesAnOwnStage, "test_names_its_stages"),
        (RepeatsAttempts, "test_attempts_belong_to_their_stage"),
        (RebindsATensor, "test_a_step_that_can_be_captured_works_on_the_same_memory"),
        (SharesIdentities, "test_stages_have_identities_of_their_own"),
    ],
)
def test_a_planted_fault_fails_its_own_test(threat: type[PlainThreat], test: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval().requires_grad_(False)
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    takes = inspect.signature(getattr(ThreatContract, test)).parameters
    for part, fails in ((PlainThreat(), False), (threat(), True)):
        given = {"part": part, "network": network, "batch": Batch(x.clone(), network(x).argmax(1), torch.arange(12))}
        run = functools.partial(getattr(ThreatContract(), test), **{k: v for k, v in given.items() if k in takes})
        if fails:
            with pytest.raises((AssertionError, ModelError)):
                run()
        else:
            run()


def test_a_network_with_batch_statistics_is_found() -> None:
    class Normalising(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean(0)).flatten(1)

    suite = TestDemo()
    with pytest.raises(AssertionError):
        suite.test_an_image_has_the_bits_that_it_has_in_company(Loaded(Normalising().eval(), ""))
