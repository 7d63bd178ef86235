"""Best-first search: against brute force on random outcome tables, and on the demo networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.commands import untimed
from helpers.packages import INSTALLED, python_path
from helpers.tasks import Mean, Stages, task
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import pipeline
from harness.analysis.selection import CrossValidation, Scored, better, selection_sets
from harness.api.records import Steering
from harness.api.threat import Threat
from harness.api.work import Cell, Outcome
from harness.config.benchmark import parse_benchmark
from harness.leaderboard import csv_file, outcomes, ranking
from harness.leaderboard.row import rows_of
from harness.scheduling.best_first import BestFirstSearch
from harness.scheduling.margins import smallest_margin_first
from harness.scheduling.policies import BestFirstPolicy, FullGridPolicy
from harness.scheduling.state import RunProgress
from harness.scheduling.trials import REPLAY_FIRST, TrialChain, chains, grid, shards


@dataclass
class Table:
    """What every cell of a benchmark would give: [steerings, stages, images], the images by their numbers."""

    threat: Threat
    betas: list[float]
    values: np.ndarray
    size: int
    top: int
    replay_first: bool = False

    def __post_init__(self) -> None:
        n = self.values.shape[2]
        self.images = [7 + 2 * k for k in range(n)]
        self.steerings = grid(self.betas, [0.5], "all")
        digests = dict.fromkeys(self.images, "d")
        ordered = smallest_margin_first(digests, [np.arange(n) % 5])
        asked = replace(task(self.threat), replay_first=self.replay_first)
        self.chains = chains(asked, self.steerings, shards(ordered, self.size))
        self.sets = [on for on, _ in selection_sets(CrossValidation(folds=2), np.arange(n) % 2, 0)]

    def outcome(self, cell: Cell) -> np.ndarray:
        rows = self.values[self.steerings.index(cell.steering)]
        of = dict(zip(("clean", *self.threat.stages), rows, strict=True)) | {REPLAY_FIRST: self.candidates(rows)}
        row = of[cell.stage]
        surviving = set(cell.surviving)
        return np.array([image in surviving and row[self.images.index(image)] for image in cell.shard.images], "f4")

    def candidates(self, rows: np.ndarray) -> np.ndarray:
        """Which images survive what fooled the baseline: some."""
        return np.roll(rows[0], 1)

    def full(self) -> dict[Steering, Scored]:
        """By brute force."""
        found: dict[Steering, Scored] = {}
        for steering, rows in zip(self.steerings, self.values, strict=True):
            robust = rows.all(0) if self.threat.reduction == "worst" else rows[1:].mean(0)
            if self.replay_first and self.threat.reduction == "worst" and not steering.is_baseline:
                robust = robust * self.candidates(rows)
            found[steering] = Scored(steering, rows[0].astype("f4"), robust.astype("f4"))
        return found

    def search(self) -> BestFirstSearch:
        return BestFirstSearch(dict(enumerate(self.chains)), self.images, self.sets, self.top)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    stages, n = draw(st.integers(1, 3)), draw(st.integers(2, 9))
    threat = draw(st.sampled_from([Stages, Mean]))(how_many=stages)
    betas = draw(st.lists(st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9]), min_size=1, unique=True))
    bits = draw(st.lists(st.booleans(), min_size=(len(betas) + 1) * (stages + 1) * n,
                         max_size=(len(betas) + 1) * (stages + 1) * n))  # fmt: skip
    values = np.array(bits, float).reshape(len(betas) + 1, stages + 1, n)
    return Table(threat, betas, values, draw(st.integers(1, n)), draw(st.integers(1, 3)), draw(st.booleans()))


def on(scored: Scored, where: np.ndarray) -> Scored:
    return Scored(scored.steering, scored.clean[where], scored.robust[where])


def run(table: Table) -> BestFirstSearch:
    """One cell after another; each must belong to a steering that may still win, or to the baseline."""
    search, everything = table.search(), table.full()
    while (number := search.ask()) is not None:
        chain = table.chains[number]
        finished = [steering for steering in table.steerings if not search.open[steering]]
        bound = search.bounds[chain.steering]
        excluded = [
            sum(better(on(everything[one], where)) < better(on(bound, where)) for one in finished)
            >= (table.top if position == 0 else 1)
            for position, where in enumerate(search.sets)
        ]
        assert chain.steering.is_baseline or not all(excluded)
        cell = chain.next(search.done[number])
        assert cell is not None
        search.tell(number, table.outcome(cell))
    return search


@given(tables())
def test_the_winners_are_those_of_the_full_grid(table: Table) -> None:
    search, everything = run(table), table.full()
    for position, where in enumerate(search.sets):
        ranked = sorted(table.steerings, key=lambda steering: better(on(everything[steering], where)))
        for winner in ranked[: table.top if position == 0 else 1]:
            assert not search.open[winner]
            np.testing.assert_allclose(search.bounds[winner].robust, everything[winner].robust, atol=1e-6)
        assert min(table.steerings, key=lambda one: better(on(search.bounds[one], where))) == ranked[0]
    assert not search.open[table.steerings[0]]


@given(tables())
def test_a_bound_is_never_below_what_it_bounds(table: Table) -> None:
    search, everything = run(table), table.full()
    for steering, bound in search.bounds.items():
        assert (bound.robust >= everything[steering].robust - 1e-6).all()
        assert (bound.clean >= everything[steering].clean).all()


@settings(max_examples=40, deadline=None)
@given(tables(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_the_course_is_the_same_whoever_computes_and_in_which_order(table: Table, slots: int, chance: Random) -> None:
    alone = run(table)
    state: RunProgress[TrialChain] = RunProgress(table.chains, lambda key: None)
    searches = BestFirstPolicy(state, {"m": table.search()})
    in_flight: dict[int, Cell] = {}
    while not searches.is_done():
        while len(in_flight) < slots and (number := searches.next_ready(in_flight)) is not None:
            assert number not in in_flight
            cell = state.next(number)
            assert cell is not None
            untouched = replace(state.chains[number], steering=table.steerings[0])
            if cell.stage == REPLAY_FIRST:
                assert state.next(table.chains.index(untouched)) is None
            in_flight[number] = cell
        assert in_flight, "nothing is computed, and yet something is asked for"
        number = chance.choice(sorted(in_flight))
        cell = in_flight.pop(number)
        state.done[number].append(Outcome(cell.key, table.outcome(cell), 1.0))
    searches.discard_unasked()
    assert [len(done) for done in state.done] == [len(alone.done[number]) for number in range(len(state.chains))]


@given(tables())
def test_what_is_known_is_not_asked_for(table: Table) -> None:
    state: RunProgress[TrialChain] = RunProgress(table.chains, lambda key: None)
    everything = FullGridPolicy(state)
    while (number := everything.next_ready(())) is not None:
        cell = state.next(number)
        assert cell is not None
        state.done[number].append(Outcome(cell.key, table.outcome(cell), 1.0))
    assert everything.is_done()
    searches = BestFirstPolicy(state, {"m": table.search()})
    assert searches.next_ready(()) is None
    assert searches.is_done()
    assert not searches.remaining()


def test_a_loser_is_pruned_after_the_shard_of_the_smallest_margins() -> None:
    values = np.ones((3, 3, 8))
    values[1, 1, :2] = 0  # β = 0.9 loses two images to the first attack, β = 0.8 none
    table = Table(Stages(how_many=2), [0.9, 0.8], values, 2, 1)
    table.chains = chains(task(table.threat), table.steerings, shards(dict.fromkeys(table.images, "d"), 2))

    def cells() -> list[list[int]]:
        """How many stages were run: a list for each steering, the shard of the smallest margins first."""
        search = run(table)
        numbers = [[k for k, chain in enumerate(table.chains) if chain.steering == one] for one in table.steerings]
        return [[len(search.done[number]) for number in own] for own in numbers]

    assert cells() == [[3, 3, 3, 3], [0, 0, 0, 0], [0, 0, 0, 0]]  # ties: β = 1 wins
    values[0, 1, :1] = 0  # now β = 0.8 is best
    assert cells()[1:] == [[2, 1, 1, 1], [3, 3, 3, 3]]


def test_margins_order_the_images() -> None:
    digests = {5: "a", 1: "b", 9: "c", 3: "d"}
    found = smallest_margin_first(digests, [np.array([0.5, -1.0]), np.array([np.inf, 0.5])])
    assert list(found.items()) == [(1, "b"), (5, "a"), (3, "d"), (9, "c")]


# --- for real ---


def mapping_of(**changes: Any) -> dict[str, Any]:
    attack = {"stages": ["apgd-ce", "apgd-t", "square"], "iterations": 6, "queries": 40, "targets": 2}
    return {
        "name": "tiny",
        "models": [{"kind": "demo", "name": "digits_plain"}, {"kind": "demo", "name": "digits_robust"}],
        "dataset": {"kind": "digits", "n": 60},
        "threat": {"kind": "Linf", "eps": 0.12, "attack": attack},
        "steering": {"beta": [0.3, 0.5, 0.9]},
        "batch_size": 20,
        "executor": {"kind": "inline"},
    } | changes


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The same question answered best-first in this process, by two workers, fully, and from the full ledger."""
    folder = tmp_path_factory.mktemp("search")

    def go(name: str, **changes: Any) -> Any:
        entries = pipeline.entries(parse_benchmark(mapping_of(**changes)), runs=folder / name)
        return ranking.board(entries), outcomes.table(entries)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", python_path(INSTALLED))
        patch.syspath_prepend(str(INSTALLED))
        yield {
            "one": go("one"),
            "two": go("two", executor={"kind": "local", "workers": 2}),
            "full": go("full", search={"kind": "full"}),
            "after": go("full"),
        }


