"""A probe is scikit-learn's own on the features of a steered backbone, and no test image influences a fit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers.transfer as parts
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.boards import write as write_board
from helpers.commands import untimed
from helpers.transfer import arrays, by_hand, cross_validated, hand_C, sklearns, toy_board, toy_images, working
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.stats.contingency_tables import mcnemar

from harness import pipeline
from harness.api.dataset import Dataset
from harness.api.model import Scorable
from harness.api.records import BASELINE, Steering
from harness.api.registry import build
from harness.config.benchmark import load_benchmark, parse_benchmark
from harness.curvature.steering import steer
from harness.datasets.arrays import Arrays
from harness.datasets.digits import Digits
from harness.errors import HarnessError, ModelError, SpecError
from harness.leaderboard import csv_file, outcomes, ranking
from harness.leaderboard.row import RowKey
from harness.models.checkpoint import Checkpoint
from harness.models.demo import Demo
from harness.testing import ModelContract
from harness.threats.clean import Clean
from harness.transfer import linear_probe
from harness.transfer.probe_model import Probe
from harness.transfer.settings import Probing
from harness.util.cache import cached

ORDERS = ("steer_first", "fit_first")


def images_of(dataset: Dataset) -> tuple[torch.Tensor, np.ndarray]:
    opened = dataset.open()
    batch = opened.read(dataset.chosen(opened))
    return batch.x, batch.y.numpy()


def features_of(network: torch.nn.Module, last: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    """The input of the layer ``last`` while ``network`` runs, as a hook of our own sees it."""
    found: list[torch.Tensor] = []
    hook = last.register_forward_hook(lambda _, args, __: found.append(args[0]))
    with torch.no_grad():
        network(x)
    hook.remove()
    return found[-1].numpy()


def toy_probe(folder: Path, builder: str = "toy", **changes: Any) -> Probe:
    fields = {
        "backbone": Checkpoint(builder=f"helpers.transfer:{builder}"),
        "train": Arrays(path=str(folder / "train.npz")),
        "cache": str(folder / "features"),
    }
    return Probe.model_validate(fields | changes)


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    arrays(tmp_path)
    return tmp_path


def answers(loaded: Scorable, steering: Steering, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        result: np.ndarray = loaded.steered(steering)(torch.from_numpy(x)).numpy()
    return result


# --- it is scikit-learn's own ---


@pytest.mark.parametrize("beta", [1.0, 0.6])
@pytest.mark.parametrize("classes", [(5, 6, 7, 8, 9), (5, 6)])
def test_it_is_sklearns_own_pipeline_on_exported_features(tmp_path: Path, beta: float, classes: Any) -> None:
    train, test = Digits(split="train", classes=classes, per_class=10), Digits(classes=classes)
    (x, y), (test_x, _) = images_of(train), images_of(test)
    backbone = Demo(name="digits_plain_0to4")
    plain = backbone.load().network
    network = plain if beta == 1 else steer(plain, beta, example=x[:1])
    last = plain.get_submodule("classifier")
    features, test_features = (features_of(network, last, images).astype(float) for images in (x, test_x))

    grid = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)),
        {"logisticregression__C": parts.STRENGTHS},
        cv=[(np.setdiff1d(range(len(y)), fold), fold) for fold in parts.dealt(y, 5, 0)],
    ).fit(features, y)  # the folds are of one size, so the mean of their accuracies is that of all images
    means = grid.cv_results_["mean_test_score"]
    C = parts.best(dict(zip(parts.STRENGTHS, means, strict=True)))
    oracle = sklearns(features, y, C)

    loaded = Probe(backbone=backbone, train=train, cache=str(tmp_path)).load()
    found = answers(loaded, Steering(beta), test_x.numpy())
    expected = oracle.decision_function(test_features)
    found_margins = found[:, 1] - found[:, 0] if len(classes) == 2 else found
    np.testing.assert_allclose(found_margins, expected, atol=2e-4)
    assert np.array_equal(found.argmax(1), oracle.predict(test_features))
    assert linear_probe.choose_C(features, y, "class", Probing()).C == C
    assert cached_C(tmp_path) == {C}


def cached_arrays(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """The content of the cache, by file name."""
    return {path.name: dict(np.load(path)) for path in folder.rglob("*.npz")}


def cached_C(folder: Path) -> set[float]:
    return {float(content["C"]) for content in cached_arrays(folder).values() if "C" in content}


@pytest.mark.parametrize(("folds", "seed"), [(5, 0), (3, 7)])
def test_C_does_best_on_folds_that_it_was_not_fitted_on(folds: int, seed: int) -> None:
    x, y = toy_images(60, seed=0)
    settings = Probing(folds=folds, seed=seed)
    found = linear_probe.choose_C(by_hand(x), y, "class", settings).C
    assert found == hand_C(by_hand(x), y, folds, seed)
    assert found != settings.C[0]


def test_of_equally_good_C_the_smallest_is_chosen() -> None:
    x = np.repeat([[0.0], [1.0]], 10, axis=0)
    settings = Probing(C=(10.0, 0.1, 1.0), folds=2)
    assert linear_probe.choose_C(x, np.repeat([0, 1], 10), "class", settings).C == 0.1


# --- the order, against numpy ---


@pytest.mark.parametrize("beta", [0.8, 0.3])
def test_each_order_is_what_numpy_computes(toys: Path, beta: float) -> None:
    (x, y), (test_x, _) = toy_images(60, seed=0), toy_images(45, seed=1)
    found = {order: answers(toy_probe(toys, probe={"order": order}).load(), Steering(beta), test_x) for order in ORDERS}
    for order, fitted_on in (("steer_first", by_hand(x, beta)), ("fit_first", by_hand(x))):
        probe = sklearns(fitted_on, y, hand_C(fitted_on, y))
        np.testing.assert_allclose(found[order], probe.decision_function(by_hand(test_x, beta)), atol=1e-3)
    assert np.abs(found["steer_first"] - found["fit_first"]).max() > 0.05


def test_both_orders_are_one_at_the_baseline(toys: Path) -> None:
    x, _ = toy_images(45, seed=1)
    first, second = (answers(toy_probe(toys, probe={"order": order}).load(), BASELINE, x) for order in ORDERS)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("folds", "seed"), [(5, 0), (4, 3)])
def test_a_training_image_is_answered_by_a_probe_fitted_without_it(
    toys: Path, order: Any, beta: float, folds: int, seed: int
) -> None:
    x, y = toy_images(60, seed=0)
    fitted_on = by_hand(x, beta if order == "steer_first" else 1.0)
    C = hand_C(fitted_on, y, folds, seed)

    def graded(others: np.ndarray, fold: np.ndarray) -> np.ndarray:
        return np.asarray(sklearns(fitted_on[others], y[others], C).predict(by_hand(x[fold], beta)) == y[fold])

    loaded = toy_probe(toys, probe={"order": order, "folds": folds, "seed": seed}).load()
    found = loaded.training_scores(Steering(beta))
    assert found.dtype == np.float32
    assert np.array_equal(found, cross_validated(y, folds, seed, graded))
    assert 0.3 < found.mean() < 1


# --- what cannot be fitted ---


@pytest.mark.parametrize(
    ("y", "settings", "message"),
    [
        (np.zeros(20, int), {}, r"on 16 training images: .*one class.*; use more"),
        (np.arange(20) % 3 * 2, {"C": [1.0]}, r"class 1; number the classes 0, 1, … without gaps"),
        (np.arange(20) % 2, {"folds": 21}, r"probe\.folds: 21 folds of 20 training images; use fewer"),
    ],
    ids=["one class", "a gap", "folds"],
)
def test_what_cannot_be_fitted_is_reported(tmp_path: Path, y: np.ndarray, settings: Any, message: str) -> None:
    parts.save(tmp_path / "train.npz", toy_images(20, seed=0)[0], y)
    with pytest.raises(ModelError, match=message):
        _ = toy_probe(tmp_path, probe=settings).load().network


# --- a board ---

METHODS: dict[str, Any] = {
    "methods": ["lora-1", "fine_tuning"],
    "tuning": {"epochs": 4, "learning_rates": [0.01, 0.1], "share": 0.3, "seed": 2},
}
"""With these settings training helps, so that both methods end elsewhere than they start."""
BETAS = (1.0, 0.9, 0.5, 0.0)


class Boards:
    """Benchmarks of toys, each in a folder of its own, run in this process."""

    def __init__(self, root: Path, site: Path) -> None:
        self.root, self.site = root, site

    def folder(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        arrays(folder)
        return folder

    def run(self, folder: Path, **changes: Any) -> pd.DataFrame:
        """Run a benchmark and read the board back from its CSV, with its outcome file beside it."""
        with working(folder, self.site):
            entries = pipeline.entries(parse_benchmark(toy_board(**changes)))
            path = folder / "board.csv"
            table = ranking.board(entries)
            write_board(table, path, outcomes.table(entries))
            return csv_file.read(path)


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Boards:
    return Boards(tmp_path_factory.mktemp("boards"), site)


@pytest.fixture(scope="module")
def first(boards: Boards) -> tuple[Path, pd.DataFrame]:
    folder = boards.folder("first")
    return folder, boards.run(folder, model=METHODS)


def rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the grid, by method and β."""
    return table[table["status"] == "ok"].set_index(["method", "beta"])


