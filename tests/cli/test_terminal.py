"""What is printed: a board's cells are those of the page, and findings end with what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from helpers import boards
from helpers.commands import Command

from harness.checks.findings import Finding
from harness.cli.terminal import print_board, print_findings
from harness.leaderboard.row import rows_of
from harness.report import table


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[pd.DataFrame], list[str]]:
    """Prints a board on a wide terminal, and returns its lines."""
    monkeypatch.setattr("harness.cli.terminal.WIDE", 400)

    def lines(board: pd.DataFrame) -> list[str]:
        print_board(rows_of(board), "x.csv")
        return capsys.readouterr().out.splitlines()

    return lines


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_the_terminal_has_the_cells_of_the_page(shown: Callable[[pd.DataFrame], list[str]]) -> None:
    rows = [row for row in rows_of(boards.hard()) if row.kind != "failed"]
    same = (
        table.MODEL, table.CLEAN, table.ROBUST, table.ROBUST_INTERVAL, table.DELTA, table.DELTA_INTERVAL,
        table.P_HOLM, table.OWN_ATTACK, table.STEERED, table.FLAGS,
    )  # fmt: skip
    assert set(same) <= set(table.PAGE)
    printed = [line for line in map(cells, shown(boards.hard())) if any(row.model in line for row in rows)]
    assert len(printed) == len(rows)
    for row, line in zip(rows, printed, strict=True):
        texts = [column.cell(row).text.replace("\N{NO-BREAK SPACE}", " ") for column in same]
        rest = iter(line)
        assert all(text in rest for text in texts if text), f"{texts} stand in {line}, in this order"


def test_each_kind_of_row_has_its_place(shown: Callable[[pd.DataFrame], list[str]]) -> None:
    lines = shown(boards.hard())
    rows = {tuple(cells(line)[:3]): cells(line)[3:] for line in lines if len(cells(line)) > 3}
    wide = "WideResNet-28-10 with a rather long name"
    assert rows["rank", "model", "β"] == [
        "clean", "robust", "95 %", "Δ pp", "95 %", "+/−", "p (Holm)", "AA", "steered", "flags",
    ]  # fmt: skip
    assert rows["selected", wide, "0.9/0.3 0.9 0.9 0.8 0.9"] == [
        "84.0", "52.0", "45.1 … 58.8", "+6.0", "+2.2 … +10.0", "13/1", "0.0018", "52.0", "17/17", "replay",
    ]  # fmt: skip
    assert rows["4", wide, "1"] == ["85.0", "50.0", "43.1 … 56.9", "baseline", "50.0", "17/17"]
    assert rows["6", wide, "0.8, c = 0.3"] == ["≤ 80.5", "≤ 46.5", "17/17", "square"]
    assert lines[-1] == "gone $x_1$: failed: weights: models/gone.pt: no such file, and offline none is downloaded"


def test_an_interval_that_disagrees_with_an_adjusted_p_is_explained(shown: Callable[[pd.DataFrame], list[str]]) -> None:
    explained = "An interval of Δ is for its row alone. p (Holm) allows for the number of rows"
    for p_holm, times in ((0.06, 1), (0.04, 0)):
        row = boards.selected("m", "0.9", p_value=0.03, p_holm=p_holm, delta_low=0.1)
        lines = shown(boards.table(row, boards.untouched("m"), boards.point("m", 0.9, 165, 104)))
        assert sum(line.startswith(explained) for line in lines) == times


def test_errors_have_no_points(shown: Callable[[pd.DataFrame], list[str]]) -> None:
    headings = next(cells(line) for line in shown(boards.transfer("dsprites", 50, 2.0, metric="mse")) if "β" in line)
    assert "Δ" in headings
    assert "Δ pp" not in headings
    assert "metric" in headings
    assert "robust" not in headings


def test_where_every_model_failed_there_is_no_table(shown: Callable[[pd.DataFrame], list[str]]) -> None:
    assert shown(boards.table(boards.failed("m", "no [b]file[/b]"))) == ["m: failed: no [b]file[/b]"]


def test_compare_shows_each_models_choice_beside_its_baseline(command: Command, here: Path) -> None:
    boards.write(boards.board("ResNet-18", "paper"), here / "x.csv")
    ended = command("compare", "x.csv")
    assert ended.code == 0
    lines = [cells(line) for line in ended.out.splitlines()]
    assert [
        "model",
        "β of each fold",
        "baseline",
        "selected",
        "Δ pp",
        "95 %",
        "gained",
        "lost",
        "p",
        "p (Holm)",
        "flags",
    ] in lines
    assert [
        "ResNet-18", "0.9 (in-sample)", "50.0", "52.0", "+2.0", "−1.2 … +5.2", "4", "0", "0.5", "0.5",
        "not_comparable partial",
    ] in lines  # fmt: skip


def test_compare_shows_two_boards_row_by_row(command: Command, here: Path) -> None:
    boards.write(boards.table(boards.untouched("m"), boards.point("m", 0.9, 165, 110)), here / "x.csv")
    boards.write(boards.table(boards.untouched("m", seed=4)), here / "y.csv")
    ended = command("compare", "x.csv", "y.csv", "--csv", "z.csv")
    assert ended.code == 0
    lines = [cells(line) for line in ended.out.splitlines()]
    assert ["m", "untouched", "1", "0.5", "+0.0", "+0.0", "−9.7 … +9.7", "1", "unpaired"] in lines
    assert ["differs: seed: 3 against 4"] in lines
    assert ["only in the first: m β=0.9"] in lines
    assert pd.read_csv(here / "z.csv")["test"].tolist() == ["unpaired"]


@pytest.mark.parametrize(
    ("findings", "ready", "words"),
    [
        ([Finding("data", "dataset", "ok", "100 images")], True, ("ready to run", "0 problems, 0 warnings")),
        (
            [
                Finding("disk", "--runs", "warning", "little space", "free some"),
                Finding("data", "dataset", "problem", "no file x.npz", "make it"),
            ],
            False,
            ("Not ready: fix these first", "1 problem, 1 warning", "→ make it"),
        ),
    ],
)
def test_findings_end_with_a_verdict(
    findings: list[Finding], ready: bool, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert print_findings(findings) == ready
    out = capsys.readouterr().out
    assert all(word in out for word in words)
    assert all(finding.text in out for finding in findings)