def test_the_board_is_the_same_with_any_number_of_workers_and_whatever_the_ledger_held(
    boards: dict[str, Any],
) -> None:
    one, marks = boards["one"]
    for other in ("two", "after"):
        board, table = boards[other]
        assert untimed(csv_file.to_csv(board)) == untimed(csv_file.to_csv(one))
        assert table.equals(marks)


def test_the_demo_networks_have_the_winners_of_the_full_grid(boards: dict[str, Any]) -> None:
    (best, _), (full, _) = boards["one"], boards["full"]
    assert set(full["status"]) == {"selected", "ok"}
    assert "bounded" in set(best["status"])
    columns = ["model", "beta", "chosen", "clean", "robust", "delta_pp", "gained", "lost", "robust_low"]
    for winners in ("status == 'selected'", "rank == 1"):
        found, expected = (board.query(winners)[columns].reset_index(drop=True) for board in (best, full))
        pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    exact = {row.key: row.robust or 0.0 for row in rows_of(full) if row.is_finished}
    assert {row.key: row.robust for row in rows_of(best) if row.is_finished}.items() <= exact.items()
    bounded = [row for row in rows_of(best) if row.kind == "bounded"]
    assert bounded
    for row in bounded:
        assert row.robust is not None
        assert row.robust >= exact[row.key]


def test_an_unfinished_row_says_what_it_can_be_at_most(
    boards: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from harness.cli.terminal import print_board

    board, marks = boards["one"]
    row = board[board["status"] == "bounded"].iloc[0]
    numbers = ["robust_low", "delta_pp", "delta_low", "gained", "p_value", "p_holm", "robust_replay"]
    assert row[numbers].isna().all()
    print_board(rows_of(board), "x")
    assert f"≤ {100 * row['robust']:.1f}" in capsys.readouterr().out
    own = marks[(marks["model"] == row["model"]) & (marks["beta"] == f"{row['beta']:g}")]
    last = own[own["stage"] == "square"]["outcomes"].item()
    assert "?" in last
    csv_file.write(board, tmp_path / "x.csv")
    assert csv_file.to_csv(csv_file.read(tmp_path / "x.csv")) == csv_file.to_csv(board)
    bound = outcomes.scores(marks)[next(row.key for row in rows_of(board) if row.kind == "bounded")][1]
    assert bound.mean() == pytest.approx(row["robust"])