def by_hand_correct(beta: float) -> np.ndarray:
    """The test images of the toy board that are classified correctly at β; bool [45]."""
    (x, y), (test_x, test_y) = toy_images(60, seed=0), toy_images(45, seed=1)
    probe = sklearns(by_hand(x, beta), y, hand_C(by_hand(x, beta), y))
    return np.asarray(probe.predict(by_hand(test_x, beta)) == test_y)


def by_hand_training_score(beta: float) -> float:
    """The cross-validated accuracy on the training images."""
    x, y = toy_images(60, seed=0)
    features = by_hand(x, beta)
    C = hand_C(features, y)

    def graded(others: np.ndarray, fold: np.ndarray) -> np.ndarray:
        return np.asarray(sklearns(features[others], y[others], C).predict(features[fold]) == y[fold])

    return float(cross_validated(y, 5, 0, graded).mean())


def test_beta_is_chosen_on_training_images_and_reported_on_all_test_images(first: tuple[Path, pd.DataFrame]) -> None:
    _, table = first
    [selected] = table[table["status"] == "selected"].to_dict("records")
    chosen = max(BETAS, key=lambda beta: (by_hand_training_score(beta), beta))
    assert chosen != 1
    assert selected["selection"] == "training"
    assert (selected["chosen"], selected["beta"]) == (f"{chosen:g}", chosen)
    assert selected["n"] == 45
    before, after = by_hand_correct(1.0), by_hand_correct(chosen)
    assert selected["clean"] == selected["robust"] == pytest.approx(after.mean(), abs=1e-6)
    gained, lost = (after & ~before).sum(), (before & ~after).sum()
    assert (selected["gained"], selected["lost"]) == (gained, lost)
    exact = mcnemar([[0, gained], [lost, 0]], exact=True).pvalue if gained + lost else 1
    assert selected["p_value"] == pytest.approx(exact, rel=1e-3)
    assert selected["delta_pp"] == pytest.approx(100 * (after.mean() - before.mean()), abs=1e-3)


