"""Several boards summed up: the numbers are those worked out by hand, and nothing counts that should not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import scipy
from conftest import Ended
from helpers import boards
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness.errors import LeaderboardError
from harness.leaderboard import across_datasets
from harness.leaderboard.across_datasets import MethodSummary, Setting, SettingSummary, sum_up
from harness.report import site

CLEAN = {
    "metric": "accuracy", "threat": "clean", "eps": "", "attack": "", "trainable_parameters": 965,
    "fitted_from": "ab" * 32,
}  # fmt: skip
TO = "\N{NO-BREAK SPACE}…\N{NO-BREAK SPACE}"


def transfer(
    dataset: str, base: float, ct: float | None, others: dict[str, float] | None = None, model: str = "m", **asked: Any
) -> pd.DataFrame:
    """A board of one model: the probe's accuracy in percent, and what CT and other methods gain in points.

    Among its rows is a steering that gains 40 points in sample, which nothing may count.
    """

    def row(points: float, **changes: Any) -> dict[str, Any]:
        accuracy = (base + points) / 100
        return {"clean": accuracy, "robust": accuracy, "delta_pp": points, "dataset": dataset} | CLEAN | changes | asked

    rows = [] if ct is None else [boards.selected(model, "0.9") | row(ct, method="ct", selection="training")]
    rows.append(boards.point(model, 0.5, 0, 0) | row(40.0, method="ct"))
    rows.append(boards.untouched(model) | row(0.0, method="linear_probe"))
    for method, points in (others or {}).items():
        trained = 99_999 if method == "fine_tuning" else 1000 + 100 * int(method.partition("-")[2] or 0)
        rows.append(boards.point(model, 1.0, 0, 0) | row(points, method=method, trainable_parameters=trained))
    return boards.table(*rows)


def only(found: across_datasets.AcrossDatasets) -> SettingSummary:
    (group,) = found.groups
    return group


def by_method(found: across_datasets.AcrossDatasets) -> dict[str, MethodSummary]:
    return {row.method: row for row in only(found).rows}


def three() -> dict[str, pd.DataFrame]:
    """Of three sets: +2 at 50 %, −1 at 80 %, +5 at 10 %; LoRA loses a point on one of them, and ties on another."""
    return {
        "a": transfer("beans", 50, 2.0, {"lora-1": -1.0}),
        "b": transfer("dtd[:200]", 80, -1.0, {"lora-1": 0.0}),
        "c": transfer("mnist", 10, 5.0, trainable_parameters=7690),
    }


# --- the numbers ---


def test_the_means_are_those_worked_out_by_hand() -> None:
    """The differences 2, −1 and 5 have the mean 2 and the standard deviation 3; t(0.975; 2) is 4.30265."""
    row = by_method(sum_up(three()))["ct"]
    half = 4.302652729911275 * 3 / math.sqrt(3)
    assert (row.sets, row.of, row.won, row.tied, row.lost) == (3, 3, 2, 0, 1)
    assert (row.baseline, row.accuracy) == pytest.approx((140 / 3, 146 / 3))
    assert (row.delta, row.low, row.high) == pytest.approx((2.0, 2 - half, 2 + half))
    assert row.relative == pytest.approx((100 * 2 / 50 - 100 * 1 / 80 + 100 * 5 / 10) / 3)
    assert row.relative == pytest.approx(17.5833, abs=1e-4)  # the paper's way makes eight times as much of it
    assert row.p_value == 1.0  # two of three: 2 · (3 + 1) / 8
    assert row.trained == (965, 7690)


def test_a_method_that_a_board_lacks_tells_over_how_many_sets_it_is() -> None:
    row = by_method(sum_up(three()))["lora-1"]
    assert (row.sets, row.of, row.won, row.tied, row.lost) == (2, 3, 0, 1, 1)
    assert (row.baseline, row.accuracy, row.delta) == pytest.approx((65.0, 64.5, -0.5))
    assert row.p_value == 1.0  # of one that is no tie
    assert across_datasets.cells(row)[2] == "2 of 3"


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
    found = sum_up({f"b{n}": transfer(f"set{n}", 50, delta) for n, delta in enumerate(deltas)})
    assert by_method(found)["ct"].p_value == pytest.approx(p_value)


def test_a_single_set_has_no_interval_over_sets() -> None:
    row = by_method(sum_up({"a": transfer("beans", 50, 2.0)}))["ct"]
    assert (row.delta, row.low, row.high) == (2.0, None, None)
    assert across_datasets.cells(row)[6] == "–"


def test_a_baseline_of_zero_has_no_relative_gain() -> None:
    row = by_method(sum_up({"a": transfer("beans", 0, 7.000000000000002), "b": transfer("dtd", 50, 1.0)}))["ct"]
    assert row.relative is None
    assert (row.delta, row.baseline) == pytest.approx((4.0, 25.0))
    assert across_datasets.cells(row)[9] == "–"


def test_what_people_read() -> None:
    ct, lora = (across_datasets.cells(row) for row in only(sum_up(three())).rows)
    assert ct == ("m", "ct", "3", "46.67", "48.67", "+2.00", f"−5.45{TO}+9.45", "2/0/1", "1", "+17.58", f"965{TO}7,690")
    assert lora[5:] == ("−0.50", f"−6.85{TO}+5.85", "0/1/1", "1", "−1.00", "1,100")
    assert only(sum_up(three())).columns[3] == "probe"


def test_the_sets_behind_the_means_stand_alone() -> None:
    heads, lines = across_datasets.behind(only(sum_up(three())))
    assert heads == ("probe", "selected", "Δ", "95 % of Δ", "p", "Δ lora-1")
    assert [(line.dataset, line.board) for line in lines] == [("beans", "a"), ("dtd[:200]", "b"), ("mnist", "c")]
    assert lines[0].cells == ("50.0", "52.0", "+2.0", f"−1.0{TO}+4.0", "0.5", "−1.0")
    assert lines[2].cells[-1] == "–"


# --- laws ---

tenths = st.integers(-100, 100).map(lambda n: n / 10)
few = settings(deadline=None, max_examples=40)
several_gains = st.lists(st.tuples(st.integers(20, 70), tenths), min_size=2, max_size=6)


def made(gains: Sequence[tuple[float, float]]) -> dict[str, pd.DataFrame]:
    return {f"b{n}": transfer(f"set{n}", base, delta) for n, (base, delta) in enumerate(gains)}


@few
@given(several_gains, st.randoms())
def test_the_order_of_the_boards_changes_nothing(gains: list[tuple[int, float]], random: Any) -> None:
    tables = made(gains)
    shuffled = list(tables.items())
    random.shuffle(shuffled)
    assert sum_up(dict(shuffled)) == sum_up(tables)


@few
@given(st.lists(st.integers(20, 70), min_size=2, max_size=6), tenths)
def test_where_every_set_gains_the_same_the_interval_is_that_gain(bases: list[int], delta: float) -> None:
    row = by_method(sum_up(made([(base, delta) for base in bases])))["ct"]
    assert (row.low, row.delta, row.high) == pytest.approx((delta, delta, delta), abs=1e-9)


@few
@given(several_gains)
def test_the_interval_and_the_test_are_scipys(gains: list[tuple[int, float]]) -> None:
    deltas = [delta for _, delta in gains]
    assume(len(set(deltas)) > 1)
    row = by_method(sum_up(made(gains)))["ct"]
    interval = scipy.stats.ttest_1samp(deltas, 0.0).confidence_interval(0.95)
    assert (row.low, row.high) == pytest.approx(tuple(interval), abs=1e-6)
    won, lost = sum(delta > 0 for delta in deltas), sum(delta < 0 for delta in deltas)
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1)) / 2 ** (won + lost)
    assert row.p_value == pytest.approx(min(1.0, 2 * tail))


@few
@given(several_gains)
def test_of_the_opposite_gains_everything_is_the_opposite(gains: list[tuple[int, float]]) -> None:
    row, other = (by_method(sum_up(made(those)))["ct"] for those in (gains, [(base, -delta) for base, delta in gains]))
    assert (row.low, row.high, row.relative) == pytest.approx((-other.high, -other.low, -other.relative), abs=1e-9)  # type: ignore[operator]
    assert (row.won, row.tied, row.lost, row.p_value) == (other.lost, other.tied, other.won, other.p_value)


# --- what belongs together, and what does not ---

ATTACKED = {"threat": "Linf", "eps": "0.1", "attack": "standard"}


def test_questions_stay_apart_and_the_clean_one_comes_first() -> None:
    tables = three() | {
        "twin": transfer("beans", 5, 1.0, **ATTACKED),
        "weaker": transfer("beans", 5, 1.0, **ATTACKED | {"eps": "0.05"}),
        "cheaper": transfer("beans", 5, 1.0, **ATTACKED | {"attack": "standard+replay_first"}),
        "paper": transfer("beans", 50, None, {"lora-1": 1.0}, protocol="paper"),
    }
    found = sum_up(tables).groups
    assert [(group.question.title, group.boards) for group in found] == [
        ("clean · protocol: paper · against the linear probe", ["paper"]),
        ("clean · against the linear probe", ["a", "b", "c"]),
        ("Linf, ε = 0.05 · standard · against the linear probe", ["weaker"]),
        ("Linf, ε = 0.1 · standard · against the linear probe", ["twin"]),
        ("Linf, ε = 0.1 · standard+replay_first · against the linear probe", ["cheaper"]),
    ]


def test_an_untouched_network_is_no_probe() -> None:
    plain = boards.table(*(row | {"dataset": "svhn"} | CLEAN for row in (
        boards.selected("m", "0.9", method="ct"), boards.untouched("m", method="untouched"),
    )))  # fmt: skip
    apart = sum_up(three() | {"plain": plain}).groups
    assert [group.columns[3] for group in apart] == ["probe", "untouched"]


def test_a_model_has_its_own_row_and_its_own_sets() -> None:
    tables = three() | {
        "d": transfer("beans", 40, 3.0, {"fine_tuning": 1.0, "lora-16": 2.0, "lora-4": 2.0}, model="other")
    }
    rows = only(sum_up(tables)).rows
    assert [(row.model, row.method, row.sets, row.of) for row in rows] == [
        ("m", "ct", 3, 3), ("m", "lora-1", 2, 3),
        ("other", "ct", 1, 1), ("other", "lora-4", 1, 1), ("other", "lora-16", 1, 1), ("other", "fine_tuning", 1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("again", ["beans", "beans[:100]"])
def test_a_data_set_twice_is_refused_since_it_would_count_twice(again: str) -> None:
    with pytest.raises(LeaderboardError) as raised:
        sum_up(three() | {"d": transfer(again, 50, 2.0)})
    assert str(raised.value) == (
        "a and d: expected every board to be of another data set, found ct of m on beans and on "
        f"{again} (clean · against the linear probe); leave one of them out"
    )


@pytest.mark.parametrize("dataset", ["digits 5,6,7,8,9", "beans train"])
def test_other_classes_or_another_split_are_another_data_set(dataset: str) -> None:
    assert by_method(sum_up({"a": transfer("digits 0,1", 50, 1.0), "b": transfer(dataset, 50, 1.0)}))["ct"].sets == 2


@pytest.mark.parametrize(("other", "sets"), [("0c" * 32, 2), ("0b" * 32, None)])
def test_anyones_folders_have_one_name_and_are_told_apart_by_their_images(other: str, sets: int | None) -> None:
    tables = {"a": transfer("image_folder", 50, 1.0), "b": transfer("image_folder", 50, 1.0, data_sha256=other)}
    if sets is None:
        with pytest.raises(LeaderboardError, match=r"^a and b: expected every board to be of another data set"):
            sum_up(tables)
    else:
        assert by_method(sum_up(tables))["ct"].sets == sets


def test_what_is_not_averaged_is_named_with_its_reason() -> None:
    gone = boards.failed("gone", "no such file") | {"dataset": "cub"} | CLEAN
    pruned = boards.bounded("m", 1.0, 0, 0, dataset="cub", **CLEAN, method="lora-1")
    tables = three() | {
        "mse": transfer("dsprites", 50, 2.0, metric="mse"),
        "sample": transfer("svhn", 50, 30.0, status="in-sample").iloc[:1],
        "failed": boards.table(gone, pruned),
        "nothing": transfer("food101", 50, None),
    }
    found = sum_up(tables)
    assert found.left_out == (
        "failed: gone was not scored (failed: no such file)",
        "failed: lora-1 of m was given up, so its accuracy is only a bound",
        "mse: dsprites is measured in mse, which has no mean with accuracies",
        "nothing: has no headline and no method beside its baseline",
        "sample: β of m was chosen in sample, on the images that it is reported on",
    )
    assert found.groups == sum_up(three()).groups


def test_attributes_have_a_mean_accuracy_that_counts_and_is_named() -> None:
    found = sum_up(three() | {"d": transfer("celeba", 90, 2.0, metric="mean_accuracy")})
    assert found.left_out == ()
    assert by_method(found)["ct"].sets == 4
    assert "celeba (mean accuracy)" in [line.dataset for line in across_datasets.behind(only(found))[1]]


def test_under_a_threat_the_robust_accuracy_counts() -> None:
    row = by_method(sum_up({"a": transfer("beans", 50, 2.0, **ATTACKED, clean=0.9)}))["ct"]
    assert (row.baseline, row.accuracy) == pytest.approx((50.0, 52.0))


# --- the page ---


def shown(tables: dict[str, pd.DataFrame], **options: Any) -> boards.Element:
    return boards.parsed(across_datasets.page(sum_up(tables), **options))


def texts(table: boards.Element) -> list[list[str]]:
    return [[cell.text for cell in row.children] for row in table.all("tr")]


def test_the_page_has_the_means_and_the_sets() -> None:
    page = shown(three(), links={"all boards": "index.html"}, pages={"a": "boards/a.html"})
    found = only(sum_up(three()))
    means = [[text.replace("\N{NO-BREAK SPACE}", " ") for text in across_datasets.cells(row)] for row in found.rows]
    assert texts(page.all("table", id="means-1")[0]) == [list(found.columns), *means]
    (each,) = page.all("table", id="each-1")
    assert texts(each)[:2] == [
        ["model", "data set", "board", "probe", "selected", "Δ", "95 % of Δ", "p", "Δ lora-1"],
        ["m", "beans", "a", "50.0", "52.0", "+2.0", "−1.0 … +4.0", "0.5", "−1.0"],
    ]
    assert [link.attributes["href"] for link in page.all("a")] == ["#content", "index.html", "boards/a.html"]
    assert page.all("section", aria_labelledby="left-out") == []
    assert page.all("section", aria_labelledby="flags") == []


def test_the_page_is_well_made_with_two_questions_flags_and_things_left_out() -> None:
    tables = three() | {"twin": transfer("beans", 5, 1.0, **ATTACKED, flags="replay"),
                        "mse": transfer("dsprites", 50, 2.0, metric="mse")}  # fmt: skip
    text = across_datasets.page(sum_up(tables))
    page = boards.parsed(text)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids)), "every id is there once"
    assert {name for one in page.all("section") for name in [one.attributes["aria-labelledby"]]} <= set(ids)
    assert [len(page.all(tag)) for tag in ("header", "main", "footer", "h1", "table")] == [1, 1, 1, 1, 4]
    assert all(table.all("caption") and table.all("th", scope="col") for table in page.all("table"))
    assert all(len({len(row) for row in texts(table)}) == 1 for table in page.all("table"))
    assert [one.text for one in page.all("dt")] == ["replay"]
    assert page.all("li")[0].text == sum_up(tables).left_out[0]
    assert not re.search(r'(?:src|href)="(?!#|data:)', text), "nothing is loaded"
    assert across_datasets.page(sum_up(tables)) == text


def test_no_text_of_a_board_becomes_markup() -> None:
    nasty = boards.SCRIPT
    tables = {nasty: transfer(nasty, 50, 2.0, {nasty: 1.0}, model=nasty, flags=nasty, attack=nasty),
              "gone": boards.table(boards.failed(nasty, nasty) | CLEAN)}  # fmt: skip
    text = across_datasets.page(sum_up(tables), pages={nasty: nasty})
    page = boards.parsed(text)
    assert text.count("<script") == 1
    assert [row[0] for row in texts(page.all("table", id="means-1")[0])][1:] == [nasty, nasty]


def test_a_page_of_nothing_says_so() -> None:
    page = shown({"mse": transfer("dsprites", 50, 2.0, metric="mse")})
    assert "None of the boards could be summed up." in page.text
    assert page.all("table") == []


# --- the commands ---


@pytest.fixture
def written(here: Path) -> list[str]:
    """Three boards in the folder, as the command line names them."""
    for name, table in three().items():
        boards.write(table, here / f"leaderboards/{name}.csv")
    return [f"leaderboards/{name}.csv" for name in three()]


def test_show_sums_several_boards_up(command: Callable[..., Ended], written: list[str]) -> None:
    ended = command("show", *written)
    assert ended.code == 0
    rows = [re.split(r"\s{2,}", line.strip()) for line in ended.out.splitlines()]
    found = only(sum_up(three()))
    assert list(found.columns) in rows
    for row in found.rows:
        assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in across_datasets.cells(row)] in [
            [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in cells] for cells in rows
        ]
    assert ended.out.startswith("clean · against the linear probe")
    assert "left out" not in ended.out


def test_outcome_files_that_a_shell_pattern_finds_are_passed_over(
    command: Callable[..., Ended], here: Path, written: list[str]
) -> None:
    beside = Path(written[0]).with_suffix(".outcomes.csv")
    (here / beside).write_text("model,method,beta,c,stage,outcomes\n")
    assert command("show", *written, str(beside)).out == command("show", *written).out
    assert command("report", str(beside), *written).code == 0
    assert command("show", str(beside)).code == 2


def test_one_board_is_shown_as_ever(command: Callable[..., Ended], written: list[str]) -> None:
    ended = command("show", written[0])
    assert ended.code == 0
    assert written[0] in ended.out
    assert "over sets" not in ended.out


def test_show_names_what_is_left_out_and_without_anything_else_could_not_be_done(
    command: Callable[..., Ended], here: Path, written: list[str]
) -> None:
    for name in ("x", "y"):
        boards.write(transfer(name, 50, 2.0, metric="mse"), here / f"{name}.csv")
    ended = command("show", "x.csv", *written)
    assert ended.code == 0
    assert "left out: x: x is measured in mse, which has no mean with accuracies\n" in ended.out
    assert command("show", "x.csv", "y.csv").code == 2


def test_show_refuses_a_data_set_twice(command: Callable[..., Ended], here: Path, written: list[str]) -> None:
    boards.write(three()["a"], here / "else/a.csv")
    ended = command("show", *written, "else/a.csv")
    assert ended.code == 2
    assert ended.err.startswith("error: else/a.csv and leaderboards/a.csv: expected every board to be of another")
    ended = command("show", written[0], written[0])
    assert (ended.code, ended.err) == (2, f"error: {written[0]}: expected each board once, found it 2 times\n")


def test_report_writes_one_page_of_several_boards(
    command: Callable[..., Ended], here: Path, written: list[str]
) -> None:
    ended = command("report", *written)
    assert (ended.code, ended.out) == (0, "written: leaderboards/several.html\n")
    assert command("report", *written, "-o", "else/transfer.html").code == 0
    page = (here / "leaderboards/several.html").read_text(encoding="utf-8")
    assert (here / "else/transfer.html").read_text(encoding="utf-8") == page
    assert page == across_datasets.page(sum_up(three()))
    assert command("report", written[0]).out == "written: leaderboards/a.html\n"


# --- the site ---


def built(tables: dict[str, pd.DataFrame], folder: Path) -> tuple[boards.Element, Path]:
    """The index of a site of these boards, and where across_datasets.html is, or would be."""
    for name, table in tables.items():
        boards.write(table, folder / f"boards/{name}.csv")
    site.build(folder / "boards", folder / "site")
    index = boards.parsed((folder / "site/index.html").read_text(encoding="utf-8"))
    return index, folder / "site" / site.SEVERAL


def test_the_site_links_the_page_and_the_page_the_boards(tmp_path: Path) -> None:
    alone = transfer("cub", 5, 1.0, **ATTACKED)
    index, path = built(three() | {"twin": alone, "hard": boards.board("ResNet-18")}, tmp_path)
    (section,) = index.all("section", aria_labelledby="several")
    assert [link.attributes["href"] for link in section.all("a")] == ["several.html"]
    page = boards.parsed(path.read_text(encoding="utf-8"))
    assert [one.text for one in page.all("h2")] == ["clean · against the linear probe", "Two ways to sum up"]
    links = [str(link.attributes["href"]) for link in page.all("a")][1:]
    assert links == ["index.html", "boards/a.html", "boards/b.html", "boards/c.html"]
    assert all((tmp_path / "site" / link).is_file() for link in links)


def test_one_clean_board_is_not_several(tmp_path: Path) -> None:
    tables = {"a": three()["a"], "twin": transfer("beans", 5, 1.0, **ATTACKED), "hard": boards.hard()}
    index, path = built(tables, tmp_path)
    assert index.all("section", aria_labelledby="several") == []
    assert not path.exists()


def test_where_the_boards_cannot_be_summed_up_the_index_says_why_and_the_site_is_made(tmp_path: Path) -> None:
    index, path = built({"a": three()["a"], "again": three()["a"]}, tmp_path)
    (section,) = index.all("section", aria_labelledby="several")
    assert "Not summed up: a and again: expected every board to be of another data set" in section.text
    assert section.all("a") == []
    assert not path.exists()


def test_a_question_has_a_name_of_its_own() -> None:
    assert Setting("Linf", "0.1", "standard", "paper", "relu", "untouched").title == (
        "Linf, ε = 0.1 · standard · protocol: paper · against the network untouched"
    )
