"""Lp threats: what they ask of AutoAttack, what they allow, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.api.attack import Trials
from harness.api.threat import SLACK, SLACK_BOX
from harness.api.trial import Attempt
from harness.attacks import autoattack
from harness.config.benchmark import parse_benchmark
from harness.errors import InvalidAdversary, SpecError
from harness.threats.lp import L1, L2, Linf, Lp, parse_pixels

RANKING = (5, 4, 0, 8, 3, 1, 7, 2, 9)
BALLS: list[tuple[type[Lp], float]] = [(Linf, 0.1), (L2, 0.5), (L1, 2.0)]


@pytest.mark.parametrize(("cls", "eps"), BALLS)
def test_the_ball_alone_is_the_identity_and_the_budget_is_the_stages(cls: type[Lp], eps: float) -> None:
    """So benchmarks with other attacks share the results of those that they have in common."""
    standard = cls(eps=eps)
    own = cls.model_validate({"eps": eps, "attack": {"stages": ["square", "apgd-t"]}})
    fewer = cls.model_validate({"eps": eps, "attack": {"stages": ["square"], "queries": 4999}})
    assert standard.identity() == own.identity() == {"kind": cls.kind, "eps": eps}
    assert standard.stage_identity("square") == own.stage_identity("square") != fewer.stage_identity("square")
    assert standard.stage_identity("apgd-t") == own.stage_identity("apgd-t")
    assert standard.identity() != cls(eps=eps / 2).identity()
    assert standard.standard
    assert not own.standard
    assert (own.columns()["attack"], standard.columns()["attack"]) == ("custom:square+apgd-t", "standard")


@pytest.mark.parametrize(("targets", "ranks"), [(1, 9), (9, 9), (20, 20)])
def test_at_least_autoattacks_nine_classes_are_ranked(targets: int, ranks: int) -> None:
    """So that benchmarks with fewer targets share clean trials with the standard one."""
    attack = {"stages": ["apgd-t"], "targets": targets}
    assert Linf.model_validate({"eps": 0.1, "attack": attack}).ranks == ranks
    assert Linf(eps=0.1).ranks == 9


@pytest.mark.parametrize("stage", ["apgd-ce", "apgd-t", "fab-t", "square"])
def test_attempts_and_variants_are_those_of_autoattack(stage: str) -> None:
    threat = Linf(eps=0.1)
    attempts = threat.attempts(stage, RANKING)
    assert attempts == autoattack.attempts(stage, "standard", "Linf", RANKING)
    assert [threat.variant(attempt) for attempt in attempts] == list(map(autoattack.variant, attempts))
    assert threat.passes(stage, 10) == autoattack.passes(stage, "standard", "Linf", 10)


@pytest.mark.parametrize(("cls", "eps"), BALLS)
@pytest.mark.parametrize("stage", ["apgd-ce", "apgd-t", "fab-t", "square"])
def test_each_stages_step_machine_finds_what_check_allows(cls: type[Lp], eps: float, stage: str) -> None:
    """On a linear network, easy to fool; a survivor ends too."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).requires_grad_(False)
    x = torch.rand(8, 1, 8, 8)
    logits = network(x)
    y, targets = logits.argmax(1), logits.argsort(1)[:, -2]
    attack = {"stages": [stage], "iterations": 10, "queries": 100}
    threat = cls.model_validate({"eps": eps, "attack": attack})
    machine = threat.attack_machine(stage, 8, (1, 8, 8), 10, "cpu")
    variants = torch.full((8,), threat.variant(Attempt(stage)))
    machine.start(torch.arange(8), Trials(x, y, targets, torch.arange(8), variants))
    while not machine.finished.all():
        machine.prepare()
        machine.step(network)
    assert machine.fooled.any()
    found = machine.found[machine.fooled]
    assert (network(found).argmax(1) != y[machine.fooled]).all()
    threat.check(x[machine.fooled], found)
    assert 0 <= found.min() <= found.max() <= 1