def test_every_row_is_what_numpy_and_sklearn_compute(first: tuple[Path, pd.DataFrame]) -> None:
    folder, table = first
    content = outcomes.read(folder / "board.csv")
    assert content is not None
    found = outcomes.scores(content)
    for beta in BETAS:
        method = "linear_probe" if beta == 1 else "ct"
        correct, row = by_hand_correct(beta), rows(table).loc[(method, beta), :]
        clean, robust = found[RowKey("toy", method, beta, 0.5)]
        assert np.array_equal(clean, correct)
        assert np.array_equal(robust, correct)
        assert row["clean"] == pytest.approx(correct.mean(), abs=1e-6)
        assert row["trainable_parameters"] == parts.CLASSES * (parts.WIDTH + 1)
        assert row["metric"] == "accuracy"
    assert set(table["threat"]) == {"clean"}
    assert table["robust_aa"].isna().all()
    assert sorted(rows(table)["rank"]) == list(range(1, len(BETAS) + 3))


def test_other_methods_have_rows_beside_the_steerings_with_their_counts(first: tuple[Path, pd.DataFrame]) -> None:
    _, table = first
    head = parts.CLASSES * (parts.WIDTH + 1)
    found = rows(table)["trainable_parameters"]
    assert found["lora-1", 1.0] == head + parts.SIDE**2 + parts.WIDTH
    assert found["fine_tuning", 1.0] == head + (parts.SIDE**2 + 1) * parts.WIDTH


def test_the_fitted_probe_is_part_of_the_hash_of_the_weights(first: tuple[Path, pd.DataFrame]) -> None:
    _, table = first
    hashes = rows(table)["weights_sha256"]
    assert hashes.is_unique
    assert table["fitted_from"].nunique() == 1
    assert not set(hashes) & set(table["fitted_from"])
    selected = table[table["status"] == "selected"].iloc[0]
    assert selected["weights_sha256"] == hashes["ct", selected["beta"]]


