"""Attempts, budgets and identities of AutoAttack's versions, against the object that the library configures itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.library import configured
from torch import Tensor, nn

from harness.api.trial import Attempt
from harness.attacks import autoattack
from harness.attacks.apgd_losses import CE, DLR, TARGETED_DLR
from harness.attacks.autoattack import VERSIONS, Attack, Custom
from harness.attacks.fab import CLEAN_START, RANDOM_START
from harness.attacks.norms import Norm
from harness.util.hashing import canonical

CUSTOM = Custom(
    stages=("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"),
    iterations=30,
    restarts=3,
    targets=4,
    queries=700,
)
ATTACKS: dict[str, Attack] = {"standard": "standard", "plus": "plus", "rand": "rand", "custom": CUSTOM}
CASES = [
    pytest.param(attack, stage, id=f"{name}-{stage}")
    for name, attack in ATTACKS.items()
    for stage in autoattack.stages(attack)
]
NORMS: list[tuple[Norm, float]] = [("Linf", 0.1), ("L2", 0.5), ("L1", 2.0)]


def ranking(classes: int) -> tuple[int, ...]:
    return tuple(range(classes - 1, 0, -1))


def of_the_library(stage: str, attack: Attack, classes: int = 10, norm: Norm = "Linf") -> Any:
    """The library's object for a stage, as it sets it up for it (AutoAttack.run_standard_evaluation)."""
    tool = configured(attack, nn.Identity(), classes, norm, 0.1, "cpu")
    if stage in ("fab", "fab-t"):
        tool.fab.targeted = stage == "fab-t"
        if tool.fab.targeted:
            tool.fab.n_restarts = 1
        return tool.fab
    return {"apgd-t": tool.apgd_targeted, "square": tool.square}.get(stage, tool.apgd)


@pytest.mark.parametrize("name", VERSIONS)
def test_versions_have_the_librarys_attacks_in_its_order(name: Any) -> None:
    assert list(autoattack.stages(name)) == configured(name, nn.Identity(), 10, "Linf", 0.1, "cpu").attacks_to_run


@pytest.mark.parametrize(("attack", "stage"), CASES)
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("classes", [10, 5, 4])
def test_attempts_are_the_librarys_restarts_on_its_targets(
    attack: Attack, stage: str, norm: Norm, classes: int
) -> None:
    tool = of_the_library(stage, attack, classes, norm)
    made = autoattack.attempts(stage, attack, norm, ranking(classes))
    assert all(attempt.stage == stage for attempt in made)
    assert len(set(made)) == len(made)
    assert {attempt.restart for attempt in made} == set(range(tool.n_restarts))
    if stage in ("apgd-t", "fab-t"):
        targets = tuple(dict.fromkeys(attempt.target for attempt in made))
        assert targets == ranking(classes)[: tool.n_target_classes]
        assert len(made) == len(targets) * tool.n_restarts
    else:
        assert {attempt.target for attempt in made} == {-1}
        assert len(made) == tool.n_restarts


@pytest.mark.parametrize(("attack", "stage"), CASES)
@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_budgets_are_the_librarys(attack: Attack, stage: str, norm: Norm, eps: float) -> None:
    tool = of_the_library(stage, attack, norm=norm)
    identity = autoattack.identity(stage, attack, norm)
    if stage == "square":
        assert identity == {"stage": stage, "queries": tool.n_queries}
        return
    averaged = getattr(tool, "eot_iter", 1)
    fixed = norm == "L1" and stage.startswith("apgd") and not tool.use_largereps
    assert identity == (
        {"stage": stage, "iterations": tool.n_iter}
        | ({"gradients": averaged} if averaged > 1 else {})
        | ({"radius": "fixed"} if fixed else {})
    )
    machine = made(stage, attack, norm, eps)
    if stage.startswith("apgd"):
        assert autoattack.gradients(attack) == averaged == machine.forwards == machine.backwards
        assert autoattack.shrinks(attack, norm) == tool.use_largereps


def made(stage: str, attack: Attack, norm: Norm, eps: float, slots: int = 4) -> Any:
    return autoattack.machine(stage, attack, norm=norm, eps=eps, slots=slots, shape=(1, 4, 4), classes=10, device="cpu")


def test_what_plus_does_differently() -> None:
    """In numbers: five restarts of the untargeted attacks, one of the others (arXiv 2003.01690)."""
    counted = {
        stage: len(autoattack.attempts(stage, "plus", "Linf", ranking(10))) for stage in autoattack.stages("plus")
    }
    assert counted == {"apgd-ce": 5, "apgd-dlr": 5, "fab": 5, "square": 1, "apgd-t": 9, "fab-t": 9}


