"""What fooled the untouched network, shown to a steering before it is attacked: by hand, on a demo network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.commands import cells, untimed
from helpers.packages import INSTALLED
from helpers.tasks import Mean, task
from safetensors.torch import load_file

from harness import pipeline
from harness.api.records import Steering
from harness.api.work import Shard
from harness.config.benchmark import parse_benchmark
from harness.curvature.steering import steer
from harness.datasets.digits import Digits
from harness.leaderboard import csv_file, outcomes, ranking
from harness.models.demo import Demo
from harness.scheduling.trials import TrialChain

N, BETA = 40, 0.5
STAGES = ["apgd-ce", "square"]
ATTACK = {"stages": STAGES, "iterations": 6, "queries": 60}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The board and the outcomes of every image: without, with, with two workers, and best-first."""
    folder = tmp_path_factory.mktemp("replay_first")

    def go(name: str, **changes: Any) -> Any:
        asked = {
            "name": "tiny",
            "models": [{"kind": "demo", "name": "digits_plain"}],
            "dataset": {"kind": "digits", "n": N},
            "threat": {"kind": "Linf", "eps": 0.1, "attack": ATTACK},
            "steering": {"beta": [BETA, 0.9]},
            "batch_size": 10,
            "search": {"kind": "full"},
            "executor": {"kind": "inline"},
        } | changes
        entries = pipeline.entries(parse_benchmark(asked), runs=folder / name)
        return ranking.board(entries), outcomes.table(entries), folder / name / "tiny"

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(INSTALLED))
        return {
            "without": go("without"),
            "with": go("with", replay_first=True),
            "two": go("two", replay_first=True, executor={"kind": "local", "workers": 2}),
            "best": go("best", replay_first=True, search={"kind": "best_first"}),
        }


def survived(table: pd.DataFrame, beta: float, stage: str) -> list[bool]:
    rows = table[(table["beta"].astype(float) == beta) & (table["stage"] == stage)]
    return [mark == "1" for mark in rows["outcomes"].item()]


def test_an_image_is_lost_first_where_an_image_that_fooled_the_baseline_fools(
    answers: dict[str, Any],
) -> None:
    _, table, folder = answers["with"]
    network = steer(Demo(name="digits_plain").load().network, BETA)
    batch = Digits(n=N).open().read(tuple(range(N)))
    with torch.no_grad():
        expected = network(batch.x).argmax(1) == batch.y
        fooled_any = False
        for key, row in cells(folder.parent).items():
            if row["identity"]["steering"] != "baseline" or row["identity"]["stage"] not in STAGES:
                continue
            path = folder / "adversaries" / key[:2] / f"{key}.safetensors"
            if path.exists():
                candidates = load_file(path)
                wrong = network(candidates["images"]).argmax(1) != batch.y[candidates["indices"]]
                expected[candidates["indices"][wrong]] = False
                fooled_any |= bool(wrong.any())
    assert fooled_any
    assert survived(table, BETA, "replay-first") == expected.tolist()


def test_what_was_lost_first_stays_lost_and_the_baseline_is_left_alone(answers: dict[str, Any]) -> None:
    (_, plain, _), (_, replayed, _) = answers["without"], answers["with"]
    for stage in ("clean", *STAGES):
        assert survived(plain, 1.0, stage) == survived(replayed, 1.0, stage)
    assert "replay-first" not in set(plain["stage"])
    candidates = survived(replayed, BETA, "replay-first")
    assert all(a <= b for a, b in zip(survived(replayed, BETA, "square"), candidates, strict=True))


def test_the_images_that_were_lost_first_are_kept_and_fool(answers: dict[str, Any]) -> None:
    _, table, folder = answers["with"]
    network = steer(Demo(name="digits_plain").load().network, BETA)
    batch = Digits(n=N).open().read(tuple(range(N)))
    kept: set[int] = set()
    for key, row in cells(folder.parent).items():
        path = folder / "adversaries" / key[:2] / f"{key}.safetensors"
        own = row["identity"]["steering"] == [BETA, 0.5, "all"] and row["identity"]["stage"] == "replay-first"
        if own and path.exists():
            found = load_file(path)
            assert (network(found["images"]).argmax(1) != batch.y[found["indices"]]).all()
            assert (found["images"] - batch.x[found["indices"]]).abs().max() <= 0.1 + 1e-6
            kept |= set(found["indices"].tolist())
    pairs = zip(survived(table, BETA, "clean"), survived(table, BETA, "replay-first"), strict=True)
    assert kept == {image for image, (before, after) in enumerate(pairs) if before and not after}


def test_the_row_says_so(answers: dict[str, Any]) -> None:
    assert set(answers["with"][0]["attack"]) == {"custom:apgd-ce+square+replay_first"}
    assert set(answers["without"][0]["attack"]) == {"custom:apgd-ce+square"}


def test_it_is_the_same_with_two_workers(answers: dict[str, Any]) -> None:
    boards = [untimed(csv_file.to_csv(answers[name][0])) for name in ("with", "two")]
    assert boards[0] == boards[1]
    assert answers["with"][1].equals(answers["two"][1])


def test_best_first_finds_the_same_winner(answers: dict[str, Any]) -> None:
    columns = ["beta", "clean", "robust"]
    winners = [answers[name][0].query("rank == 1")[columns].to_numpy().tolist() for name in ("with", "best")]
    assert winners[0] == winners[1]


def test_corruptions_know_no_such_thing() -> None:
    """What a "mean" threat finds is no adversary: the option changes nothing."""
    chain = TrialChain(replace(task(Mean(how_many=2)), replay_first=True), Steering(0.5), Shard((1,), "d"))
    assert chain.follows is None
    assert "replay-first" not in chain.stages
