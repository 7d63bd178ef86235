"""Leaderboards made by hand, whose every number a test can name."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis.statistics import wilson
from harness.leaderboard import csv_file, outcomes
from harness.leaderboard.board_files import StoredBoard
from harness.leaderboard.row import FORMATS, LeaderboardRow, rows_of
from harness.report.site import boards_of
from harness.util.files import write_whole

N = 200
SCRIPT = "<script>alert(1)</script>"
SHARED: dict[str, Any] = {
    "family": "relu", "sites": 17, "steered": 17, "n": N, "dataset": "cifar10[:200]", "metric": "accuracy",
    "trainable_parameters": 0, "fitted_from": "", "train": "", "threat": "Linf",
    "eps": "0.0313725", "attack": "standard", "protocol": "pixel", "seed": 3,
    "weights_sha256": "0a" * 32, "data_sha256": "0b" * 32, "ct_harness": "0.1.0", "torch": "2.8.0",
    "device": "cpu", "compiled": "no",
    "flags": "", "selection": "", "chosen": "",
}  # fmt: skip


NO_COST = dict.fromkeys(("forward_passes", "backward_passes", "seconds"))


def point(model: str, beta: float, clean: int, robust: int, **changes: Any) -> dict[str, Any]:
    """Return a finished row on which so many of N images survive; the gain is over 100."""
    low, high = wilson(robust, N)
    return SHARED | {
        "rank": 1, "model": model, "method": "ct", "beta": beta, "c": 0.5, "clean": clean / N,
        "robust": robust / N, "robust_low": low, "robust_high": high,
        "delta_pp": 100 * (robust - 100) / N, "delta_low": -1.0, "delta_high": 4.0,
        "gained": max(robust - 100, 0), "lost": max(100 - robust, 0), "p_value": 0.5, "p_holm": 0.5,
        "robust_aa": robust / N, "status": "ok", "forward_passes": 3000, "backward_passes": 1000, "seconds": 61.5,
    } | changes  # fmt: skip


def untouched(model: str, beta: float = 1.0, **changes: Any) -> dict[str, Any]:
    """Return the row of the untouched network: 170 of N clean, 100 robust."""
    untested = dict.fromkeys(("delta_low", "delta_high", "p_value", "p_holm"))
    return (
        point(model, beta, 170, 100, method="untouched", delta_pp=0.0) | untested | {"gained": 0, "lost": 0} | changes
    )


def selected(model: str, chosen: str, **changes: Any) -> dict[str, Any]:
    """Return a headline that chose these β, of the only model unless its ``p_holm`` is given."""
    row = point(model, 0.0, 168, 104, status="selected", chosen=chosen, selection="cross_validation:5")
    row |= {"rank": None, "beta": None, "c": None} | NO_COST | changes
    return row | {"p_holm": changes.get("p_holm", row["p_value"])}


def bounded(model: str, beta: float, clean: int, robust: int, **changes: Any) -> dict[str, Any]:
    """Return the row of a pruned steering."""
    gone = ("robust_low", "robust_high", "delta_pp", "delta_low", "delta_high", "gained", "lost", "p_value", "p_holm",
            "robust_aa")  # fmt: skip
    return point(model, beta, clean, robust, status="bounded") | dict.fromkeys(gone) | changes


def failed(model: str, why: str) -> dict[str, Any]:
    """Return the row of a model without a score."""
    gone = ("sites", "steered", "trainable_parameters", "n", "ct_harness", "torch", "device", "compiled")
    return SHARED | {"model": model, "method": "", "status": f"failed: {why}"} | dict.fromkeys(gone)


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    """Return the rows as a board."""
    return pd.DataFrame(rows, columns=list(FORMATS))


def rows(*rows: dict[str, Any]) -> list[LeaderboardRow]:
    """Return the rows as whatever reads a board has them."""
    return rows_of(table(*rows))


def board(network: str, protocol: str = "pixel", **changes: Any) -> pd.DataFrame:
    """Return a board of one network: 50.0 % untouched, 52.0 % in the headline, in-sample under ``protocol: paper``.

    ``changes`` of the question are made in all rows, others in the headline.
    """
    asked = {"model": network, "protocol": protocol, "dataset": "cifar10[100 per class]"}
    question = {*asked, "threat", "eps", "attack", "seed", "weights_sha256", "data_sha256"}
    asked |= {column: changes.pop(column) for column in question & {*changes}}
    headline = {"delta_pp": 2.0, "delta_low": -1.25, "delta_high": 5.25, "chosen": "0.9;0.8;0.9;0.9;0.9"}
    if protocol == "paper":
        headline |= {"status": "in-sample", "selection": "none", "chosen": "0.9", "flags": "not_comparable;partial"}
    own = [selected("", "") | headline | changes, point("", 0.9, 170, 104), untouched("")]
    return table(*(row | asked for row in own))


def hard() -> pd.DataFrame:
    """Return a board with two c, bounds, flags, a name that is markup, a loss, and a model that failed."""
    wide, loser = "WideResNet-28-10 with a rather long name", "loser"
    return table(
        selected(wide, "0.9/0.3;0.9;0.9;0.8;0.9", delta_pp=6.0, delta_low=2.25, delta_high=10.0, gained=13, lost=1,
                 p_value=0.0018, flags="replay"),
        point(wide, 0.9, 171, 112, rank=1, p_holm=0.006, flags="replay;zero_gradient"),
        point(wide, 0.8, 166, 108, rank=2, p_holm=0.08),
        point(wide, 0.9, 170, 105, rank=3, c=0.3),
        untouched(wide, rank=4),
        bounded(wide, 0.7, 160, 96, rank=5),
        bounded(wide, 0.8, 161, 93, rank=6, c=0.3, flags="square"),
        selected(SCRIPT, "1", beta=1.0, c=0.5, delta_pp=0.0, delta_low=0.0, delta_high=0.0, gained=0, lost=0,
                 p_value=1),
        untouched(SCRIPT, rank=1),
        point(SCRIPT, 0.9, 165, 98, rank=2),
        selected(loser, "0.5", beta=0.5, c=0.5, delta_pp=-4.04, delta_low=-7.0, delta_high=-1.25, gained=1, lost=9,
                 p_value=0.0215, selection="holdout:0.25", n=150),
        untouched(loser, rank=1),
        point(loser, 0.5, 150, 92, rank=2),
        failed("gone $x_1$", "weights: models/gone.pt: no such file, and offline none is downloaded"),
    )  # fmt: skip


CLEAN: dict[str, Any] = {
    "metric": "accuracy", "threat": "clean", "eps": "", "attack": "", "trainable_parameters": 965,
    "fitted_from": "ab" * 32,
}  # fmt: skip
ATTACKED: dict[str, Any] = {"threat": "Linf", "eps": "0.1", "attack": "standard"}


def transfer(
    dataset: str, base: float, ct: float | None, others: dict[str, float] | None = None, model: str = "m", **asked: Any
) -> pd.DataFrame:
    """Return a board of one model: the probe's accuracy in percent, and the gains of CT and other methods in points.

    Among its rows is a steering that gains 40 points in sample, which nothing may count.
    """

    def row(points: float, **changes: Any) -> dict[str, Any]:
        accuracy = min((base + points) / 100, 1.0)
        return {"clean": accuracy, "robust": accuracy, "delta_pp": points, "dataset": dataset} | CLEAN | changes | asked

    own = [] if ct is None else [selected(model, "0.9") | row(ct, method="ct", selection="training")]
    own.append(point(model, 0.5, 0, 0) | row(40.0, method="ct"))
    own.append(untouched(model) | row(0.0, method="linear_probe"))
    for method, points in (others or {}).items():
        trained = 99_999 if method == "fine_tuning" else 1000 + 100 * int(method.partition("-")[2] or 0)
        own.append(point(model, 1.0, 0, 0) | row(points, method=method, trainable_parameters=trained))
    return table(*own)


def three_transfers() -> dict[str, pd.DataFrame]:
    """Return boards of three datasets: +2 at 50 %, −1 at 80 %, +5 at 10 %; LoRA loses on one, and ties on another."""
    return {
        "a": transfer("beans", 50, 2.0, {"lora-1": -1.0}),
        "b": transfer("dtd[:200]", 80, -1.0, {"lora-1": 0.0}),
        "c": transfer("mnist", 10, 5.0, trainable_parameters=7690),
    }


def write(board: pd.DataFrame, path: Path, marks: pd.DataFrame | None = None) -> Path:
    """Write the board as a CSV, and its outcome file where there are marks; return the CSV's path."""
    write_whole(path, csv_file.to_csv(board))
    if marks is not None:
        write_whole(outcomes.path_of(path), outcomes.to_csv(marks))
    return path


