"""The curves: what is drawn is what the board says, in shapes as well as in colours, with the same bytes each time."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers import boards
from helpers.commands import Command
from matplotlib.axes import Axes

from harness.analysis.statistics import wilson
from harness.errors import LeaderboardError
from harness.leaderboard.row import rows_of
from harness.report import curves, plot

HARD = rows_of(boards.hard())
SVG = "{http://www.w3.org/2000/svg}"


def axes_of(*rows: dict[str, Any]) -> Axes:
    (panel,) = curves.panels(boards.rows(*rows))
    return plot.draw([panel]).axes[0]


def lines(axis: Axes, **look: object) -> list[Any]:
    """The lines with data that have this look."""
    return [
        line
        for line in axis.get_lines()
        if np.size(line.get_xdata()) and all(getattr(line, f"get_{name}")() == value for name, value in look.items())
    ]


def vertices(axis: Axes, name: str) -> np.ndarray:
    """The corners of the band of this name, [n, 2]."""
    (band,) = [band for band in axis.collections if band.get_label() == f"_band-{name}"]
    return np.asarray(band.get_paths()[0].vertices)


def legend(axis: Axes) -> list[str]:
    """The texts of the legend."""
    found = axis.get_legend()
    assert found is not None
    return [text.get_text() for text in found.get_texts()]


def at(line: Any) -> tuple[list[float], list[float]]:
    """Where a line's points are."""
    return line.get_xdata().tolist(), np.round(line.get_ydata(), 9).tolist()


def test_the_drawn_accuracies_and_intervals_are_the_stored_ones() -> None:
    rows = [boards.untouched("m"), boards.point("m", 0.8, 160, 120), boards.point("m", 0.9, 165, 110)]
    axis = axes_of(*rows)
    (robust,), (clean,) = lines(axis, label="robust"), lines(axis, label="clean")
    assert at(robust) == ([0.8, 0.9, 1.0], [60.0, 55.0, 50.0])
    assert at(clean) == ([0.8, 0.9, 1.0], [80.0, 82.5, 85.0])
    for name, counts in (("robust", (120, 110, 100)), ("clean", (160, 165, 170))):
        band = vertices(axis, name)
        for beta, count in zip((0.8, 0.9, 1.0), counts, strict=True):
            drawn = band[np.isclose(band[:, 0], beta), 1]
            low, high = wilson(count, boards.N)
            assert (drawn.min(), drawn.max()) == pytest.approx((100 * low, 100 * high))


def test_an_interval_is_the_boards_not_computed_again() -> None:
    axis = axes_of(boards.untouched("m", robust_low=0.125, robust_high=0.875))
    ends = vertices(axis, "robust")[:, 1]
    assert (ends.min(), ends.max()) == (12.5, 87.5)


def test_the_baseline_is_a_line_at_the_untouched_networks_own_beta() -> None:
    """In the smooth family β = 1 is one of the grid, and a steering without effect is not the untouched network."""
    rows = [
        boards.untouched("m", 0.5, family="smooth", c=1.0),
        boards.point("m", 1.0, 180, 100, family="smooth", c=1.0, gained=0, lost=0, p_value=1.0, p_holm=1.0),
    ]
    (panel,) = curves.panels(boards.rows(*rows))
    assert (panel.baseline, panel.clean, panel.robust) == (0.5, 85.0, 50.0)
    axis = axes_of(*rows)
    assert [line.get_ydata() for line in lines(axis, label="_baseline-clean")] == [[85.0, 85.0]]
    assert [line.get_ydata() for line in lines(axis, label="_baseline-robust")] == [[50.0, 50.0]]
    assert axis.get_xlabel() == "β  (untouched network: β = 0.5)"
    assert axis.get_ylabel() == "accuracy (%)"


def test_a_bound_is_an_open_mark_that_no_line_joins_and_no_band_surrounds() -> None:
    axis = axes_of(boards.untouched("m"), boards.point("m", 0.9, 165, 110), boards.bounded("m", 0.8, 150, 90))
    (joined,), (bound,) = lines(axis, label="robust"), lines(axis, label="_bounds-robust")
    assert at(joined) == ([0.9, 1.0], [55.0, 50.0])
    assert at(bound) == ([0.8], [45.0])
    assert bound.get_linestyle() == "None"
    assert bound.get_markerfacecolor() == plot.PAPER
    assert joined.get_markerfacecolor() == plot.ROBUST
    assert all(vertices(axis, name)[:, 0].min() >= 0.9 for name in ("robust", "clean"))
    assert "at most" in legend(axis)


