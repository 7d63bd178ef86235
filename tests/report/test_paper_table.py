"""The paper's table: its values are those published, and a board stands where it belongs, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import boards
from helpers.boards import board
from helpers.commands import Command

from harness.config.benchmark import load_benchmark
from harness.leaderboard.row import rows_of
from harness.report import paper_table, site
from harness.report.paper_table import (
    PUBLISHED,
    Claim,
    PaperGroup,
    PaperRow,
    PaperSetting,
    belongs,
    groups,
    page,
    plain,
)

ROOT = Path(__file__).parents[2]


def table_of(tables: Mapping[str, pd.DataFrame]) -> list[PaperGroup]:
    return groups({name: rows_of(table) for name, table in tables.items()})


def rows(*tables: pd.DataFrame) -> list[PaperRow]:
    """The rows to which the boards a, b, … have given something."""
    table = table_of(dict(zip("abcdef", tables, strict=False)))
    return [row for group in table for row in group.rows if row.measured]


# --- what was published ---


@pytest.mark.parametrize(
    ("dataset", "threat", "eps", "network", "claim"),
    [
        ("cifar10", "L2", "0.5", "ResNet-18", (53.67, 53.67, 1.00)),
        ("cifar10", "Linf", "0.0313725", "resnet_50", (10.10, 12.08, 0.90)),
        ("cifar10", "corruptions", "", "ResNet152", (78.82, 78.83, 0.99)),
        ("cifar100", "Linf", "0.0313725", "RESNET-18", (4.47, 6.90, 0.92)),
        ("cifar100", "corruptions", "", "ResNet-50", (53.91, 53.93, 0.98)),
        ("imagenet", "Linf", "0.0313725", "resnet18 IMAGENET1K_V1", (0.00, 7.00, 0.89)),
        ("imagenet", "L2", "0.5", "resnet152 IMAGENET1K_V1", (42.50, 42.50, 1.00)),
    ],
)
def test_the_values_are_those_published(
    dataset: str, threat: str, eps: str, network: str, claim: tuple[float, ...]
) -> None:
    sets = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C"}
    attack = sets[dataset] if threat == "corruptions" else "standard"
    assert PUBLISHED[PaperSetting(dataset, threat, eps, attack), plain(network)].claim == claim


def test_each_network_has_a_value_for_each_threat_and_none_is_a_loss() -> None:
    claims = [row.claim for row in PUBLISHED.values()]
    assert len(claims) == 3 * 3 * 3
    for claim in claims:
        assert claim is not None
        assert 0 <= claim.base <= claim.tuned <= 100
        assert claim.tuned == claim.base or claim.beta < 1


def test_our_benchmarks_ask_the_published_questions_of_the_published_networks() -> None:
    published: dict[PaperSetting, set[str]] = {}
    for setting, network in PUBLISHED:
        published.setdefault(setting, set()).add(network)
    for setting, networks in published.items():
        benchmark = load_benchmark(ROOT / paper_table.benchmark(setting))
        assert PaperSetting(benchmark.dataset.kind, **benchmark.threat.columns()) == setting
        assert {plain(model.label) for model in benchmark.models} == networks


# --- which boards belong, and where ---


def test_without_a_board_every_published_network_has_a_blank_row_in_the_papers_order() -> None:
    table = table_of({"other": boards.hard()})
    assert not belongs(table)
    assert [group.title for group in table] == [
        "CIFAR-10 · L2, ε = 0.5", "CIFAR-10 · Linf, ε = 8/255", "CIFAR-10 · corruptions",
        "CIFAR-100 · L2, ε = 0.5", "CIFAR-100 · Linf, ε = 8/255", "CIFAR-100 · corruptions",
        "ImageNet · L2, ε = 0.5", "ImageNet · Linf, ε = 8/255", "ImageNet · corruptions",
    ]  # fmt: skip
    assert [row.network for row in table[0].rows] == ["ResNet-18", "ResNet-50", "ResNet-152"]
    assert all(row.claim and not row.measured for group in table for row in group.rows)


@pytest.mark.parametrize("network", ["ResNet-18", "resnet18", "RESNET_18"])
@pytest.mark.parametrize("protocol", ["paper", "pixel"])
def test_a_board_of_a_published_network_fills_its_half_of_the_row(network: str, protocol: str) -> None:
    table = table_of({"mine": board(network, protocol)})
    (first, *others) = table
    assert first.title == "CIFAR-10 · Linf, ε = 8/255"
    assert not belongs(others)
    row, *blank = first.rows
    assert (row.network, row.claim) == ("ResNet-18", Claim(11.17, 14.93, 0.90))
    assert [one.network for one in blank] == ["ResNet-50", "ResNet-152"]
    assert (row.paper is None, row.pixel is None) == (protocol == "pixel", protocol == "paper")
    (measured,) = row.measured
    assert (measured.board, measured.n) == ("mine", 200)
    assert (measured.base, measured.tuned) == pytest.approx((50.0, 52.0))
    assert (measured.change, measured.gain, measured.interval) == tuple(
        text.replace(" ", "\N{NO-BREAK SPACE}") for text in ("50.0 → 52.0", "+2.0", "−1.2 … +5.2")
    )
    assert measured.beta == ("0.9" if protocol == "paper" else "0.9 × 4, 0.8 × 1")


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "cifar10_subset[:16]"},
        {"dataset": "arrays[:16]"},
        {"eps": "0.00392157"},
        {"threat": "L1"},
        {"attack": "custom:apgd-ce"},
        {"attack": "standard+bfloat16"},
        {"model": "ResNet-34"},
        {"model": "Standard"},
        {"dataset": "imagenet[:1000]", "model": "resnet50"},  # torchvision's second weights, not the paper's
        {"status": "in-sample", "selection": "none"},  # in pixels, but no choice on other images
        {"status": "failed: gone"},
    ],
)
def test_a_board_of_another_question_or_network_does_not_belong(other: dict[str, Any]) -> None:
    assert rows(board("ResNet-18", **other)) == []
    assert rows(board("ResNet-18")) != []


def test_a_pair_of_which_nothing_was_published_gets_a_row_and_a_title_of_its_own() -> None:
    asked = {"dataset": "digits[10 per class]", "eps": "0.1", "attack": "custom:apgd-ce"}
    table = table_of({"a": board("demo", "pixel", **asked), "b": board("demo", "paper", **asked)})
    assert table[0].title == "digits · Linf, ε = 0.1 · custom:apgd-ce"
    assert table[0].benchmark == ""
    assert not belongs(table[1:])
    (row,) = table[0].rows
    assert (row.network, row.claim) == ("demo", None)
    assert row.paper
    assert row.pixel
    assert (row.paper.board, row.pixel.board) == ("b", "a")


def test_another_network_under_a_published_question_stands_with_it() -> None:
    wide = board("WRN", "paper", weights_sha256="cc"), board("WRN", weights_sha256="cc")
    table = table_of({"a": wide[0], "b": wide[1]})
    assert [row.network for row in table[0].rows] == ["ResNet-18", "ResNet-50", "ResNet-152", "WRN"]
    assert table[0].benchmark == "benchmarks/paper_cifar10_linf.yaml"


APART = [
    {"weights_sha256": "cc"}, {"data_sha256": "cc"}, {"seed": 4}, {"dataset": "cifar10[:1000]"}, {"eps": "0.1"},
    {"threat": "L2"}, {"attack": "plus"},
]  # fmt: skip


@pytest.mark.parametrize("other", APART, ids=lambda other: next(iter(other)))
def test_boards_are_paired_only_where_nothing_but_the_protocol_differs(other: dict[str, Any]) -> None:
    assert len(rows(board("demo", "paper"), board("demo", "pixel"))) == 1
    assert rows(board("demo", "paper"), board("demo", "pixel", **other)) == []


def test_other_weights_or_another_seed_of_a_published_network_make_another_row() -> None:
    found = rows(board("ResNet-18", "paper"), board("ResNet-18", "pixel", weights_sha256="cc"),
                 board("ResNet-18", "paper", seed=4), board("ResNet-18", "pixel", seed=4))  # fmt: skip
    assert [tuple(one.board for one in row.measured) for row in found] == [("a",), ("b",), ("c", "d")]
    assert {row.claim for row in found} == {Claim(11.17, 14.93, 0.90)}


def test_two_boards_of_one_question_and_protocol_are_both_shown() -> None:
    found = rows(board("demo", "paper"), board("demo", "pixel"), board("demo", "pixel"))
    assert [tuple(one.board for one in row.measured) for row in found] == [("a", "b"), ("c",)]


def test_a_baseline_of_nothing_is_zero_and_not_minus_zero() -> None:
    (row,) = rows(board("ResNet-18", robust=0.07, delta_pp=7.000000000000002))
    assert row.pixel
    assert row.pixel.change.startswith("0.0")


# --- the page ---


def shown(table: list[PaperGroup], **options: Any) -> boards.Element:
    return boards.parsed(page(table, **options))


def cells(page: boards.Element, network: str) -> list[str]:
    (row,) = (row for row in page.all("tr") if row.children[0].text == network and len(row.children) == 11)
    return [cell.text for cell in row.children]


def test_the_three_ways_stand_in_columns_of_their_own() -> None:
    asked = {"dataset": "digits[10 per class]", "eps": "0.1"}
    table = table_of({"p": board("demo", "paper", **asked), "q": board("demo", "pixel", **asked)})
    page = shown(table)
    assert cells(page, "demo") == [
        "demo", "–", "", "50.0 → 52.0 p not_comparable, partial", "0.9", "200",
        "50.0 → 52.0 q", "0.9 × 4, 0.8 × 1", "+2.0", "−1.2 … +5.2", "200",
    ]  # fmt: skip
    first = page.all("tbody")[1].all("tr")[1]
    assert [cell.text for cell in first.children] == [
        "ResNet-18",
        "53.67 → 53.67",
        "1.00",
        *["–", "", ""],
        "–",
        *[""] * 4,
    ]
    (found,) = page.all("table")
    assert "data-sortable" not in found.attributes
    assert len(found.all("caption")) == 1
    assert [head.text for head in found.all("th", scope="colgroup")] == [
        "published",
        "protocol: paper",
        "protocol: pixel",
    ]
    assert len(found.all("th", scope="rowgroup")) == len(table)
    assert {len(row.children) for row in found.all("tbody")[0].all("tr")} == {1, 11}


def test_the_flags_that_were_met_are_explained() -> None:
    assert [one.text for one in shown(table_of({"a": board("ResNet-18", "paper")})).all("dt")] == [
        "not_comparable", "partial",
    ]  # fmt: skip
    assert shown(table_of({})).all("dt") == []


def test_names_are_text_and_no_markup() -> None:
    asked = {"dataset": f"{boards.SCRIPT}[:2]", "weights_sha256": "cc"}
    table = table_of({
        boards.SCRIPT: board(boards.SCRIPT, "paper", flags=boards.SCRIPT, **asked),
        "q": board(boards.SCRIPT, "pixel", **asked),
    })  # fmt: skip
    for pages in ({}, {boards.SCRIPT: f'"><{boards.SCRIPT}'}):
        text = page(table, pages=pages)
        assert boards.SCRIPT not in text
        assert len(boards.parsed(text).all("script")) == 1
        assert cells(boards.parsed(text), boards.SCRIPT)[3] == f"50.0 → 52.0 {boards.SCRIPT} {boards.SCRIPT}"


def test_the_bias_of_the_best_of_many_is_as_the_page_says() -> None:
    """Where 30 β err independently about the same accuracy, by simulation."""
    text = shown(table_of({})).text
    found = re.search(
        r"best of 30 on 1,000 images .* by about \+([\d.]+) points where 5 % .* by \+([\d.]+) where half", text
    )
    assert found
    random = np.random.default_rng(0)
    for accuracy, stated in zip((0.05, 0.5), found.groups(), strict=True):
        best = random.binomial(1000, accuracy, (20_000, 30)).max(1).mean() / 1000
        assert 100 * (best - accuracy) == pytest.approx(float(stated), abs=0.06)


# --- the site and the command ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pair and another board."""
    there = tmp_path / "boards"
    boards.write(board("ResNet-18", "paper"), there / "p #1.csv")
    boards.write(board("ResNet-18", "pixel"), there / "q.csv")
    boards.write(boards.hard(), there / "x.csv")
    return there