def test_run_again_it_is_the_same_to_the_byte(boards: Boards, first: tuple[Path, pd.DataFrame]) -> None:
    folder, _ = first
    before = (folder / "board.csv").read_text()
    boards.run(folder, model=METHODS)
    assert (folder / "board.csv").read_text() == before
    again = boards.folder("again")
    boards.run(again, model=METHODS)
    assert untimed((again / "board.csv").read_text()) == untimed(before)


# --- no test image influences a fit ---


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "runs" / "features").rglob("*.npz")}


def fitted_and_chosen(table: pd.DataFrame) -> tuple[dict[Any, str], set[str], set[float]]:
    selected = table[table["status"] == "selected"]
    return rows(table)["weights_sha256"].to_dict(), set(selected["weights_sha256"]), set(selected["beta"])


@pytest.mark.parametrize("poison", ["labels", "pixels"])
def test_poisoned_test_images_change_nothing_but_accuracies(
    boards: Boards, first: tuple[Path, pd.DataFrame], poison: str
) -> None:
    clean_folder, clean = first
    folder = boards.folder(f"poisoned {poison}")
    x, y = toy_images(45, seed=1)
    drawn = np.random.default_rng(9)
    if poison == "labels":
        y = (y + drawn.integers(1, 3, len(y))) % 3
    else:
        x = drawn.uniform(0, 1, x.shape).astype(np.float32)
    parts.save(folder / "test.npz", x, y)
    table = boards.run(folder, model=METHODS)
    assert fitted_and_chosen(table) == fitted_and_chosen(clean)
    assert contents(folder) == contents(clean_folder)
    assert not np.allclose(rows(table)["clean"].sort_index(), rows(clean)["clean"].sort_index())
    assert set(table["data_sha256"]).isdisjoint(clean["data_sha256"])


def test_poisoned_training_labels_change_every_weight(boards: Boards, first: tuple[Path, pd.DataFrame]) -> None:
    _, clean = first
    folder = boards.folder("poisoned training")
    x, y = toy_images(60, seed=0)
    parts.save(folder / "train.npz", x, np.random.default_rng(9).permutation(y))
    table = boards.run(folder, model=METHODS)
    assert set(rows(table)["weights_sha256"]).isdisjoint(rows(clean)["weights_sha256"])
    assert set(table["fitted_from"]).isdisjoint(clean["fitted_from"])
    assert rows(table)["clean"].max() < rows(clean)["clean"].max()


def test_images_that_are_scored_are_not_fitted_on(boards: Boards) -> None:
    """A training set with images that are scored is refused, or its model fails; it is never scored silently."""
    folder = boards.folder("the same")
    train = {"kind": "arrays", "path": "test.npz", "n": 30}
    try:
        table = boards.run(folder, model={"train": train}, steering={"beta": [0.5]})
    except HarnessError:
        return
    assert table["status"].str.startswith("failed").all()


# --- without a threat, and under one ---


def test_the_threat_clean_is_the_clean_stage_alone() -> None:
    clean = Clean()
    assert (clean.stages, clean.attacks) == ((), ())
    assert clean.columns() == {"threat": "clean", "eps": "", "attack": ""}
    with pytest.raises(SpecError, match=r"threat\.eps: unknown key"):
        build("threats", {"kind": "clean", "eps": 0.1}, "threat")


def test_the_search_finds_the_row_of_the_full_grid(boards: Boards) -> None:
    """And finishes the β chosen on the training images and the other methods, however bad they are."""
    threat = {"kind": "Linf", "eps": 0.05, "attack": {"stages": ["apgd-ce"], "iterations": 3}}
    changes = {"threat": threat, "batch_size": 15, "steering": {"beta": [0.95, 0.9, 0.7, 0.5, 0.3, 0.0]}}
    found = {}
    for search in ("best_first", "full"):
        folder = boards.folder(search)
        table = boards.run(folder, model=METHODS, search={"kind": search}, **changes)
        found[search] = table
        assert {"lora-1", "fine_tuning", "linear_probe"} <= set(rows(table).reset_index()["method"])
    selected, in_full = (table[table["status"] == "selected"].drop(columns="seconds") for table in found.values())
    pd.testing.assert_frame_equal(selected.drop(columns="robust_aa"), in_full.drop(columns="robust_aa"))
    assert (found["best_first"]["status"] == "bounded").any()
    assert not (found["full"]["status"] == "bounded").any()
    assert ("ct", selected["beta"].item()) in rows(found["best_first"]).index
    assert selected["robust"].item() < selected["clean"].item()


