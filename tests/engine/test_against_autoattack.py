"""Images lost here and by the library's own AutoAttack, by one image at most apart.

Same attempts, budgets, targets and losses; only the source of the noise differs.
"""

from __future__ import annotations

from typing import Literal

import pytest
from helpers.scored import score, task_of
from pyautoattack import AutoAttack
from torch import nn

from harness.api.records import BASELINE, Steering
from harness.datasets.digits import Digits
from harness.engine.numerics import reproducible
from harness.models.demo import Demo
from harness.threats.lp import L1, L2, Linf, Lp

N = 20
Name = Literal["digits_plain", "digits_robust"]


def lost_by_the_library(network: nn.Module, threat: Lp, seed: int) -> set[int]:
    """Return the images that are classified correctly and that ``run_standard_evaluation`` makes the network miss."""
    batch = Digits().open().read(tuple(range(N)))
    right = network(batch.x).argmax(1) == batch.y
    tool = AutoAttack(network, norm=threat.norm, eps=threat.eps, version="standard", seed=seed, device="cpu")
    with reproducible():
        adversarial, _ = tool.run_standard_evaluation(batch.x.clone(), batch.y.clone(), batch_size=N)
    missed = network(adversarial).argmax(1) != batch.y
    return set((right & missed).nonzero().flatten().tolist())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "cls", "eps", "beta"),
    [
        ("digits_plain", Linf, 0.1, 1.0),
        ("digits_plain", Linf, 0.1, 0.8),
        ("digits_robust", Linf, 0.2, 1.0),
        ("digits_plain", L2, 0.5, 1.0),
        ("digits_plain", L1, 2.0, 1.0),
    ],
)
def test_the_same_images_are_lost_but_for_the_noise(name: Name, cls: type[Lp], eps: float, beta: float) -> None:
    model, threat = Demo(name=name), cls(eps=eps)
    steering = BASELINE if beta == 1 else Steering(beta)
    ours = score(task_of(model, Digits(), threat), range(N), steering).lost
    loaded = model.load()
    network = loaded.steered(steering, Digits().open().read((0,)).x).requires_grad_(False)
    theirs = lost_by_the_library(network, threat, seed=0)
    assert 0 < len(theirs) < N
    assert len(ours ^ theirs) <= 1, (sorted(ours), sorted(theirs))