@given(st.integers(0, 10**6))
def test_distance_is_numpys(seed: int) -> None:
    drawn = np.random.default_rng(seed)
    x, other = drawn.random((2, 3, 1, 4, 5)).astype("float32")
    for cls, order in ((Linf, np.inf), (L2, 2), (L1, 1)):
        expected = [np.linalg.norm((a.astype("f8") - b).ravel(), order) for a, b in zip(x, other, strict=True)]
        found = cls(eps=0.5).distance(torch.from_numpy(x), torch.from_numpy(other))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(("cls", "eps"), BALLS)
def test_check_forgives_rounding_and_nothing_more(cls: type[Lp], eps: float) -> None:
    threat, x = cls(eps=eps), torch.zeros(2, 1, 2, 2)
    edge = eps * (1 + SLACK) + SLACK_BOX
    for distance, allowed in ((eps, True), (edge - 1e-7, True), (edge + 1e-6, False), (2 * eps, False)):
        perturbed = x.clone()
        perturbed[1, 0, 0, 0] = distance  # one pixel: all norms agree
        if allowed:
            threat.check(x, perturbed)
        else:
            with pytest.raises(InvalidAdversary, match=rf"{cls.kind} distance .* where eps is"):
                threat.check(x, perturbed)


@pytest.mark.parametrize(("text", "pixels"), [("8/255", 8 / 255), (" 1 / 2 ", 0.5), ("0.03", 0.03)])
def test_eps_may_be_a_fraction(text: str, pixels: float) -> None:
    assert parse_pixels(text) == pixels
    assert L2.model_validate({"eps": text}).eps == pixels


@pytest.mark.parametrize("cls", [Linf, L2, L1])
def test_a_radius_that_no_float32_pixel_shows_is_refused(cls: type[Lp]) -> None:
    below_one = float(1 - torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)))
    assert cls(eps=below_one).eps == below_one
    for eps in (below_one / 2, 1e-300):
        with pytest.raises(
            ValidationError, match=r"finer than float32 pixels can show: expected at least 6e-08, found"
        ):
            cls(eps=eps)


@pytest.mark.parametrize("eps", ["eight", "1/0", 0, -1, float("inf"), float("nan")])
def test_what_is_no_radius_is_refused(eps: Any) -> None:
    with pytest.raises(ValidationError):
        L2.model_validate({"eps": eps})


def test_grey_levels_are_recognised() -> None:
    with pytest.raises(ValidationError, match='write "8/255"'):
        Linf(eps=8)
    assert L1(eps=12).eps == 12


# --- L1's three radii ---


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("stage", ["apgd-ce", "apgd-dlr", "apgd-t"])
def test_under_l1_apgd_needs_a_step_at_each_radius(stage: str, iterations: int) -> None:
    attack = {"stages": ["square", stage], "iterations": iterations}
    with pytest.raises(
        ValidationError, match=f"expected at least 3, found {iterations}; raise iterations, or leave out {stage}"
    ):
        L1.model_validate({"eps": 12, "attack": attack})
    Linf.model_validate({"eps": 0.1, "attack": attack})
    L2.model_validate({"eps": 0.5, "attack": attack})


def test_where_they_are_too_few_the_benchmark_says_what_to_do() -> None:
    asked = {
        "name": "x",
        "models": [{"kind": "demo", "name": "digits_plain"}],
        "dataset": {"kind": "digits"},
        "threat": {"kind": "L1", "eps": 12, "attack": {"stages": ["apgd-ce"], "iterations": 2}},
        "steering": {"beta": 0.9},
    }
    told = r"threat\.attack.* three radii .*expected at least 3, found 2; raise iterations, or leave out apgd-ce"
    with pytest.raises(SpecError, match=told):
        parse_benchmark(asked)


@pytest.mark.parametrize(
    "attack",
    [
        "standard",
        {"stages": ["apgd-ce"], "iterations": 3},
        {"stages": ["square"], "iterations": 1},
        {"stages": ["fab-t"], "iterations": 1},
    ],
)
def test_enough_steps_or_other_attacks_are_welcome_under_l1(attack: Any) -> None:
    L1.model_validate({"eps": 12, "attack": attack})
