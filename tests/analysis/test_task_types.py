"""Classes, attributes and values: outcomes against numbers by hand, and boards against scikit-learn and numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy
import torch
from helpers import transfer as oracle
from helpers.boards import write as write_board
from helpers.packages import INSTALLED
from helpers.transfer import by_hand, cross_validated, hidden, toy_board, toy_images, working
from sklearn.metrics import mean_squared_error, r2_score
from torch import Tensor, tensor

from harness import pipeline
from harness.analysis.metrics import METRICS
from harness.analysis.statistics import paired
from harness.analysis.task_types import TASK_TYPES
from harness.api.records import Batch, Target
from harness.config.benchmark import parse_benchmark
from harness.datasets.hugging_face import HuggingFace
from harness.engine import images
from harness.errors import DataError, ModelError, SpecError
from harness.leaderboard import csv_file, outcomes, ranking
from harness.leaderboard.row import RowKey
from harness.models.checkpoint import Checkpoint
from harness.transfer import linear_probe
from harness.transfer.probe_model import Probe
from harness.transfer.settings import Probing

# --- an outcome an image ---

LOGITS = tensor([[2.0, 0.5, -1.0], [0.0, 3.0, 2.0], [1.0, 1.0, 0.0]])


@pytest.mark.parametrize(
    ("target", "answers", "y", "outcome", "margin", "loss"),
    [
        ("class", LOGITS, tensor([0, 2, 1]), [1, 0, 0], [1.5, -1.0, 0.0],
         [-np.log(np.exp(2) / (np.exp(2) + np.exp(0.5) + np.exp(-1))),
          -np.log(np.exp(2) / (1 + np.exp(3) + np.exp(2))),
          -np.log(np.e / (2 * np.e + 1))]),
        ("attributes", tensor([[1.0, -2.0], [0.0, 0.3]]), tensor([[1, 1], [0, 1]]), [0.5, 1.0], [0.5, 1.0],
         [(np.log1p(np.exp(-1)) + np.log1p(np.exp(2))) / 2, (np.log(2) + np.log1p(np.exp(-0.3))) / 2]),
        ("values", tensor([[1.0, 2.0], [0.0, -1.0]]), tensor([[1.0, 4.0], [3.0, 0.0]]), [-2.0, -5.0], [-2.0, -5.0],
         [2.0, 5.0]),
    ],
)  # fmt: skip
def test_by_hand(target: Target, answers: Tensor, y: Tensor, outcome: Any, margin: Any, loss: Any) -> None:
    task_type = TASK_TYPES[target]
    np.testing.assert_allclose(task_type.outcome(answers, y), outcome, rtol=1e-6)
    np.testing.assert_allclose(task_type.margin(answers, y), margin, rtol=1e-6)
    assert float(task_type.loss(answers, y)) == pytest.approx(np.mean(loss), rel=1e-6)
    task_type.check_answers(answers, y)


@pytest.mark.parametrize("target", ["class", "attributes", "values"])
def test_what_was_fitted_and_what_is_scored_are_judged_alike(target: Target) -> None:
    """The training scores judge what scikit-learn predicts, the board what the network yields."""
    drawn = np.random.default_rng(0)
    features = drawn.normal(size=(40, 5))
    labels: dict[str, np.ndarray] = {
        "class": drawn.integers(0, 3, 40),
        "attributes": drawn.integers(0, 2, (40, 3)),
        "values": drawn.normal(size=(40, 2)).astype(np.float32),
    }
    y = labels[target]
    pipeline = linear_probe.fit_pipeline(features, y, target, 0.5)
    fit = linear_probe.fit_with_C(features, y, target, 0.5)
    answers = torch.from_numpy((features - fit.mean) / fit.scale @ fit.weight.T + fit.bias)
    judged = linear_probe.grade(np.asarray(pipeline.predict(features)), y, target)
    np.testing.assert_allclose(TASK_TYPES[target].outcome(answers, torch.from_numpy(y)), judged, rtol=1e-5)
    assert judged.std() > 0


@pytest.mark.parametrize(
    ("target", "shape", "y"),
    [
        ("attributes", (4, 3), torch.ones(4, 2, dtype=torch.int64)),
        ("attributes", (4, 4), torch.ones(4, dtype=torch.int64)),
        ("values", (4, 1), torch.ones(4, 2)),
        ("class", (4, 3), tensor([0, 1, 2, 3])),
    ],
)
def test_answers_that_do_not_fit_the_labels_are_refused(target: Target, shape: Any, y: Tensor) -> None:
    with pytest.raises(ModelError, match="the data have"):
        TASK_TYPES[target].check_answers(torch.randn(shape), y)


@pytest.mark.parametrize(
    ("target", "y", "told"),
    [
        ("attributes", tensor([[0, 2]]), "attributes must be 0 or 1, found 0 … 2"),
        ("values", tensor([[0.0, torch.nan]]), "values must be finite numbers, found nan"),
        ("values", tensor([[1, 2]]), r"expected .* y float32 \[n, k\]"),
        ("attributes", tensor([1]), r"expected .* y int64 \[n, k\]"),
    ],
)
def test_labels_that_are_not_what_they_should_be_are_refused(target: Target, y: Tensor, told: str) -> None:
    dataset = HuggingFace(path="x", split="test", labels=target)
    with pytest.raises(DataError, match=told):
        images._check(Batch(torch.rand(1, 1, 2, 2), y, tensor([0])), dataset)


# --- a metric a board ---


def test_an_error_is_shown_positive_and_an_accuracy_in_percent() -> None:
    mse, accuracy = METRICS["values"], METRICS["attributes"]
    assert (mse.shown(-0.3), mse.interval(-0.4, -0.2), mse.read(0.3)) == (0.3, (0.2, 0.4), 0.3)
    assert (accuracy.shown(0.3), accuracy.interval(0.2, 0.4), accuracy.read(0.3)) == (0.3, (0.2, 0.4), 30.0)
    assert (mse.points(5.0), accuracy.points(5.0)) == (0.05, 5.0)
    assert [metric.name for metric in METRICS.values()] == ["accuracy", "mean_accuracy", "mse"]


@pytest.mark.parametrize(
    "values",
    [
        np.array([1.0, 0.0, np.nan]),
        np.array([0.25, 1.0, 0.0]),
        np.array([-0.1234567, -3e-9, -41.5]),
        np.array([-0.0, -0.0, -0.0]),
    ],
    ids=["bits", "shares", "errors", "no error at all"],
)
def test_outcomes_come_back_as_they_were_written(values: np.ndarray) -> None:
    rows = [("m", "ct", "0.5", "0.5", "clean", outcomes.written(values.astype(np.float32)))]
    table = pd.DataFrame(rows, columns=list(outcomes.COLUMNS))
    clean, robust = outcomes.scores(table)[RowKey("m", "ct", 0.5, 0.5)]
    expected = np.where(np.isnan(values), 1.0, values)  # of bits a bound
    np.testing.assert_allclose(clean, expected, rtol=1e-6)
    np.testing.assert_allclose(robust, expected, rtol=1e-6)


def test_of_what_was_pruned_outcomes_are_bounds() -> None:
    """An attribute board whose steering was pruned in the middle of a stage; no bound is NaN."""
    values = np.array([0.5, 0.75, np.nan], np.float32)
    rows = [("m", "ct", "0.5", "0.5", stage, outcomes.written(values)) for stage in ("clean", "shade-1")]
    _, robust = outcomes.scores(pd.DataFrame(rows, columns=list(outcomes.COLUMNS)))[RowKey("m", "ct", 0.5, 0.5)]
    np.testing.assert_allclose(robust, [0.5, 0.75, 1.0])


# --- boards ---

GRADED: tuple[Target, ...] = ("attributes", "values")
BETAS = (1.0, 0.9, 0.5, 0.0)
ORACLES: dict[str, Callable[..., Any]] = {"attributes": oracle.one_an_attribute, "values": oracle.ridge}


def labelled(n: int, seed: int, target: Target) -> tuple[np.ndarray, np.ndarray]:
    x, _ = toy_images(n, seed)
    drawn = np.random.default_rng(seed)
    lines = np.stack([hidden(x, k) for k in (1, 9)], axis=1) + 0.4 * drawn.normal(size=(n, 2))
    if target == "attributes":
        lines = np.column_stack([lines, drawn.normal(size=n)])
        return x, (lines > 0.3).astype(np.int64)
    return x, (3 * lines + 5).astype(np.float32)


def graded(predicted: np.ndarray, y: np.ndarray, target: Target) -> np.ndarray:
    """The outcome of each image."""
    outcomes: np.ndarray = (predicted == y).mean(1) if target == "attributes" else -((predicted - y) ** 2).mean(1)
    return outcomes


def hand_C(features: np.ndarray, y: np.ndarray, target: Target) -> float:
    return oracle.best({C: float(training_scores(features, y, target, C).mean()) for C in oracle.STRENGTHS})


def training_scores(features: np.ndarray, y: np.ndarray, target: Target, C: float) -> np.ndarray:
    def out_of_fold(others: np.ndarray, fold: np.ndarray) -> np.ndarray:
        return graded(ORACLES[target](features[others], y[others], C)(features[fold]), y[fold], target)

    return cross_validated(y, 5, 0, out_of_fold)


Boards = dict[str, tuple[Path, pd.DataFrame]]
"""Of each target, the working directory of a board, and the board."""
Expected = dict[str, dict[float, tuple[np.ndarray, float]]]
"""Of each target and β, the outcomes on test images, and the mean on training images."""


@pytest.fixture(scope="module")
def expected() -> Expected:
    """Computed without the harness."""
    found: Expected = {}
    for target in GRADED:
        (x, y), (shown, asked) = labelled(60, 0, target), labelled(45, 1, target)
        found[target] = {}
        for beta in BETAS:
            features = by_hand(x, beta)
            C = hand_C(features, y, target)
            predicted = ORACLES[target](features, y, C)(by_hand(shown, beta))
            mean = float(training_scores(features, y, target, C).mean())
            found[target][beta] = graded(predicted, asked, target), mean
    return found


def set_of(path: str, target: Target) -> dict[str, str]:
    return {"kind": "graded", "path": path, "labels_are": target}


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Boards:
    found: Boards = {}
    for target in GRADED:
        folder = tmp_path_factory.mktemp(target)
        for seed, (name, n) in enumerate((("train", 60), ("test", 45))):
            oracle.save(folder / f"{name}.npz", *labelled(n, seed, target))
        with working(folder, INSTALLED):
            model = {
                "train": set_of("train.npz", target),
                "methods": ["lora-1", "fine_tuning"],
                "tuning": {"epochs": 2, "learning_rates": [0.01]},
            }
            entries = pipeline.entries(parse_benchmark(toy_board(model=model, dataset=set_of("test.npz", target))))
            path = folder / "board.csv"
            write_board(ranking.board(entries), path, outcomes.table(entries))
            found[target] = folder, csv_file.read(path)
    return found


def flipped_by_hand(difference: np.ndarray) -> float:
    """How often the sum is as far from zero when every sign is drawn anew; no less than a normal sum is."""
    signs = np.random.default_rng(5).choice([-1, 1], (20000, len(difference)))
    normal = 2 * scipy.stats.norm.sf(abs(difference.sum()) / max(1e-9, np.sqrt((difference**2).sum())))
    return float(max(normal, (np.abs(signs @ difference) >= abs(difference.sum()) - 1e-9).mean()))


def test_what_a_few_large_gains_outweigh_is_no_evidence_of_them() -> None:
    """30 errors fall from 4 to 1, 70 rise a little: by their number that is a loss, by their sum a gain."""
    first = -np.repeat([4.0, 0.10], [30, 70])
    found = paired(first, -np.repeat([1.0, 0.12], [30, 70]))
    assert (found.gained, found.lost, found.delta > 0, found.low > 0) == (30, 70, True, True)
    assert found.p_value < 0.001
    found = paired(np.zeros(100), np.repeat([-3.0, 0.05], [1, 99]))  # one disaster, 99 trifles the other way
    assert found.delta > 0
    assert found.p_value > 0.05


def grid(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["status"] == "ok"].set_index(["method", "beta"])


def method_of(beta: float) -> str:
    return "linear_probe" if beta == 1 else "ct"


@pytest.mark.parametrize("target", GRADED)
def test_every_row_is_what_sklearn_and_numpy_make_of_it(boards: Boards, expected: Expected, target: Target) -> None:
    folder, table = boards[target]
    sign = 1 if target == "attributes" else -1
    baseline, _ = expected[target][1.0]
    read = outcomes.read(folder / "board.csv")
    assert read is not None
    kept = outcomes.scores(read)
    assert set(table["metric"]) == {"mean_accuracy" if target == "attributes" else "mse"}
    for beta in BETAS:
        values, _ = expected[target][beta]
        row = grid(table).xs((method_of(beta), beta))
        assert row["clean"] == row["robust"] == pytest.approx(sign * values.mean(), rel=2e-4, abs=2e-6)
        assert row["delta_pp"] == pytest.approx(100 * sign * (values - baseline).mean(), rel=2e-3, abs=5e-3)
        clean, _ = kept[RowKey("toy", method_of(beta), beta, 0.5)]
        np.testing.assert_allclose(clean, values, rtol=2e-3, atol=2e-4)
        gained, lost = (values > baseline + 1e-9).sum(), (values < baseline - 1e-9).sum()
        if beta != 1:
            assert (row["gained"], row["lost"]) == (gained, lost)
            assert row["p_value"] == pytest.approx(flipped_by_hand(values - baseline), abs=0.02)
            assert row["delta_low"] <= row["delta_pp"] <= row["delta_high"]
        assert row["robust_low"] < row["robust"] < row["robust_high"]


@pytest.mark.parametrize("target", GRADED)
def test_the_board_is_ranked_by_the_metric(boards: Boards, target: Target) -> None:
    """An error is positive, and the smallest is first."""
    _, table = boards[target]
    ranked = grid(table).sort_values("rank")["robust"]
    assert (ranked > 0).all()
    assert list(ranked) == sorted(ranked, reverse=target == "attributes")
    assert list(grid(table)["rank"]) == list(range(1, len(BETAS) + 3))
    assert ranked.nunique() > 2


@pytest.mark.parametrize("target", GRADED)
def test_beta_is_chosen_by_the_metric_on_training_images(boards: Boards, expected: Expected, target: Target) -> None:
    _, table = boards[target]
    [selected] = table[table["status"] == "selected"].to_dict("records")
    chosen = max(BETAS, key=lambda beta: (round(expected[target][beta][1], 6), beta))
    assert chosen != 1
    assert (selected["beta"], selected["n"], selected["selection"]) == (chosen, 45, "training")
    for column in ("robust", "delta_pp", "delta_low", "delta_high", "gained", "lost", "p_value", "weights_sha256"):
        assert selected[column] == grid(table).loc[("ct", chosen), column]
    gain = expected[target][chosen][0].mean() - expected[target][1.0][0].mean()
    assert selected["delta_pp"] == pytest.approx(100 * (gain if target == "attributes" else -gain), rel=2e-3)


def test_an_mse_is_sklearns(boards: Boards) -> None:
    """Against the network's own answers, by scikit-learn's own metric; better than always answering the mean."""
    _, table = boards["values"]
    (x, y), (shown, asked) = labelled(60, 0, "values"), labelled(45, 1, "values")
    C = hand_C(by_hand(x), y, "values")
    predicted = oracle.ridge(by_hand(x), y, C)(by_hand(shown))
    found = grid(table).loc[("linear_probe", 1.0), "clean"]
    assert found == pytest.approx(mean_squared_error(asked, predicted), rel=2e-4)
    assert r2_score(asked, predicted) > 0.2


@pytest.mark.parametrize("target", GRADED)
def test_a_probe_has_an_answer_for_each_attribute_or_value(boards: Boards, target: Target) -> None:
    _, table = boards[target]
    width = {"attributes": 3, "values": 2}[target]
    assert set(grid(table).loc["ct"]["trainable_parameters"]) == {width * (oracle.WIDTH + 1)}


@pytest.mark.parametrize("target", GRADED)
def test_its_numbers_are_sklearns(target: Target) -> None:
    x, y = labelled(60, 0, target)
    features = by_hand(x)
    fit = linear_probe.fit(features, y, target, Probing())
    assert hand_C(features, y, target) == fit.C
    answers = (features - fit.mean) / fit.scale @ fit.weight.T + fit.bias
    answered = (answers > 0).astype(int) if target == "attributes" else answers
    np.testing.assert_allclose(answered, ORACLES[target](features, y, fit.C)(features), rtol=1e-4, atol=1e-4)


def test_one_value_an_image(tmp_path: Path) -> None:
    """As with one attribute: the labels stay [n, 1], and so do the answers."""
    x, y = labelled(60, 0, "values")
    fit = linear_probe.fit(by_hand(x), y[:, :1], "values", Probing())
    assert (fit.weight.shape, fit.bias.shape) == ((1, oracle.WIDTH), (1,))
    x, y = labelled(60, 0, "attributes")
    fit = linear_probe.fit(by_hand(x), y[:, :1], "attributes", Probing())
    assert (fit.weight.shape, fit.bias.shape) == ((1, oracle.WIDTH), (1,))


def test_graded_scores_are_compared_image_by_image() -> None:
    drawn = np.random.default_rng(0)
    first, second = -drawn.exponential(size=30), -drawn.exponential(size=30)
    second[:5] = first[:5]
    found = paired(first, second)
    assert (found.gained, found.lost) == ((second > first).sum(), (second < first).sum())
    assert found.gained + found.lost == 25
    assert found.delta == pytest.approx((second - first).mean())
    assert found.p_value == pytest.approx(flipped_by_hand(second - first), abs=0.02)
    low, high = scipy.stats.ttest_rel(second, first).confidence_interval()  # of n − 1, and about 0 rather than the mean
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)


@pytest.mark.parametrize("target", GRADED)
@pytest.mark.parametrize("search", ["best_first", "full"])
def test_a_threat_without_an_adversary_is_met(boards: Boards, target: Target, search: str) -> None:
    """The mean over its degrees, by a network that the harness did not score: whatever the search."""
    folder, _ = boards[target]
    with working(folder, INSTALLED):
        benchmark = toy_board(
            name=f"shade-{search}", model={"train": set_of("train.npz", target)}, threat={"kind": "shade"},
            dataset=set_of("test.npz", target), search={"kind": search}, batch_size=20,
        )  # fmt: skip
        table = ranking.board(pipeline.entries(parse_benchmark(benchmark)))
    (x, y), (shown, asked) = labelled(60, 0, target), labelled(45, 1, target)
    finished = grid(table)
    sign = 1 if target == "attributes" else -1
    for method, beta in finished.index:
        features = by_hand(x, beta)
        probe = ORACLES[target](features, y, hand_C(features, y, target))
        degrees = [graded(probe(by_hand(shown * (1 - k / 4), beta)), asked, target) for k in (1, 2)]
        found = finished.loc[(method, beta), "robust"]
        assert found == pytest.approx(sign * np.mean(degrees), rel=1e-3)
    assert ("linear_probe", 1.0) in finished.index
    assert (table["status"] == "selected").sum() == 1
    if target == "values":
        assert (table["robust"] > 0).all()  # a bound on an error is one, too


# --- in the benchmark file ---

LINF = {"kind": "Linf", "eps": 0.1, "attack": {"stages": ["apgd-ce"], "iterations": 2}}


@pytest.mark.parametrize("target", GRADED)
def test_attacks_on_anything_but_classes_are_refused_with_a_remedy(tmp_path: Path, target: Target) -> None:
    with working(tmp_path, INSTALLED):
        benchmark = toy_board(dataset=set_of("test.npz", target), threat=LINF)
        with pytest.raises(SpecError, match=rf"Linf makes .* are {target}; use threat: \{{kind: clean\}}"):
            parse_benchmark(benchmark)


def test_a_refusal_is_one_line_that_begins_with_its_key(tmp_path: Path) -> None:
    with working(tmp_path, INSTALLED):
        benchmark = toy_board(dataset=set_of("test.npz", "values"), threat=LINF)
        with pytest.raises(SpecError) as caught:
            parse_benchmark(benchmark)
    assert str(caught.value).startswith("threat: ")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("target", GRADED)
def test_a_number_of_each_class_is_refused_where_there_are_none(boards: Boards, target: Target) -> None:
    folder, _ = boards[target]
    with working(folder, INSTALLED):
        dataset = set_of("test.npz", target) | {"per_class": 3}
        with pytest.raises((DataError, SpecError), match=r"per_class.*give n or indices"):
            pipeline.run(parse_benchmark(toy_board(dataset=dataset, model={"train": set_of("train.npz", target)})))


# --- from a folder of the hub's ---


@pytest.mark.parametrize("target", GRADED)
@pytest.mark.usefixtures("installed")
def test_a_parquet_file_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    drawn = np.random.default_rng(0)
    pixels = drawn.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    bright = pixels.mean((1, 2, 3))
    y = np.stack([bright, -bright], axis=1).round(3)
    y = (y > np.median(y, axis=0)).astype(int) if target == "attributes" else y / 100
    folder = tmp_path / "hub"
    folder.mkdir()
    table = {"image": list(pixels), "label": y.tolist()}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.Sequence(datasets.Value("int64" if y.dtype == int else "float64")),
        }
    )
    datasets.Dataset.from_dict(table, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    train = HuggingFace(path=str(folder), split="train", labels=target)
    backbone = Checkpoint(builder="coloured_networks:pooled")
    loaded = Probe(backbone=backbone, train=train, cache=str(tmp_path / "features")).load(offline=True)
    training = loaded.training
    assert training is not None
    assert np.allclose(training.labels, y)
    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    answers = loaded.network(x)
    assert answers.shape == (30, 2)
    assert TASK_TYPES[target].outcome(answers, torch.from_numpy(training.labels)).mean() > -0.02
    assert training.strata.sum() == 0
