"""The report: its sentences are true, its tables are the board, nothing in it is markup that was not meant as such."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import boards
from helpers.commands import Command

from harness.leaderboard import outcomes
from harness.leaderboard.flags import MEANING
from harness.report import verdict
from harness.report.formats import AT_LEAST, AT_MOST, TO
from harness.report.page import commands as repeating
from harness.report.page import report, stage_table, surviving
from harness.report.verdict import ModelVerdict

OUTCOMES = pd.DataFrame(
    [
        ("m", "untouched", "1", "0.5", "clean", "1111"), ("m", "untouched", "1", "0.5", "apgd-ce", "1100"),
        ("m", "untouched", "1", "0.5", "replay", "1000"),
        ("m", "ct", "0.9", "0.5", "clean", "1110"), ("m", "ct", "0.9", "0.5", "apgd-ce", "10??"),
    ],
    columns=["model", "method", "beta", "c", "stage", "outcomes"],
)  # fmt: skip


def verdict_of(*rows: dict[str, Any]) -> ModelVerdict:
    return verdict.model_verdict(boards.rows(*rows))


def page_of(tmp_path: Path, table: pd.DataFrame, marks: pd.DataFrame | None = None) -> boards.Element:
    return boards.parsed(report(boards.stored(boards.write(table, tmp_path / "x.csv", marks))))


# --- the sentences ---


def test_the_sentence_has_the_numbers_of_the_headline() -> None:
    row = boards.selected(
        "m", "0.8;0.8;0.8;0.8;0.8", beta=0.8, c=0.5, delta_pp=1.1, delta_low=-0.2, delta_high=2.4, gained=14, lost=3,
        p_value=0.1734,
    )  # fmt: skip
    assert verdict_of(row, boards.untouched("m")) == ModelVerdict(
        "m", "neither", 1.1,
        f"β = 0.8, cross-validated: +1.1 points, 95 % −0.2{TO}+2.4, 14 gained, 3 lost, p = 0.17",
        "On 200 images chance alone may explain the difference; more images would tell.",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "verdict", "word"),
    [
        ({"p_value": 0.049, "delta_pp": 2.0}, "gain", "Evidence of a gain"),
        ({"p_value": 0.049, "delta_pp": -2.0}, "loss", "Evidence of a loss"),
        ({"p_value": 0.05, "delta_pp": 2.0}, "neither", "No evidence of a gain or a loss"),
        ({"p_value": 0.03, "p_holm": 0.06, "delta_pp": 2.0}, "neither", "No evidence of a gain or a loss"),
        ({"p_value": 0.001, "delta_pp": 9.0, "status": "in-sample"}, "untrusted", "Not to be trusted"),
        ({"p_value": 0.001, "status": "untrusted", "flags": "replay;partial"}, "untrusted", "Not to be trusted"),
    ],
)
def test_only_a_p_below_5_percent_of_a_fair_choice_is_evidence(
    changes: dict[str, Any], verdict: str, word: str
) -> None:
    model_verdict = verdict_of(boards.selected("m", "0.9", **changes), boards.untouched("m"))
    assert (model_verdict.verdict, model_verdict.word) == (verdict, word)
    assert ("no evidence" in model_verdict.plain) == (verdict == "untrusted")


def test_a_verdict_that_is_not_to_be_trusted_names_the_signs_of_masking() -> None:
    row = boards.selected("m", "0.9", p_value=0.001, status="untrusted", flags="partial;replay;unit_test")
    found = verdict_of(row, boards.untouched("m"))
    assert found.plain.startswith("Signs of gradient masking (replay, unit_test) at the untouched network or at a ")


def test_of_several_models_the_adjusted_p_decides_and_is_told_beside_the_own_one() -> None:
    row = boards.selected("m", "0.9", p_value=0.03, p_holm=0.06, delta_low=0.2)
    found = verdict_of(row, boards.untouched("m"))
    assert found.sentence.endswith("p = 0.03 (0.06 over the models, Holm)")
    assert found.plain.startswith("On 200 images with as many models tested chance alone may explain the difference")


def test_the_folds_that_chose_otherwise_are_told_most_frequent_first() -> None:
    row = boards.selected("m", "0.8/0.3;0.9;0.9;1;0.9", delta_pp=-0.04, p_value=0.00002)
    sentence = verdict_of(row, boards.untouched("m")).sentence
    assert sentence.startswith(
        "β = 0.9 (3 of 5 folds), 0.8, c = 0.3 (1 of 5 folds), 1 (1 of 5 folds), cross-validated: +0.0 points"
    )
    assert sentence.endswith("p < 0.001")


@pytest.mark.parametrize(
    ("selection", "words"),
    [("holdout:0.25", "chosen on 25 % of the images and reported on the others"), ("none", "chosen in-sample")],
)
def test_how_beta_was_chosen_is_told(selection: str, words: str) -> None:
    assert (
        f", {words}: " in verdict_of(boards.selected("m", "0.9", selection=selection), boards.untouched("m")).sentence
    )


def test_where_the_untouched_network_won_nothing_is_said_to_be_gained() -> None:
    row = boards.selected("m", "0.5;0.5", delta_pp=0.0, p_value=1.0)
    assert verdict_of(row, boards.untouched("m", 0.5)).plain == (
        "On these 200 images no steering did better than the untouched network (β = 0.5)."
    )


def test_a_flag_on_the_headline_is_a_doubt_and_a_failure_has_its_reason() -> None:
    doubtful = verdict_of(boards.selected("m", "0.9", p_value=0.01, flags="replay;square"), boards.untouched("m"))
    assert "flagged (replay, square): read what that means before believing its numbers" in doubtful.plain
    gone = verdict_of(boards.failed("m", "no such file"))
    assert (gone.verdict, gone.gain, gone.points, gone.sentence) == ("failed", None, "", "No score: no such file")


# --- the page ---


def test_the_page_has_each_row_with_its_numbers(tmp_path: Path) -> None:
    page = page_of(tmp_path, boards.hard())
    (table,) = page.all("table", id="rows")
    heads = [one.text for one in table.all("th", scope="col")]
    rows = [dict(zip(heads, (cell.text for cell in row.children), strict=True)) for row in table.all("tr")[1:]]
    assert len(rows) == len(boards.hard())
    assert rows[0] | {"model": ""} == {
        "rank": "", "model": "", "β": "0.9/0.3 0.9 0.9 0.8 0.9", "row": "selected", "clean": "84.0", "robust": "52.0",
        "95 %": "45.1 … 58.8", "Δ": "+6.0", "95 % of Δ": "+2.2 … +10.0", "gained": "13", "lost": "1",
        "p": "0.0018", "p (Holm)": "0.0018", "AA": "52.0", "steered": "17/17", "flags": "replay", "seconds": "",
    }  # fmt: skip
    assert (rows[3]["β"], rows[4]["row"], rows[4]["Δ"]) == ("0.9, c = 0.3", "baseline", "")
    assert (rows[5]["clean"], rows[5]["robust"], rows[5]["95 %"]) == ("≤ 80.0", "≤ 48.0", "")
    assert (rows[-1]["model"], rows[-1]["row"], rows[-1]["β"], rows[-1]["robust"]) == ("gone $x_1$", "failed", "", "")
    assert "mCE" not in heads
    assert "mCE" in [one.text for one in page_of(tmp_path, corrupted()).all("th", scope="col")]


def corrupted() -> pd.DataFrame:
    rows = [boards.untouched("m", mce=70.25), boards.point("m", 0.9, 165, 110, mce=68.0)]
    columns = {"threat": "corruptions", "eps": "", "attack": "", "robust_aa": None}
    return boards.table(*(row | columns for row in rows))


def test_what_was_asked_stands_below_the_title(tmp_path: Path) -> None:
    question = "cifar10[:200] · Linf, ε = 0.0313725 · standard · n = 200"
    assert [one.text for one in page_of(tmp_path, boards.hard()).all("p", class_="question")] == [question]
    (other,) = page_of(tmp_path, corrupted()).all("p", class_="question")
    assert other.text == "cifar10[:200] · corruptions · n = 200"


def test_the_flags_that_were_met_are_explained_and_no_others(tmp_path: Path) -> None:
    (flags,) = page_of(tmp_path, boards.hard()).all("dl", class_="meaning")
    assert [one.text for one in flags.all("dt")] == ["replay", "square", "zero_gradient"]
    assert [one.text for one in flags.all("dd")] == [MEANING[name] for name in ("replay", "square", "zero_gradient")]
    assert page_of(tmp_path, corrupted()).all("dl", class_="meaning") == []


def test_the_stages_are_those_of_the_outcome_file(tmp_path: Path) -> None:
    assert stage_table(OUTCOMES) == (
        ("model", "β", "clean", "apgd-ce", "replay"),
        ("m", "1", "100.0", "50.0", "25.0"),
        ("m", "0.9", "75.0", f"{AT_MOST}75.0", ""),
    )
    board = boards.table(boards.untouched("m"), boards.point("m", 0.9, 165, 110))
    page = page_of(tmp_path, board, OUTCOMES)
    assert "≤ 75.0" in page.all("section", aria_labelledby="stages")[0].text
    (tmp_path / "x.outcomes.csv").unlink()
    assert page_of(tmp_path, board).all("section", aria_labelledby="stages") == []


@pytest.mark.parametrize(
    ("marks", "shown"),
    [("0110", "50.0"), ("01?0", f"{AT_MOST}50.0"), ("0.5 1 0.75", "75.0"), ("0.5 ?", f"{AT_MOST}75.0"),
     ("-0.5 -1.5", "1"), ("-1 ?", f"{AT_LEAST}0.5")],
)  # fmt: skip
def test_the_stages_of_graded_answers_are_read_as_their_metric(marks: str, shown: str) -> None:
    assert surviving(marks, 0.0 if "-" in marks else 1.0) == shown


def test_an_error_of_which_nothing_is_known_is_at_least_nothing() -> None:
    texts = {"clean": "-0.5 -1.5", "shade-1": "??"}
    assert outcomes.most_of(texts) == 0
    assert surviving(texts["shade-1"], 0.0) == f"{AT_LEAST}0"


def test_where_the_numbers_come_from_is_told(tmp_path: Path) -> None:
    (section,) = page_of(tmp_path, boards.hard()).all("section", aria_labelledby="provenance")
    terms = dict(zip((dt.text for dt in section.all("dt")), (dd.text for dd in section.all("dd")), strict=True))
    assert terms.items() >= {
        "how many": "200", "seed": "3", "SHA-256 of the images": "0b" * 32, "torch": "2.8.0",
        "weights of loser": "0a" * 32, "selection of β": "cross_validation:5, holdout:0.25", "ε": "0.0313725",
    }.items()  # fmt: skip


@pytest.mark.parametrize(
    ("name", "there", "commands"),
    [
        ("x", True, ("run benchmarks/x.yaml", "check benchmarks/x.yaml --against leaderboards/x.csv")),
        ("x", False, ("run BENCHMARK.yaml", "check BENCHMARK.yaml --against leaderboards/x.csv")),
        ("a b;c", True, ("run 'benchmarks/a b;c.yaml'",
                         "check 'benchmarks/a b;c.yaml' --against 'leaderboards/a b;c.csv'")),
    ],
)  # fmt: skip
def test_how_to_repeat_it_can_be_typed(name: str, there: bool, commands: tuple[str, ...]) -> None:
    assert repeating(name, there) == tuple(f"ct-harness {command}" for command in commands)


def test_no_text_of_the_board_becomes_markup(tmp_path: Path) -> None:
    nasty = '"><img src=x onerror=alert(1)>'
    rows = [
        boards.selected(boards.SCRIPT, "0.9", flags=nasty), boards.untouched(boards.SCRIPT, dataset=nasty),
        boards.point(boards.SCRIPT, 0.9, 165, 110), boards.failed(nasty, boards.SCRIPT),
    ]  # fmt: skip
    marks = pd.DataFrame([(boards.SCRIPT, "untouched", "1", "0.5", nasty, "10")], columns=list(OUTCOMES))
    text = report(boards.stored(boards.write(boards.table(*rows), tmp_path / "<script>.csv", marks)))
    page = boards.parsed(text)
    assert text.count("<script") == 1
    assert page.all("img") == []
    assert [one.text for one in page.all("h3")] == [boards.SCRIPT, nasty]
    assert [one.text for one in page.all("option")][1:] == [boards.SCRIPT, nasty]
    assert {row.attributes["data-model"] for row in page.all("tr") if "data-model" in row.attributes} == {
        boards.SCRIPT, nasty,
    }  # fmt: skip


def test_the_page_is_well_made(tmp_path: Path) -> None:
    board = boards.stored(boards.write(boards.hard(), tmp_path / "x.csv", OUTCOMES))
    text = report(board)
    page = boards.parsed(text)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids)), "every id is there once"
    assert set(re.findall(r'(?:url\(#|href="#)([^")]*)', text)) <= set(ids), "every reference has what it refers to"
    assert {name for one in page.all("section") for name in [one.attributes["aria-labelledby"]]} <= set(ids)
    assert [len(page.all(tag)) for tag in ("header", "main", "footer", "h1")] == [1, 1, 1, 1]
    assert all(table.all("caption") and table.all("th", scope="col") for table in page.all("table"))
    images = page.all("div", role="img")
    assert [len(image.all("svg")) for image in images] == [1, 1, 1]
    assert images[2].attributes["aria-label"] == (
        "Robust accuracy of loser against β: 50.0 % untouched (β = 1); the best is 50.0 % at β = 1; the worst is "
        "46.0 % at β = 0.5. Clean accuracy untouched: 85.0 %. The table below has every number."
    )
    assert (  # with several c, and with bounds, of which nothing is known but that they are no better
        "the best is 56.0 % at β = 0.9, c = 0.5; 2 steerings were pruned, each at 48.0 % or less."
        in str(images[0].attributes["aria-label"])
    )
    assert not re.search(r'(?:src|href)="(?!#|data:)', text), "nothing is loaded"
    assert report(board) == text


# --- the command ---


def test_report_writes_a_page_beside_the_board_or_where_it_is_told(command: Command, here: Path) -> None:
    boards.write(boards.hard(), here / "leaderboards/x.csv")
    ended = command("report", "leaderboards/x.csv")
    assert (ended.code, ended.out) == (0, "written: leaderboards/x.html\n")
    assert command("report", "leaderboards/x.csv", "-o", "else/where.html").code == 0
    page = (here / "leaderboards/x.html").read_text(encoding="utf-8")
    assert (here / "else/where.html").read_text(encoding="utf-8") == page
    assert "ct-harness run BENCHMARK.yaml" in page
    (here / "benchmarks").mkdir()
    (here / "benchmarks/x.yaml").write_text("")
    assert command("report", "leaderboards/x.csv").code == 0
    page = (here / "leaderboards/x.html").read_text(encoding="utf-8")
    assert "ct-harness run benchmarks/x.yaml" in page
    assert "--against leaderboards/x.csv" in page


def test_what_is_no_board_is_told(command: Command, here: Path) -> None:
    (here / "x.csv").write_text("a,b\n1,2\n")
    ended = command("report", "x.csv")
    assert ended.code == 2
    assert ended.err.startswith("error: x.csv: not a leaderboard")
    assert not (here / "x.html").exists()
