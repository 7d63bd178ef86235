"""From scores to the board: its columns, its order, its comparisons and its intervals."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.scores import SHARED, entry, score
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.analysis.selection import Choice, InSample, choose
from harness.analysis.statistics import Paired, paired, wilson
from harness.api.records import Steering
from harness.leaderboard import flags
from harness.leaderboard.csv_file import to_csv
from harness.leaderboard.ranking import board
from harness.leaderboard.row import SELECTED
from harness.leaderboard.scores import Headline, ModelEntry

COLUMNS = [
    "rank", "model", "method", "beta", "c", "smoothing", "family", "clean", "robust", "robust_low", "robust_high",
    "robust_aa", "delta_pp", "delta_low", "delta_high", "gained", "lost", "p_value", "p_holm", "unit_test", "mce",
    "published_clean",
    "published_robust", "status", "selection", "chosen", "sites",
    "steered", "trainable_parameters", "n", "dataset", "metric", "threat", "eps", "attack", "protocol",
    "question", "parameters",
    "flags", "seed",
    "weights_sha256", "fitted_from", "train", "data_sha256", "ct_harness", "torch", "device", "compiled",
    "forward_passes",
    "backward_passes", "seconds",
]  # fmt: skip

# --- the columns ---


def test_the_columns_and_every_format_are_fixed() -> None:
    table = board(
        [
            entry(
                score(1.0, [1, 0, 0, 0], [1, 1, 0, 1]),
                score(0.95, [1, 1, 0, 0], [1, 1, 0, 0], flags=frozenset({"zero_gradient", "few_classes"})),
            ),
            ModelEntry(SHARED | {"model": "n"}, failure="no\n  such  file", flag="probabilities"),
        ]
    )
    assert list(table.columns) == COLUMNS
    text = to_csv(table)
    assert text.endswith("\n")
    assert "\r" not in text
    header, *rows = text.splitlines()
    assert header == ",".join(COLUMNS)
    shared = {
        "n": "4", "family": "relu", "dataset": "digits[:4]", "threat": "Linf", "eps": "0.1", "attack": "standard",
        "protocol": "pixel", "seed": "0", "weights_sha256": "we", "data_sha256": "da",
    }  # fmt: skip
    scored = shared | {
        "model": "m", "c": "0.5", "status": "ok", "sites": "3", "steered": "2", "ct_harness": "1", "torch": "2",
        "device": "cpu", "compiled": "no", "forward_passes": "9", "backward_passes": "3", "seconds": "1.3",
        "selection": "", "chosen": "", "robust_aa": "", "unit_test": "",
        "trainable_parameters": "0", "metric": "accuracy", "fitted_from": "", "train": "",
    }  # fmt: skip
    expected = [
        scored | {
            "rank": "1", "method": "ct", "beta": "0.95", "clean": "0.500000", "robust": "0.500000",
            "robust_low": "0.150039", "robust_high": "0.849961", "delta_pp": "+25.0000", "gained": "1",
            "lost": "0", "p_value": "1", "p_holm": "1", "flags": "few_classes;zero_gradient",
        },
        scored | {
            "rank": "2", "method": "untouched", "beta": "1", "clean": "0.750000", "robust": "0.250000",
            "robust_low": "0.045587", "robust_high": "0.699358", "delta_pp": "+0.0000", "gained": "0",
            "lost": "0", "p_holm": "", "flags": "",
        },
        dict.fromkeys(COLUMNS, "") | shared | {
            "model": "n", "family": "relu", "status": "failed: no such file", "flags": "probabilities",
        },
    ]  # fmt: skip
    for row, wanted in zip(rows, expected, strict=True):
        found = dict(zip(COLUMNS, row.split(","), strict=True))
        assert {key: found[key] for key in wanted} == wanted


def test_a_worse_beta_is_shown_as_worse() -> None:
    table = board([entry(score(1.0, [1, 1, 1, 0], [1] * 4), score(0.5, [0, 0, 1, 0], [1] * 4))])
    assert table[["beta", "delta_pp"]].to_numpy().tolist() == [[1.0, 0.0], [0.5, -50.0]]


def test_headlines_are_adjusted_over_the_models_and_a_baseline_is_not_tested_against_itself() -> None:
    own = {"a": 0.03, "b": 0.01, "c": 0.6}
    models = [
        entry(
            score(1.0, [1, 1, 1, 0], [1] * 4), score(0.5, [0, 0, 1, 0], [1] * 4), shared=SHARED | {"model": model},
            headline=Headline("none", Choice((Steering(0.5),), (np.arange(4),)), Paired(0, 0, 0, 0, 0, p), SELECTED),
        )
        for model, p in own.items()
    ]  # fmt: skip
    table = board([*models, ModelEntry(SHARED | {"model": "gone"}, failure="no such file")])
    headlines = table[table.status == "selected"].set_index("model")
    assert headlines.p_value.to_dict() == own
    assert headlines.p_holm.to_dict() == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.6})
    tested = table[table.status == "ok"].set_index("method")[["delta_low", "delta_high", "p_value"]]
    assert tested.loc["untouched"].isna().to_numpy().all()
    assert tested.loc["ct"].notna().to_numpy().all()


@pytest.mark.parametrize("where", ["baseline", "chosen", "other"])
@pytest.mark.parametrize(
    ("flag", "is_masking"), [("gradient_mismatch", True), ("replay", True), ("randomized", True), ("partial", False)]
)
def test_a_headline_with_a_masking_flag_at_the_baseline_or_a_chosen_beta_is_not_to_be_trusted(
    where: str, flag: str, is_masking: bool
) -> None:
    marks = {"baseline": 1.0, "chosen": 0.5, "other": 0.8}
    scores = [
        score(beta, [1, 1, 1, 0], [1] * 4, flags=frozenset({flag} if marks[where] == beta else ()))
        for beta in marks.values()
    ]
    headline = Headline("none", Choice((Steering(0.5),), (np.arange(4),)), Paired(0, 0, 0, 0, 0, 0.5), SELECTED)
    row = board([entry(*scores, headline=headline)]).iloc[0]
    assert row.status == ("untrusted" if is_masking and where != "other" else "selected")


def test_another_method_is_compared_with_the_baseline_under_its_own_attack() -> None:
    """Images found at β = 0.5 fool the baseline on half of the images; nobody has shown them to the other method."""
    half = [1, 1, 0, 0] * 5
    scores = [
        score(1.0, half, [1] * 20, own=np.ones(20, np.float32)),
        replace(score(1.0, [1] * 20, [1] * 20, own=np.ones(20, np.float32)), steering=Steering(1.0, method="lora-4")),
    ]
    trainable = {"": 0, "lora-4": 9}
    table = board([entry(*scores, trainable=trainable)]).set_index("method")
    assert table.loc["lora-4", "delta_pp"] == 0
    assert table.loc["lora-4", "robust"] == 1


@pytest.mark.parametrize(("n", "taken", "points", "flagged"), [
    (100, 1, 1.0, False), (100, 2, 1.0, True), (16, 1, 1.0, False), (1000, 10, 1.0, False), (1000, 11, 1.0, True),
    (100, 1, 0.0, True), (100, 0, 0.0, False),
])  # fmt: skip
def test_what_the_replay_takes_is_counted_in_images(n: int, taken: int, points: float, flagged: bool) -> None:
    """Once: means in float32 decided, so that one image of a hundred was more than a point at some accuracies."""
    for survivors in range(taken, n + 1, max(n // 50, 1)):
        own = (np.arange(n) < survivors).astype(np.float32)
        robust = (np.arange(n) < survivors - taken).astype(np.float32)
        assert bool(flags.of_replay(own, robust, points)) == flagged


# --- the order ---

images = st.lists(st.integers(0, 1), min_size=4, max_size=4)
points = st.tuples(st.sampled_from([0.0, 0.5, 0.75, 0.9]), st.sampled_from([0.0, 0.25, 0.5, 0.75]))


@settings(max_examples=50)  # the paired statistics of every row take their time
@given(st.dictionaries(points, st.tuples(images, images), max_size=8), st.tuples(images, images), st.randoms())
def test_rows_are_ranked_as_by_brute_force(
    steered: dict[tuple[float, float], tuple[list[int], list[int]]],
    plain: tuple[list[int], list[int]],
    mix: random.Random,
) -> None:
    scores = [score(beta, *values, c=c) for (beta, c), values in steered.items()] + [score(1.0, *plain)]
    mix.shuffle(scores)
    table = board([entry(*scores)])
    found = [(row["robust"], row["clean"], row["beta"], row["c"]) for row in table.to_dict("records")]

    def beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        if a[0] != b[0]:
            return a[0] > b[0]
        if a[1] != b[1]:
            return a[1] > b[1]
        if a[2] != b[2]:
            return abs(1 - a[2]) < abs(1 - b[2])
        return abs(a[3] - 0.5) < abs(b[3] - 0.5)

    assert table["rank"].tolist() == list(range(1, len(scores) + 1))
    assert len(found) == len(scores)
    assert not any(beats(found[j], found[i]) for j in range(len(found)) for i in range(j))


def test_each_model_is_ranked_by_itself_in_the_benchmarks_order() -> None:
    one = entry(score(1.0, [0] * 4, [1] * 4), score(0.5, [1] * 4, [1] * 4), shared=SHARED | {"model": "z"})
    other = entry(score(1.0, [1] * 4, [1] * 4), shared=SHARED | {"model": "a"})
    table = board([one, other])
    assert table[["model", "rank", "beta"]].to_numpy().tolist() == [["z", 1, 0.5], ["z", 2, 1.0], ["a", 1, 1.0]]


# --- the intervals ---


@pytest.mark.parametrize(("k", "low", "high"), [(0, 0, 0.38), (112, 9.4, 13.3), (500, 46.9, 53.1), (1000, 99.62, 100)])
def test_wilson_is_as_published(k: int, low: float, high: float) -> None:
    found = wilson(k, 1000)
    assert 100 * found[0] == pytest.approx(low, abs=0.05 if 0 < k < 1000 else 0.005)
    assert 100 * found[1] == pytest.approx(high, abs=0.05 if 0 < k < 1000 else 0.005)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_equation(pair: tuple[int, int]) -> None:
    """Its ends are where the observed share is 1.96 standard errors away, the standard error being that of the end."""
    k, n = pair
    low, high = wilson(k, n)
    z = 1.959963984540054
    assert 0 <= low <= k / n <= high <= 1
    for end in (low, high):
        assert (k / n - end) ** 2 == pytest.approx(z * z * end * (1 - end) / n, rel=1e-6, abs=1e-12)


def test_a_headline_has_the_flags_of_what_was_chosen_and_of_a_baseline_that_may_be_too_high() -> None:
    flagged = [
        score(1.0, [0, 0], [1, 1], flags=frozenset({"unit_test", "few_classes"}), unit_test=0.5),
        score(0.9, [1, 1], [1, 1], flags=frozenset({"seen"}), unit_test=0.75),
        score(0.5, [0, 0], [1, 1], flags=frozenset({"square"}), unit_test=0.25),
    ]
    choice = choose(InSample(), flagged, np.zeros(2), 0)
    gain = paired(flagged[0].robust, choice.scores(flagged)[1])
    headline = board([entry(*flagged, headline=Headline("none", choice, gain, "in-sample"))]).iloc[0]
    assert headline["flags"] == "seen;unit_test"
    assert headline["unit_test"] == 0.5


@pytest.mark.parametrize(
    ("name", "raised", "expected"),
    [
        ("unit_test", flags.of_unit_test, {None: False, 1.0: False, 0.95: False, 0.94: True, 0.0: True}),
        ("sentinel", lambda lost: flags.of_sentinels(1 - (np.arange(32) < lost)), {0: False, 1: False, 2: True}),
    ],
)
def test_a_flag_is_raised_from_its_threshold_on(
    name: str, raised: Callable[[Any], set[str]], expected: dict[Any, bool]
) -> None:
    assert {value: name in raised(value) for value in expected} == expected