def test_the_site_has_the_page_where_a_board_belongs_to_it(folder: Path, tmp_path: Path) -> None:
    assert tmp_path / "site/paper.html" in site.build(boards.all_stored(folder), tmp_path / "site")
    index = boards.parsed((tmp_path / "site/index.html").read_text(encoding="utf-8"))
    assert [link.text for link in index.all("a", href="paper.html")] == ["The published numbers"]
    found = boards.parsed((tmp_path / "site/paper.html").read_text(encoding="utf-8"))
    links = [(link.text, link.attributes["href"]) for link in found.all("a") if link.attributes["href"] != "#content"]
    assert links == [("all boards", "index.html"), ("p #1", "boards/p%20%231.html"), ("q", "boards/q.html")]
    for name in ("p #1.csv", "q.csv"):
        (folder / name).unlink()
    assert tmp_path / "other/paper.html" not in site.build(boards.all_stored(folder), tmp_path / "other")
    assert not (tmp_path / "other/paper.html").exists()
    assert "paper.html" not in (tmp_path / "other/index.html").read_text(encoding="utf-8")


def test_the_index_ranks_no_gain_that_was_chosen_in_sample(folder: Path, tmp_path: Path) -> None:
    site.build(boards.all_stored(folder), tmp_path / "site")
    (table,) = boards.parsed((tmp_path / "site/index.html").read_text(encoding="utf-8")).all("table", id="index")
    gains = {row.children[0].text: row.children[4].attributes["data-value"] for row in table.all("tr")[1:]}
    assert gains == {"p #1": "", "q": "2.0", "x": "6.0"}