# --- the cache ---


def test_features_are_computed_once_for_each_steering(toys: Path) -> None:
    probe = toy_probe(toys, "counted", methods=("lora-1",))
    parts.SEEN["images"] = 0
    loaded = probe.load()
    for steering, images in ((BASELINE, 60), (Steering(0.5), 120), (Steering(0.2), 180), (Steering(0.5), 180)):
        loaded.steered(steering)
        loaded.training_scores(steering)
        assert parts.SEEN["images"] == images
    again = probe.load()
    for steering in (BASELINE, Steering(0.5), Steering(0.2)):
        again.steered(steering)
        again.training_scores(steering)
    assert parts.SEEN["images"] == 180


def test_a_second_load_computes_nothing_and_gives_the_same_bits(toys: Path, monkeypatch: Any) -> None:
    steerings = (BASELINE, Steering(0.5), BASELINE._replace(method="fine_tuning"))
    probe = toy_probe(toys, **METHODS)
    first = probe.load()
    before = [first.fitted(steering) for steering in steerings]
    training_scores = first.training_scores(Steering(0.5))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(LogisticRegression, "fit", refuse)
    monkeypatch.setattr(torch.optim.Adam, "step", refuse)
    again = probe.load()
    assert np.array_equal(again.training_scores(Steering(0.5)), training_scores)
    assert [again.fitted(steering) for steering in steerings[:2]] == before[:2]


def test_a_method_that_was_trained_before_is_read_from_the_cache(toys: Path, monkeypatch: Any) -> None:
    tuned = BASELINE._replace(method="lora-1")
    probe = toy_probe(toys, **METHODS)
    before = probe.load().fitted(tuned)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(torch.optim.Adam, "step", refuse)
    assert probe.load().fitted(tuned) == before


