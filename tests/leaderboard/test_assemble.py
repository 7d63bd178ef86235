"""What a row says beside its own numbers: published ones, where they answer the same question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import pipeline
from harness.api.records import Published
from harness.config.benchmark import parse_benchmark
from harness.models.demo import Demo

IMAGES = 40


def rows(runs: Path, threat: dict[str, Any] | None = None) -> Any:
    benchmark = parse_benchmark({
        "name": "published",
        "models": [{"kind": "demo", "name": "digits_plain"}],
        "dataset": {"kind": "digits", "n": IMAGES},
        "threat": threat or {"kind": "Linf", "eps": 0.02, "attack": {"stages": ["apgd-ce"], "iterations": 1}},
        "steering": {"beta": [0.9]},
        "search": {"kind": "full"},
        "executor": {"kind": "inline"},
    })  # fmt: skip
    table = pipeline.run(benchmark, runs=runs)
    return table[table.status == "ok"].set_index("beta")


@pytest.mark.usefixtures("installed")
def test_without_published_figures_the_columns_are_empty(tmp_path: Path) -> None:
    table = rows(tmp_path)
    assert table[["published_clean", "published_robust", "mce"]].isna().all(axis=None)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("clean", "flagged"), [(0.97, False), (0.30, True)])
def test_a_baseline_unlike_the_published_one_is_flagged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: float, flagged: bool
) -> None:
    asked = []

    def published(self: Demo, dataset: str, threat: str) -> Published:
        asked.append((dataset, threat))
        return Published(clean, 0.5, 0.02, "a test")

    monkeypatch.setattr(Demo, "published", published)
    table = rows(tmp_path)
    assert set(asked) == {("digits", "Linf")}
    assert table.published_clean.tolist() == [clean, clean]
    assert table.published_robust.isna().all()  # one step of APGD is no AutoAttack
    assert ("unlike_published" in table["flags"][1.0].split(";")) == flagged
    assert "unlike_published" not in table["flags"][0.9].split(";")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("eps", "shown"), [(0.3, True), (0.2, False)])
def test_a_robust_figure_stands_beside_the_same_eps_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eps: float, shown: bool
) -> None:
    monkeypatch.setattr(Demo, "published", lambda *_: Published(0.97, 0.01, 0.3, "a test"))
    table = rows(tmp_path, {"kind": "Linf", "eps": eps, "attack": "standard"})
    assert table.published_robust.notna().all() == shown
