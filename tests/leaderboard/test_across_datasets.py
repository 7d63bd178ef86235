"""Several boards summed up: the numbers are those worked out by hand, and nothing counts that should not."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import pandas as pd
import pytest
import scipy
from helpers import boards
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness.errors import LeaderboardError
from harness.leaderboard.across_datasets import AcrossDatasets, MethodSummary, Setting, SettingSummary, sum_up
from harness.leaderboard.row import rows_of


def summed(tables: Mapping[str, pd.DataFrame]) -> AcrossDatasets:
    return sum_up({name: rows_of(table) for name, table in tables.items()})


def only(found: AcrossDatasets) -> SettingSummary:
    (summary,) = found.settings
    return summary


def by_method(found: AcrossDatasets) -> dict[str, MethodSummary]:
    return {row.method: row for row in only(found).methods}


# --- the numbers ---


def test_the_means_are_those_worked_out_by_hand() -> None:
    """The differences 2, −1 and 5 have the mean 2 and the standard deviation 3; t(0.975; 2) is 4.30265."""
    row = by_method(summed(boards.three_transfers()))["ct"]
    half = 4.302652729911275 * 3 / math.sqrt(3)
    assert (row.sets, row.of, row.won, row.tied, row.lost) == (3, 3, 2, 0, 1)
    assert (row.baseline, row.accuracy) == pytest.approx((140 / 3, 146 / 3))
    assert (row.delta, row.low, row.high) == pytest.approx((2.0, 2 - half, 2 + half))
    assert row.relative == pytest.approx((100 * 2 / 50 - 100 * 1 / 80 + 100 * 5 / 10) / 3)
    assert row.relative == pytest.approx(17.5833, abs=1e-4)  # the paper's way makes eight times as much of it
    assert row.p_value == 1.0  # two of three: 2 · (3 + 1) / 8
    assert row.trained == (965, 7690)


def test_a_method_that_a_board_lacks_tells_over_how_many_sets_it_is() -> None:
    row = by_method(summed(boards.three_transfers()))["lora-1"]
    assert (row.sets, row.of, row.won, row.tied, row.lost) == (2, 3, 0, 1, 1)
    assert (row.baseline, row.accuracy, row.delta) == pytest.approx((65.0, 64.5, -0.5))
    assert row.p_value == 1.0  # of one that is no tie


@pytest.mark.parametrize(
    ("deltas", "p_value"),
    [
        ((1, 2, 3, 1, 2), 2 / 2**5),
        ((-1, -2, -3, -1, -2), 2 / 2**5),
        ((1, 2, 3, 0, 1, 0, 2), 2 / 2**5),
        ((1, 2, 3, -1, 2, 4), 2 * (1 + 6) / 2**6),
        ((0, 0, 0), 1.0),
    ],
)
def test_the_sign_test_is_exact_and_leaves_ties_out(deltas: Sequence[float], p_value: float) -> None:
    found = summed({f"b{n}": boards.transfer(f"set{n}", 50, delta) for n, delta in enumerate(deltas)})
    assert by_method(found)["ct"].p_value == pytest.approx(p_value)


def test_a_single_set_has_no_interval_over_sets() -> None:
    row = by_method(summed({"a": boards.transfer("beans", 50, 2.0)}))["ct"]
    assert (row.delta, row.low, row.high) == (2.0, None, None)


def test_a_baseline_of_zero_has_no_relative_gain() -> None:
    row = by_method(
        summed({"a": boards.transfer("beans", 0, 7.000000000000002), "b": boards.transfer("dtd", 50, 1.0)})
    )["ct"]
    assert row.relative is None
    assert (row.delta, row.baseline) == pytest.approx((4.0, 25.0))


# --- laws ---

tenths = st.integers(-100, 100).map(lambda n: n / 10)
few = settings(deadline=None, max_examples=40)
several_gains = st.lists(st.tuples(st.integers(20, 70), tenths), min_size=2, max_size=6)


def made(gains: Sequence[tuple[float, float]]) -> dict[str, pd.DataFrame]:
    return {f"b{n}": boards.transfer(f"set{n}", base, delta) for n, (base, delta) in enumerate(gains)}


@few
@given(several_gains, st.randoms())
def test_the_order_of_the_boards_changes_nothing(gains: list[tuple[int, float]], mix: random.Random) -> None:
    tables = made(gains)
    shuffled = list(tables.items())
    mix.shuffle(shuffled)
    assert summed(dict(shuffled)) == summed(tables)


@few
@given(st.lists(st.integers(20, 70), min_size=2, max_size=6), tenths)
def test_where_every_set_gains_the_same_the_interval_is_that_gain(bases: list[int], delta: float) -> None:
    row = by_method(summed(made([(base, delta) for base in bases])))["ct"]
    assert (row.low, row.delta, row.high) == pytest.approx((delta, delta, delta), abs=1e-9)


@few
@given(several_gains)
def test_the_interval_and_the_test_are_scipys(gains: list[tuple[int, float]]) -> None:
    deltas = [delta for _, delta in gains]
    assume(len(set(deltas)) > 1)
    row = by_method(summed(made(gains)))["ct"]
    interval = scipy.stats.ttest_1samp(deltas, 0.0).confidence_interval(0.95)
    assert (row.low, row.high) == pytest.approx(tuple(interval), abs=1e-6)
    won, lost = sum(delta > 0 for delta in deltas), sum(delta < 0 for delta in deltas)
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1)) / 2 ** (won + lost)
    assert row.p_value == pytest.approx(min(1.0, 2 * tail))


@few
@given(several_gains)
def test_of_the_opposite_gains_everything_is_the_opposite(gains: list[tuple[int, float]]) -> None:
    row, other = (by_method(summed(made(those)))["ct"] for those in (gains, [(base, -delta) for base, delta in gains]))
    assert (row.low, row.high, row.relative) == pytest.approx((-other.high, -other.low, -other.relative), abs=1e-9)  # type: ignore[operator]
    assert (row.won, row.tied, row.lost, row.p_value) == (other.lost, other.tied, other.won, other.p_value)


# --- what belongs together, and what does not ---


def test_questions_stay_apart_and_the_clean_one_comes_first() -> None:
    tables = boards.three_transfers() | {
        "attacked": boards.transfer("beans", 5, 1.0, **boards.ATTACKED),
        "weaker": boards.transfer("beans", 5, 1.0, **boards.ATTACKED | {"eps": "0.05"}),
        "cheaper": boards.transfer("beans", 5, 1.0, **boards.ATTACKED | {"attack": "standard+bfloat16"}),
        "paper": boards.transfer("beans", 50, None, {"lora-1": 1.0}, protocol="paper"),
    }
    found = summed(tables).settings
    assert [(group.setting.title, group.boards) for group in found] == [
        ("clean · protocol: paper · against the linear probe", ["paper"]),
        ("clean · against the linear probe", ["a", "b", "c"]),
        ("Linf, ε = 0.05 · standard · against the linear probe", ["weaker"]),
        ("Linf, ε = 0.1 · standard · against the linear probe", ["attacked"]),
        ("Linf, ε = 0.1 · standard+bfloat16 · against the linear probe", ["cheaper"]),
    ]


def test_an_untouched_network_is_no_probe() -> None:
    plain = boards.table(*(row | {"dataset": "svhn"} | boards.CLEAN for row in (
        boards.selected("m", "0.9", method="ct"), boards.untouched("m", method="untouched"),
    )))  # fmt: skip
    apart = summed(boards.three_transfers() | {"plain": plain}).settings
    assert [summary.setting.baseline for summary in apart] == ["linear_probe", "untouched"]


def test_a_model_has_its_own_row_and_its_own_sets() -> None:
    tables = boards.three_transfers() | {
        "d": boards.transfer("beans", 40, 3.0, {"fine_tuning": 1.0, "lora-16": 2.0, "lora-4": 2.0}, model="other")
    }
    rows = only(summed(tables)).methods
    assert [(row.model, row.method, row.sets, row.of) for row in rows] == [
        ("m", "ct", 3, 3), ("m", "lora-1", 2, 3),
        ("other", "ct", 1, 1), ("other", "lora-4", 1, 1), ("other", "lora-16", 1, 1), ("other", "fine_tuning", 1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("again", ["beans", "beans[:100]"])
def test_a_dataset_twice_is_refused_since_it_would_count_twice(again: str) -> None:
    with pytest.raises(LeaderboardError) as raised:
        summed(boards.three_transfers() | {"d": boards.transfer(again, 50, 2.0)})
    message = str(raised.value)
    assert message.startswith("a and d: ")
    for word in (
        "another dataset",
        "ct of m on beans",
        f"on {again}",
        "against the linear probe",
        "leave one of them out",
    ):
        assert word in message


@pytest.mark.parametrize("dataset", ["digits 5,6,7,8,9", "beans train"])
def test_other_classes_or_another_split_are_another_dataset(dataset: str) -> None:
    assert (
        by_method(summed({"a": boards.transfer("digits 0,1", 50, 1.0), "b": boards.transfer(dataset, 50, 1.0)}))[
            "ct"
        ].sets
        == 2
    )


@pytest.mark.parametrize(("other", "sets"), [("0c" * 32, 2), ("0b" * 32, None)])
def test_anyones_folders_have_one_name_and_are_told_apart_by_their_images(other: str, sets: int | None) -> None:
    tables = {
        "a": boards.transfer("image_folder", 50, 1.0),
        "b": boards.transfer("image_folder", 50, 1.0, data_sha256=other),
    }
    if sets is None:
        with pytest.raises(LeaderboardError, match=r"^a and b: .*another dataset.*leave one of them out"):
            summed(tables)
    else:
        assert by_method(summed(tables))["ct"].sets == sets


def test_what_is_not_averaged_is_named_with_its_reason() -> None:
    gone = boards.failed("gone", "no such file") | {"dataset": "cub"} | boards.CLEAN
    pruned = boards.bounded("m", 1.0, 0, 0, dataset="cub", **boards.CLEAN, method="lora-1")
    tables = boards.three_transfers() | {
        "mse": boards.transfer("dsprites", 50, 2.0, metric="mse"),
        "sample": boards.transfer("svhn", 50, 30.0, status="in-sample").iloc[:1],
        "failed": boards.table(gone, pruned),
        "nothing": boards.transfer("food101", 50, None),
    }
    found = summed(tables)
    assert found.left_out == (
        "failed: gone was not scored (failed: no such file)",
        "failed: lora-1 of m was pruned, so its accuracy is only a bound",
        "mse: dsprites is measured in mse, which has no mean with accuracies",
        "nothing: has no headline and no method beside its baseline",
        "sample: β of m was chosen in sample, on the images that it is reported on",
    )
    assert found.settings == summed(boards.three_transfers()).settings


def test_attributes_have_a_mean_accuracy_that_counts_and_is_named() -> None:
    found = summed(boards.three_transfers() | {"d": boards.transfer("celeba", 90, 2.0, metric="mean_accuracy")})
    assert found.left_out == ()
    assert by_method(found)["ct"].sets == 4
    assert "celeba (mean accuracy)" in [gain.dataset for gain in only(found).gains]


def test_under_a_threat_the_robust_accuracy_counts() -> None:
    row = by_method(summed({"a": boards.transfer("beans", 50, 2.0, **boards.ATTACKED, clean=0.9)}))["ct"]
    assert (row.baseline, row.accuracy) == pytest.approx((50.0, 52.0))


def test_a_setting_has_a_name_of_its_own() -> None:
    assert Setting("Linf", "0.1", "standard", "paper", "relu", "untouched").title == (
        "Linf, ε = 0.1 · standard · protocol: paper · against the network untouched"
    )