def test_flagged_rows_have_a_ring_and_only_they() -> None:
    axis = axes_of(boards.untouched("m"), boards.point("m", 0.9, 165, 110, flags="replay"))
    (rings,) = lines(axis, label="_flagged")
    assert at(rings) == ([0.9, 0.9], [55.0, 82.5])
    plain = axes_of(boards.untouched("m"), boards.point("m", 0.9, 165, 110))
    assert lines(plain, label="_flagged") == []
    assert "flagged" not in legend(plain)


@pytest.mark.parametrize(
    ("chosen", "status", "marked", "texts"),
    [
        ("0.9;0.8/0.3;0.9;0.9;0.8", "selected", {0.8, 0.9}, {"2", "3"}),
        ("0.8", "in-sample", {0.8}, set()),
    ],
)
def test_the_selected_beta_are_marked_with_their_folds(
    chosen: str, status: str, marked: set[float], texts: set[str]
) -> None:
    axis = axes_of(boards.selected("m", chosen, status=status), boards.untouched("m"), boards.point("m", 0.8, 165, 110))
    (marks,) = lines(axis, label="_chosen")
    assert set(at(marks)[0]) == marked
    assert {text.get_text() for text in axis.texts} == texts


def test_each_c_has_a_line_from_the_untouched_network_and_no_two_lines_look_alike_in_grey() -> None:
    axis = axes_of(
        boards.untouched("m"),
        *(boards.point("m", 0.9, 165, 110 + number, c=c) for number, c in enumerate((0.1, 0.3, 0.5))),
    )
    names = [f"{what}, c = {c:g}" for what in ("robust", "clean") for c in (0.1, 0.3, 0.5)]
    drawn = [line for name in names for line in lines(axis, label=name)]
    assert len(drawn) == 6
    assert all(at(line)[0] == [0.9, 1.0] for line in drawn)
    assert len({line.get_marker() for line in drawn}) == 6
    assert len({(str(line._dash_pattern), line.get_marker() in "oD^h8") for line in drawn}) == 6


def test_the_svg_is_xml_names_every_model_and_is_the_same_each_time(tmp_path: Path) -> None:
    plot.write(HARD, tmp_path / "a", "board")
    plot.write(HARD, tmp_path / "b", "board")
    for name in ("board.svg", "board.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    text = (tmp_path / "a" / "board.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    texts = {"".join(element.itertext()) for element in root.iter(f"{SVG}text")}
    assert {"WideResNet-28-10 with a rather long name", boards.SCRIPT, "loser", "Not scored: gone $x_1$"} <= texts
    assert list(root.iter(f"{SVG}script")) == []
    assert "dc:date" not in text
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    assert (tmp_path / "a" / "board.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_that_failed_has_no_panel_and_every_other_has_one() -> None:
    assert [panel.model for panel in curves.panels(HARD)] == [
        "WideResNet-28-10 with a rather long name", boards.SCRIPT, "loser",
    ]  # fmt: skip


def test_drawing_leaves_matplotlibs_settings_alone() -> None:
    import matplotlib as mpl

    before = json.dumps(dict(mpl.rcParams), default=str)
    plot.svg(plot.draw(curves.panels(HARD)))
    assert json.dumps(dict(mpl.rcParams), default=str) == before


def test_a_board_without_the_untouched_network_is_refused() -> None:
    with pytest.raises(LeaderboardError, match=r"^m: .*untouched network, found 0; run the benchmark again"):
        curves.panels(boards.rows(boards.point("m", 0.9, 1, 1)))


# --- the command ---


def test_plot_writes_beside_the_board_or_where_it_is_told(command: Command, here: Path) -> None:
    boards.write(boards.hard(), here / "some" / "x.csv")
    ended = command("plot", "some/x.csv")
    assert (ended.code, ended.out) == (0, "written: some/x.svg\nwritten: some/x.png\n")
    assert command("plot", "some/x.csv", "-o", "else/where").code == 0
    for suffix in (".svg", ".png"):
        assert (here / "else/where" / f"x{suffix}").read_bytes() == (here / "some" / f"x{suffix}").read_bytes()
    assert [path.name for path in (here / "some").iterdir() if path.name.startswith(".")] == []


def test_what_cannot_be_plotted_is_told(command: Command, here: Path) -> None:
    boards.write(boards.table(boards.failed("m", "gone")), here / "x.csv")
    ended = command("plot", "x.csv")
    assert ended.code == 2
    assert re.search(r"^error: x: no model was scored.*`ct-harness show`", ended.err, re.MULTILINE)
    assert command("plot", "missing.csv").code == 2
    boards.write(boards.hard(), here / "y.csv")
    (here / "file").write_text("")
    ended = command("plot", "y.csv", "-o", "file")
    assert ended.code == 2
    assert "y.svg: cannot be written" in ended.err