def stored(path: Path) -> StoredBoard:
    """Return a board as `harness.leaderboard.board_files.read` does, but held against nothing: its marks are few."""
    table = csv_file.read(path)
    return StoredBoard(path, table, rows_of(table), outcomes.read(path), "")


def all_stored(folder: Path) -> list[StoredBoard]:
    """Return the boards of a directory; see `stored`."""
    return [stored(path) for path in boards_of(folder)]


class Element:
    """An element of a page, as `parsed` finds it."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag, self.attributes = tag, attributes
        self.children: list[Element] = []
        self.words: list[str] = []

    @property
    def text(self) -> str:
        """Its text and that of all elements below it, runs of spaces as one."""
        return " ".join("".join(self.words).split())

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """Return the elements below it that have this tag and these attributes; ``class_`` is the class."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        found = [child for child in self.children if child.tag == tag and wanted.items() <= child.attributes.items()]
        return found + [one for child in self.children for one in child.all(tag, **attributes)]


class _Parser(HTMLParser):
    VOID = frozenset({"meta", "link", "input", "br", "hr", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.words.append(data)


def parsed(page: str) -> Element:
    """Parse a page, and refuse it unless every element is closed where it should be."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert len(parser.open) == 1, f"<{parser.open[-1].tag}> is not closed"
    return parser.open[0]
