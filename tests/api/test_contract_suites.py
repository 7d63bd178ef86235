"""The built-in parts pass the suites that third parties are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.datasets.arrays import Arrays
from harness.datasets.digits import Digits
from harness.executors.local import Local
from harness.models.checkpoint import Checkpoint
from harness.models.demo import Demo
from harness.testing import DatasetContract, ExecutorContract, ModelContract, ThreatContract
from harness.threats.clean import Clean
from harness.threats.lp import L1, L2, Linf

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