CHANGES: dict[str, Callable[[Path], Probe]] = {
    "training set": lambda folder: toy_probe(folder, train=Arrays(path=str(folder / "test.npz"))),
    "training subset": lambda folder: toy_probe(folder, train=Arrays(path=str(folder / "train.npz"), n=50)),
    "weights": lambda folder: toy_probe(folder, "other_toy"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_training_set_or_backbone_has_another_key(toys: Path, change: str) -> None:
    _ = toy_probe(toys).load().network
    before = set(cached_arrays(toys / "features"))
    assert len(before) == 2
    _ = CHANGES[change](toys).load().network
    assert len(set(cached_arrays(toys / "features")) - before) == 2


def test_another_classifier_has_another_key_and_the_same_one_by_name_has_not(toys: Path) -> None:
    found = {}
    for name in (None, "b", "a"):
        loaded = toy_probe(toys, "forked", classifier=name).load()
        found[name] = loaded.fitted(BASELINE), len(cached_arrays(toys / "features"))
    assert found["b"] == found[None]
    assert found["a"][0] != found["b"][0]
    assert [count for _, count in found.values()] == [2, 2, 4]


def test_another_beta_has_another_key_and_other_ways_of_fitting_share_the_features(toys: Path) -> None:
    def total(**changes: Any) -> int:
        toy_probe(toys, **changes).load().steered(Steering(0.5))
        return len(cached_arrays(toys / "features"))

    assert total() == 2  # features and probe
    assert total() == 2
    assert total(probe={"order": "fit_first"}) == 4  # of the untouched network
    assert total(probe={"seed": 1}) == 5  # a probe
    assert total(probe={"C": [1.0]}) == 6
    toy_probe(toys).load().steered(Steering(0.4))
    assert len(cached_arrays(toys / "features")) == 8


def test_a_cache_that_cannot_be_written_is_reported(toys: Path) -> None:
    (toys / "file").touch()
    with pytest.raises(ModelError, match=r"cache: .*/file/.*; name another "):
        _ = toy_probe(toys, cache=str(toys / "file")).load().network


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short"], ids=["empty", "cut short"])
def test_a_damaged_cache_is_reported_or_repaired(toys: Path, content: bytes) -> None:
    before = toy_probe(toys).load().fitted(BASELINE)
    for path in (toys / "features").rglob("*.npz"):
        path.write_bytes(content)
    try:
        found = toy_probe(toys).load().fitted(BASELINE)
    except ModelError as error:
        assert "cache" in str(error)  # noqa: PT017
    else:
        assert found == before


def test_a_fault_of_the_images_is_not_blamed_on_the_cache(tmp_path: Path) -> None:
    def compute() -> Any:
        raise FileNotFoundError("picture 7")

    with pytest.raises((FileNotFoundError, ModelError)) as caught:
        cached(tmp_path, "ab" * 32, compute)
    assert "name another" not in str(caught.value)


def test_two_processes_at_once_compute_once(tmp_path: Path) -> None:
    code = (
        "import time, numpy as np\nfrom pathlib import Path\nfrom harness.util.cache import cached\n"
        "def compute():\n"
        "    with Path('log').open('a') as log: log.write('x')\n"
        "    time.sleep(0.5)\n"
        "    return {'a': np.arange(3)}\n"
        "print(cached(Path('kept'), 'ab' * 32, compute)['a'].sum())"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in started] == ["3", "3"]
    assert (tmp_path / "log").read_text() == "x"


# --- as a part of a benchmark ---


class TestProbe(ModelContract):
    shape = (1, 8, 8)

    @pytest.fixture(params=ORDERS)
    def part(self, request: pytest.FixtureRequest, tmp_path: Path) -> Probe:
        return Probe(
            backbone=Demo(name="digits_plain_0to4"),
            train=Digits(split="train", classes=(5, 6, 7, 8, 9), per_class=6),
            probe=Probing(order=request.param, C=(0.1,), folds=2),
            cache=str(tmp_path),
        )


def parsed(**changes: Any) -> Any:
    return parse_benchmark(toy_board(**changes))


DEMO = {"kind": "demo", "name": "digits_plain"}


def test_beta_is_chosen_on_training_images_where_every_model_has_some(here: Path) -> None:
    alone = parsed()
    mixed = parsed(models=[*toy_board()["models"], DEMO])
    given = parsed(selection={"kind": "holdout", "share": 0.3})
    assert [benchmark.selection.kind for benchmark in (alone, mixed, given)] == [
        "training",
        "cross_validation",
        "holdout",
    ]
    assert parsed(models=[DEMO]).selection.kind == "cross_validation"


def test_training_images_are_asked_of_a_model_that_has_none(boards: Boards) -> None:
    folder = boards.folder("none fitted")
    plain = {"kind": "checkpoint", "builder": "helpers.transfer:toy", "name": "plain"}
    table = boards.run(
        folder,
        models=[*toy_board()["models"], plain],
        selection={"kind": "training"},
        steering={"beta": [0.5]},
    ).set_index("model")
    assert table.loc["plain"]["status"].startswith("failed: selection: ")
    for piece in ("training", "cross_validation"):  # the value, and the remedy
        assert piece in table.loc["plain"]["status"]
    assert list(table.loc["toy"]["status"]) == ["selected", "ok", "ok"]


def test_probes_among_others_are_chosen_by_cross_validation(boards: Boards) -> None:
    folder = boards.folder("mixed")
    plain = {"kind": "checkpoint", "builder": "helpers.transfer:toy", "name": "plain"}
    table = boards.run(folder, models=[*toy_board()["models"], plain], steering={"beta": [0.5]})
    assert set(table[table["status"] == "selected"]["selection"]) == {"cross_validation:5"}
    methods = table.groupby("model")["method"].agg(set)
    assert methods["toy"] == {"linear_probe", "ct"}
    assert methods["plain"] == {"untouched", "ct"}
    assert set(table[table["model"] == "plain"]["trainable_parameters"]) == {0}
    assert set(table[table["model"] == "plain"]["fitted_from"]) == {""}


def test_the_order_can_be_set_on_the_command_line(here: Path) -> None:
    import yaml

    (here / "toys.yaml").write_text(yaml.safe_dump({k: v for k, v in toy_board().items() if k != "name"}))
    for overrides, order, label in (
        (["models.0.probe.order=fit_first"], "fit_first", "toy fit_first"),
        ([], "steer_first", "toy"),
    ):
        [model] = load_benchmark("toys.yaml", overrides).models
        assert isinstance(model, Probe)
        assert (model.probe.order, model.label) == (order, label)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probe": {"fold": 3}}, r"models\[0\]\.probe\.fold: unknown key"),
        ({"probe": {"order": "both"}}, r"models\[0\]\.probe\.order: .*'steer_first' or 'fit_first', found 'both'"),
        ({"probe": {"C": [0]}}, r"models\[0\]\.probe\.C\[0\]: .*found 0"),
        ({"probe": {"C": []}}, r"models\[0\]\.probe\.C: .*at least 1"),
        ({"tuning": {"epoch": 3}}, r"models\[0\]\.tuning\.epoch: unknown key"),
        ({"methods": ["lora-3"]}, r"models\[0\]\.methods\[0\]: .*'lora-4'.*found 'lora-3'"),
        ({"backbone": DEMO | {"colour": 1}}, r"models\[0\]\.backbone\b.*colour: unknown key"),
        ({"backbone": {"kind": "dem"}}, r"models\[0\]\.backbone\b.*kind: unknown kind 'dem' \(did you mean 'demo'\?\)"),
        ({"train": {"kind": "digits", "splt": "x"}}, r"models\[0\]\.train\b.*splt: unknown key.*did you mean 'split'"),
        ({"backbone": toy_board()["models"][0]}, r"models\[0\]\.backbone: .*give the probe's own backbone"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(here: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parsed(model=changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": DEMO | {"colour": 1}}, "models[0].backbone.colour: unknown key"),
        ({"train": {"kind": "digits", "split": "x"}}, "models[0].train.split: "),
        ({"probe": {"fold": 3}}, "models[0].probe.fold: unknown key (did you mean 'folds'?)"),
    ],
)
def test_a_fault_deep_inside_is_reported_as_one_outside_is(here: Path, changes: dict[str, Any], message: str) -> None:
    """The key under its whole path, and a hint from the keys that belong there."""
    with pytest.raises(SpecError) as caught:
        parsed(model=changes)
    assert str(caught.value).startswith(message)


def test_cache_name_and_other_methods_are_not_part_of_the_identity(tmp_path: Path) -> None:
    probe = toy_probe(tmp_path)
    for same in ({"cache": "elsewhere"}, {"name": "x"}, {"methods": ("lora-1",)}):
        assert toy_probe(tmp_path, **same).identity() == probe.identity()
    for other in ({"classifier": "3"}, {"probe": {"order": "fit_first"}}, {"tuning": {"seed": 1}}):
        assert toy_probe(tmp_path, **other).identity() != probe.identity()


# --- Swin, from a local checkpoint ---


@pytest.mark.slow
def test_relu_swin_is_a_backbone_from_a_local_checkpoint(tmp_path: Path) -> None:
    from harness.models.architectures.relu_swin import relu_swin_tiny

    torch.manual_seed(0)
    network = relu_swin_tiny().eval()
    weights = tmp_path / "swin.safetensors"
    save_file(network.state_dict(), weights)
    drawn = np.random.default_rng(0)
    x = drawn.integers(0, 256, (6, 3, 224, 224), dtype=np.uint8)
    train = Arrays(path=parts.save(tmp_path / "train.npz", x, np.arange(6) % 2))
    backbone = {
        "kind": "checkpoint",
        "builder": "harness.models.architectures.relu_swin:relu_swin_tiny",
        "weights": str(weights),
    }
    fields = {"backbone": backbone, "train": train, "probe": {"folds": 2}, "cache": str(tmp_path / "features")}
    model = build("models", {"kind": "probe"} | fields, "here")
    assert isinstance(model, Probe)
    loaded = model.load(offline=True)
    images = torch.from_numpy(x).float() / 255
    coverage = loaded.coverage("all", images[:1])
    assert (coverage.sites, coverage.steered) == (12, 12)
    expected = features_of(steer(network, 0.7, example=images[:1]), network.get_submodule("head.fc"), images)
    loaded.steered(Steering(0.7))
    cached_files = cached_arrays(tmp_path / "features").values()
    [features] = (content["features"] for content in cached_files if "features" in content)
    assert features.shape == (6, 768)
    np.testing.assert_allclose(features, expected, atol=1e-4)
    assert loaded.trainable_parameters() == 2 * 769


def test_the_training_image_whose_features_overflow_is_named(toys: Path) -> None:
    """Rather than scikit-learn's complaint about NaN, with more images as the remedy."""
    loaded = toy_probe(toys, builder="overflowing").load()
    with pytest.raises(ModelError, match=r"features at β = 1 are NaN or infinite on 1 of 60 training images.*image 7;"):
        loaded.steered(BASELINE)
