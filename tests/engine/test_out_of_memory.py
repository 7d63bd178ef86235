"""A GPU without memory for a batch: narrower ones give the same bits, and nothing else is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from helpers.packages import INSTALLED
from torch import Tensor, nn

from harness.api.model import Model, Scorable
from harness.config.benchmark import parse_benchmark
from harness.curvature.steering import Steered
from harness.engine.acceleration import Fast
from harness.engine.fixed_width import FixedWidth
from harness.engine.session import model_session
from harness.errors import ModelError
from harness.models.demo import Demo
from harness.models.loaded import Loaded
from harness.pipeline import run
from harness.util.hashing import sha256_of_weights


@dataclass
class Memory:
    """What a GPU has room for.

    Args:
        images: most images of a batch.
        after: number of batches after which somebody else takes the rest of the memory.
        backward: whether it is the backward pass that needs it.
        batches: number of batches so far.
        widest: images of the widest batch that went through.
    """

    images: int
    after: int = 0
    backward: bool = False
    batches: int = 0
    widest: int = 0

    def take(self, images: int) -> None:
        if self.batches > self.after and images > self.images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


memory = Memory(10**6)


class Needs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        memory.batches += 1
        if not memory.backward:
            memory.take(len(x))
        memory.widest = max(memory.widest, len(x))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if memory.backward:
            memory.take(len(gradient))
        return gradient


class Hungry(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = Demo(name="digits_plain").load().network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(Needs.apply(x))
        return logits


class HungryModel(Model):
    kind: ClassVar[str] = "hungry"

    @property
    def label(self) -> str:
        return "hungry"

    def load(self, *, offline: bool = False) -> Scorable:
        network = Hungry().eval()
        return Loaded(network, sha256_of_weights(network))


ATTACK = {"stages": ["apgd-ce", "apgd-t", "square"], "iterations": 10, "targets": 2, "queries": 70}


@pytest.fixture(autouse=True)
def _room_again() -> Iterator[None]:
    yield
    model_session.cache_clear()
    vars(memory).update(vars(Memory(10**6)))


def board(runs: Path, images: int, **changes: Any) -> pd.DataFrame:
    model_session.cache_clear()
    vars(memory).update(vars(Memory(images, **changes)))
    benchmark = {
        "name": "memory",
        "models": [HungryModel()],
        "dataset": {"kind": "digits", "n": 96},
        "threat": {"kind": "Linf", "eps": 0.1, "attack": ATTACK},
        "steering": {"beta": 0.8},
        "executor": {"kind": "inline"},
    }
    return run(parse_benchmark(benchmark), runs=runs)


pytestmark = pytest.mark.usefixtures("installed")


@dataclass(frozen=True)
class Plenty:
    """A run with room for every batch.

    Args:
        board: its board.
        batches: number of its batches.
        widest: images of the widest.
    """

    board: pd.DataFrame
    batches: int
    widest: int


@pytest.fixture(scope="module")
def plenty(tmp_path_factory: pytest.TempPathFactory) -> Plenty:
    """Computed once; the runs that are short of memory are held against it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(INSTALLED))
        return Plenty(board(tmp_path_factory.mktemp("plenty"), 10**6), memory.batches, memory.widest)


@pytest.mark.parametrize("backward", [False, True])
def test_memory_that_is_short_from_the_start_costs_no_bit(tmp_path: Path, plenty: Plenty, backward: bool) -> None:
    there, short = plenty.board, board(tmp_path / "b", 16, backward=backward)
    assert board(tmp_path / "c", 16, backward=backward).drop(columns="seconds").equals(short.drop(columns="seconds"))
    assert short.drop(columns="seconds").equals(there.drop(columns="seconds"))
    assert set(short["flags"]) == {""}


@pytest.mark.parametrize(("share", "backward"), [(0.3, False), (0.6, False), (0.3, True)])
def test_memory_that_is_taken_in_the_middle_is_told_and_costs_no_bit(
    tmp_path: Path, plenty: Plenty, share: float, backward: bool
) -> None:
    assert plenty.widest > 16
    after = int(share * plenty.batches)
    with pytest.warns(UserWarning, match=r"^hungry: out of memory on cpu; going on in batches of \d+ images"):
        short = board(tmp_path / "b", 16, after=after, backward=backward)
    assert short.drop(columns="seconds").equals(plenty.board.drop(columns="seconds"))


def test_a_network_that_does_not_fit_at_all_fails_and_says_why(tmp_path: Path) -> None:
    table = board(tmp_path, 0, after=60)
    assert len(table) == 1
    assert "not one image at a time fits in the memory of cpu" in table["status"][0]
    assert set(table["flags"]) == {""}


def test_a_width_that_does_not_fit_is_no_width() -> None:
    vars(memory).update(vars(Memory(8)))
    fixed = FixedWidth(Hungry().eval(), torch.rand(4, 1, 8, 8))
    assert fixed.reference == 8
    assert fixed.fastest <= 8
    assert fixed(torch.rand(50, 1, 8, 8)).shape == (50, 10)
    vars(memory).update(vars(Memory(0)))
    with pytest.raises(ModelError, match="not one image at a time fits in the memory of cpu"):
        FixedWidth(Hungry().eval(), torch.rand(4, 1, 8, 8))


def test_the_proof_of_steering_takes_it_for_what_it_is() -> None:
    from harness.curvature.mixed import mixes
    from harness.curvature.steering import steer

    example = torch.rand(4, 1, 8, 8)
    steered: Steered = steer(Hungry().eval(), 0.8, example=example)
    vars(memory).update(vars(Memory(0)))
    with pytest.raises(torch.OutOfMemoryError):
        steer(Hungry().eval(), 0.8, example=example)
    with pytest.raises(torch.OutOfMemoryError):
        mixes(steered, example)


@pytest.mark.parametrize("images", [8, 12])
def test_memory_for_less_than_the_first_width_of_reference_fails_no_model(tmp_path: Path, images: int) -> None:
    table = board(tmp_path, images)
    assert table["status"].isin(["ok", "selected"]).all(), table["status"].tolist()
    assert set(table["flags"]) == {""}


def test_memory_that_is_short_before_a_network_ran_makes_batches_narrower() -> None:
    session = model_session(HungryModel(), "cpu", True)
    network = FixedWidth(session.loaded.network, torch.rand(4, 1, 8, 8))
    session._lanes[("any",)] = Fast(network, compiled=False)
    assert session.narrow() == (network.width // 2, True)
