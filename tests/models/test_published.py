"""RobustBench's published accuracies: those on its boards, for every model of its zoo and for no other."""

from __future__ import annotations

from math import comb

import pytest

from harness.analysis.statistics import UNLIKE, unlike
from harness.api.records import Published
from harness.models.published import _table, published
from harness.models.robustbench import RobustBench

KNOWN = [
    ("cifar10", "Linf", "Standard", 94.78, 0.00, 8 / 255),
    ("cifar10", "Linf", "Wang2023Better_WRN-70-16", 93.25, 70.69, 8 / 255),
    ("cifar10", "Linf", "Engstrom2019Robustness", 87.03, 49.25, 8 / 255),
    ("cifar10", "L2", "Standard", 94.78, 0.00, 0.5),
    ("cifar10", "corruptions", "Standard", 94.78, 73.46, None),
    ("cifar100", "Linf", "Wang2023Better_WRN-28-10", 72.58, 38.83, 8 / 255),
    ("imagenet", "Linf", "Standard_R50", 76.52, 0.00, 4 / 255),
    ("imagenet", "corruptions", "AlexNet", 56.24, 21.12, None),
    ("imagenet", "corruptions_3d", "AlexNet", 56.24, 28.47, None),
]


@pytest.mark.parametrize(("dataset", "threat", "name", "clean", "robust", "eps"), KNOWN)
def test_the_accuracies_are_those_on_the_board(
    dataset: str, threat: str, name: str, clean: float, robust: float, eps: float | None
) -> None:
    found = published(dataset, threat, name)
    assert found is not None
    assert found.robust is not None
    assert (100 * found.clean, 100 * found.robust) == pytest.approx((clean, robust), abs=1e-9)
    assert found.eps == (None if eps is None else pytest.approx(eps))
    assert f"{dataset}/{threat.removesuffix('_3d')}/{name}.json" in found.source


def test_every_model_of_the_zoo_has_accuracies_and_no_other() -> None:
    boards = {
        tuple(heading.removeprefix("robustbench ").split("/")): set(names)
        for heading, names in RobustBench.names().items()
    }
    of_2d = {key: value for key, value in _table().items() if key[1] != "corruptions_3d"}
    assert set(of_2d) == {(*board, name) for board, names in boards.items() for name in names}
    assert len(of_2d) == 206
    assert {key[2] for key in _table().keys() - of_2d.keys()} == boards["imagenet", "corruptions"]


def test_all_accuracies_are_in_0_to_1() -> None:
    for entry in _table().values():
        assert isinstance(entry, Published)
        assert entry.robust is not None
        assert 0 <= entry.robust <= entry.clean <= 1
        assert entry.clean > 0.4  # percent divided by 100 only once


@pytest.mark.parametrize(
    ("dataset", "threat", "name"),
    [("cifar10", "Linf", "standard"), ("cifar100", "L2", "Standard"), ("digits", "Linf", "digits_plain")],
)
def test_a_model_that_robustbench_has_not_published_has_none(dataset: str, threat: str, name: str) -> None:
    assert published(dataset, threat, name) is None


@pytest.mark.parametrize("n", [1, 8, 40])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9478, 1.0])
def test_unlike_is_the_exact_binomial_test(n: int, share: float) -> None:
    """Compare with brute force: the sum over all counts that are at most as likely as the observed one."""
    chances = [comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)]
    for correct in range(n + 1):
        p_value = sum(chance for chance in chances if chance <= chances[correct] * (1 + 1e-7))
        assert unlike(correct, n, share) == (p_value < UNLIKE), correct


def test_unlike_on_a_thousand_images() -> None:
    assert not unlike(948, 1000, 0.9478)
    assert not unlike(930, 1000, 0.9478)
    assert unlike(900, 1000, 0.9478)  # as without the normalisation
    assert unlike(1000, 1000, 0.9478)


def test_a_model_has_the_accuracies_of_the_board_of_its_weights() -> None:
    model = RobustBench(name="Rice2020Overfitting", threat="L2")
    own, other = model.published("cifar10", "L2"), model.published("cifar10", "Linf")
    assert own is not None
    assert other is not None
    assert (own.clean, other.clean, other.robust) == (0.8867, 0.8867, None)
    assert own.robust is not None
    assert model.published("cifar100", "L2") is None