def test_what_standard_does_differently_under_l1() -> None:
    """In numbers: five restarts of APGD with its cross-entropy, and five targets (Croce & Hein 2021)."""
    for norm, restarts, targets in (("Linf", 1, 9), ("L2", 1, 9), ("L1", 5, 5)):
        counted = {s: len(autoattack.attempts(s, "standard", norm, ranking(10))) for s in VERSIONS["standard"]}  # type: ignore[arg-type]
        assert counted == {"apgd-ce": restarts, "apgd-t": targets, "fab-t": 9, "square": 1}


def test_gradients_are_averaged_for_randomised_networks_alone() -> None:
    assert {autoattack.gradients(attack) for attack in ("standard", "plus", CUSTOM)} == {1}
    assert autoattack.gradients("rand") == 20


def test_benchmarks_share_what_they_have_in_common() -> None:
    own = Custom(stages=("apgd-t",), targets=3)
    assert autoattack.identity("apgd-t", own, "L2") == autoattack.identity("apgd-t", "standard", "L2")
    few, all_ = (autoattack.attempts("apgd-t", attack, "L2", ranking(10)) for attack in (own, "standard"))
    assert few == all_[:3]
    assert autoattack.identity("apgd-ce", "rand", "L2") != autoattack.identity("apgd-ce", "standard", "L2")
    assert autoattack.identity("apgd-ce", "plus", "L1") != autoattack.identity("apgd-ce", "standard", "L1")


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_identities_are_json_and_each_stages_own(attack: Attack) -> None:
    stages = autoattack.stages(attack)
    assert len({canonical(autoattack.identity(stage, attack, "L1")) for stage in stages}) == len(stages)


@pytest.mark.parametrize(
    ("stage", "least"), [("apgd-ce", 2), ("apgd-dlr", 3), ("apgd-t", 4), ("fab", 2), ("fab-t", 2), ("square", 2)]
)
def test_no_attempt_where_classes_are_too_few(stage: str, least: int) -> None:
    """DLR ranks three logits, and four when it is targeted: with fewer the library fails."""
    assert autoattack.attempts(stage, CUSTOM, "Linf", ranking(least)) != ()
    assert autoattack.attempts(stage, CUSTOM, "Linf", ranking(least - 1)) == ()


def test_variants_name_losses_and_starts() -> None:
    losses = {"apgd-ce": CE, "apgd-dlr": DLR, "apgd-t": TARGETED_DLR}
    assert {stage: autoattack.variant(Attempt(stage, restart=1)) for stage in losses} == losses
    assert autoattack.variant(Attempt("fab")) == autoattack.variant(Attempt("fab-t", 3)) == CLEAN_START
    assert autoattack.variant(Attempt("fab", restart=2)) == RANDOM_START
    assert autoattack.variant(Attempt("square", restart=1)) == 0


class Sure(nn.Module):
    """Never fooled: the label's logit leads by far, and the pixels hardly matter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(10, 16, generator=torch.Generator().manual_seed(0)) / 1000

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1) @ self.weight.T
        return logits + 5 * (torch.arange(10) == 0)


@pytest.mark.parametrize(("attack", "stage"), CASES)
@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_passes_are_those_that_a_survivor_takes(attack: Attack, stage: str, norm: Norm, eps: float) -> None:
    """Counted on a network that nothing fools: steps of one attempt, times the attempts."""
    from harness.api.attack import Trials

    machine, network = made(stage, attack, norm, eps, slots=1), Sure()
    x, y = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, dtype=torch.int64)
    attempts = autoattack.attempts(stage, attack, norm, ranking(10))
    variant = torch.tensor([autoattack.variant(attempts[0])])
    machine.start(torch.tensor([0]), Trials(x, y, y + 9, torch.tensor([7]), variant))
    if stage == "square" and attack is not CUSTOM:
        pytest.skip("5,000 queries: those of the custom budget are counted in the same way")
    steps = 0
    while not machine.finished.all():
        machine.prepare()
        machine.step(network)
        steps += 1
    assert not machine.fooled.any()
    passes, runs = autoattack.passes(stage, attack, norm, 10), len(attempts)
    starts = 2 if autoattack.shrinks(attack, norm) and stage.startswith("apgd") else 0  # one more at each larger radius
    assert passes.gradients <= runs * steps * machine.backwards <= passes.gradients + starts * runs * machine.backwards
    if stage != "fab":  # which has several backward passes to one forward pass
        counted = passes.forwards + passes.gradients
        assert counted <= runs * steps * machine.forwards <= counted + starts * runs * machine.forwards


@pytest.mark.parametrize("twice", [("square", "square"), ("fab", "apgd-ce", "fab")])
def test_an_attack_is_named_once(twice: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="each attack may be named once"):
        Custom(stages=twice)