def test_the_command_writes_one_page_that_needs_nothing(command: Command, here: Path, folder: Path) -> None:
    ended = command("paper", str(folder))
    assert (ended.code, ended.out) == (0, "written: paper.html\n")
    text = (here / "paper.html").read_text(encoding="utf-8")
    assert "50.0\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}52.0" in text
    assert [link.attributes["href"] for link in boards.parsed(text).all("a")] == ["#content"]
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert command("paper", str(folder), "-o", "there/x.html").code == 0
    assert (here / "there/x.html").read_text(encoding="utf-8") == text
    ended = command("paper", "nowhere")
    assert ended.code == 2
    assert ended.err.startswith("error: nowhere: expected leaderboards")


def test_from_the_benchmark_to_the_page(command: Command, here: Path) -> None:
    """The demo networks under both protocols, as the head of the file says, with less of everything."""
    file = ROOT / "benchmarks/paper_digits_linf.yaml"
    commands = re.findall(r"#   ct-harness run (\S+) (--set .*)", file.read_text(encoding="utf-8"))
    assert [name for name, _ in commands] == ["benchmarks/paper_digits_linf.yaml"]
    less = ["dataset.per_class=2", "steering.beta=0.8", "threat.attack={stages: [apgd-ce], iterations: 3}",
            "executor={kind: inline}", "search={kind: full}"]  # fmt: skip
    sets = [word for key in less for word in ("--set", key)]
    assert command("run", str(file), *sets).code == 0
    assert command("run", str(file), *sets, *commands[0][1].split()).code == 0
    assert sorted(path.name for path in (here / "leaderboards").glob("*[lf].csv")) == [
        "paper_digits_linf.csv", "paper_digits_linf_pixel.csv",
    ]  # fmt: skip
    assert command("paper", "leaderboards").code == 0
    found = boards.parsed((here / "paper.html").read_text(encoding="utf-8"))
    for network in ("digits_plain", "digits_robust"):
        row = cells(found, network)
        assert re.fullmatch(r"[\d.]+ → [\d.]+ paper_digits_linf not_comparable, partial", row[3])
        assert re.fullmatch(r"[\d.]+ → [\d.]+ paper_digits_linf_pixel", row[6])
        assert (row[5], row[10]) == ("20", "20")
