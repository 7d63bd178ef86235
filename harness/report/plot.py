"""Pictures of the curves: one panel for each model, as SVG and as PNG. The same board gives the same bytes.

Lines and markers differ in shape too, so that the pictures can be read in grey.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.analysis.metrics import spoken
from harness.errors import LeaderboardError
from harness.leaderboard.row import LeaderboardRow, failures_of
from harness.report.curves import CurvePoint, Panel, panels
from harness.util.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, CLEAN, ROBUST, PAPER = "#1d2125", "#d55e00", "#0072b2", "#fffffe"
"""Text; vermillion and blue of Okabe and Ito, which colour-blind readers tell apart; background."""
DASHES = ("-", (0, (3, 1.5)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (2, 2)))
MARKERS = {ROBUST: ("o", "D", "^", "h"), CLEAN: ("s", "P", "X", "v", "p")}
"""Their numbers have no divisor in common with the dashes', so that a look is repeated late: at the 21st c."""
OTHERS = ((0, (5, 2)), (0, (8, 3)), (0, (5, 2, 1, 2)), (0, (5, 2, 1, 2, 1, 2)))
"""Dashes of methods other than steering."""
PANEL = (4.3, 3.4)
"""Width and height in inches."""
COLUMNS = 2
"""Panels side by side, at most."""


def draw(shown: Sequence[Panel], failures: Mapping[str, str] | None = None, titled: bool = True) -> Figure:
    """Draw panels side by side, and name the models that have none.

    Args:
        shown: panels to draw, at least one.
        failures: models that were not scored, each with its reason.
        titled: whether each panel has the name of its model above it.
    """
    from matplotlib.figure import Figure

    across = min(COLUMNS, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(PANEL[0] * across, PANEL[1] * down + 0.5 * bool(failures)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.12)  # type: ignore[union-attr, call-arg]  # inches
    figure.set_facecolor(PAPER)
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis, panel in zip(axes, shown, strict=False):
        _draw(axis, panel, titled)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    if failures:
        names = f"Not scored: {', '.join(failures)}"
        figure.supxlabel(names, fontsize=8.5, color=INK, parse_math=False, wrap=True)
    return figure


def _draw(axis: Axes, panel: Panel, titled: bool) -> None:
    axis.set_facecolor(PAPER)
    accuracies = (("robust", ROBUST, panel.robust), ("clean", CLEAN, panel.clean))
    for what, colour, level in accuracies if panel.attacked else accuracies[1:]:
        axis.axhline(level, color=colour, linewidth=0.9, linestyle=(0, (1, 2)), label=f"_baseline-{what}", zorder=1.5)
        looks = zip(cycle(DASHES if what == "robust" else DASHES[1:]), cycle(MARKERS[colour]), panel.curves)
        for dashes, marker, curve in looks:
            name = what if len(panel.curves) == 1 else f"{what}, c = {curve.c:g}"
            points = curve.robust if what == "robust" else curve.clean
            _line(axis, points, name, {"color": colour, "linestyle": dashes, "marker": marker})
    for shape, (method, level) in zip(cycle(OTHERS), panel.others.items()):
        axis.axhline(level, color=INK, linewidth=0.9, linestyle=shape, label=method, zorder=1.4)
    _flagged(axis, panel)
    _chosen(axis, panel)
    if titled:
        axis.set_title(panel.model, fontsize=10, color=INK, parse_math=False)
    axis.set_xlabel(f"β  (untouched network: β = {panel.baseline:g})", fontsize=9, color=INK)
    name = spoken(panel.metric)
    axis.set_ylabel(f"{name} (%)" if panel.metric.is_share else name, fontsize=9, color=INK)
    axis.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    axis.margins(x=0.05, y=0.1)
    axis.tick_params(labelsize=8.5, color=INK, labelcolor=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["bottom", "left"]].set_color(INK)
    _legend(axis)


def _line(axis: Axes, points: Sequence[CurvePoint], name: str, look: Mapping[str, Any]) -> None:
    """Draw scores as a line with their intervals as a band, and bounds as open marks without a line."""
    scores = [point for point in points if not point.bounded]
    bounds = [point for point in points if point.bounded]
    betas = [point.beta for point in scores]
    axis.plot(betas, [point.value for point in scores], label=name, markersize=4.5, linewidth=1.6, **look)
    axis.fill_between(
        betas, [point.low for point in scores], [point.high for point in scores],  # type: ignore[arg-type]
        color=look["color"], alpha=0.13, linewidth=0, label=f"_band-{name}",
    )  # fmt: skip
    axis.plot(
        [point.beta for point in bounds], [point.value for point in bounds], label=f"_bounds-{name}", linestyle="none",
        marker=look["marker"], markersize=5.5, color=look["color"], markerfacecolor=PAPER, markeredgewidth=1.2,
    )  # fmt: skip


def _flagged(axis: Axes, panel: Panel) -> None:
    """Draw a ring around each point of a flagged row."""
    points = {point[:2] for curve in panel.curves for point in curve.clean + curve.robust if point.flagged}
    if points:
        betas, values = zip(*sorted(points), strict=True)
        axis.plot(betas, values, "o", markersize=10, markerfacecolor="none", markeredgecolor=INK, label="_flagged")


def _chosen(axis: Axes, panel: Panel) -> None:
    """Mark each β that was selected on the axis, with the number of folds that selected it."""
    axis.plot(
        list(panel.chosen), [0] * len(panel.chosen), "^", transform=axis.get_xaxis_transform(), color=INK,
        markersize=7, clip_on=False, label="_chosen", zorder=5,
    )  # fmt: skip
    for beta, count in panel.chosen.items():
        if sum(panel.chosen.values()) > 1:
            axis.annotate(
                str(count), (beta, 0), xycoords=axis.get_xaxis_transform(), xytext=(0, 7), textcoords="offset points",
                ha="center", fontsize=8, color=INK,
            )  # fmt: skip


def _legend(axis: Axes) -> None:
    """Explain below the panel the curves, and those of the other marks that are there."""
    from matplotlib.lines import Line2D

    def sample(label: str, **look: Any) -> Line2D:
        return Line2D([], [], label=label, color=INK, **look)

    there = {str(line.get_label()) for line in axis.get_lines() if len(line.get_xdata())}  # type: ignore[arg-type]
    rest = [sample("untouched", linestyle=(0, (1, 2)), linewidth=0.9)]
    if "_chosen" in there:
        rest.append(sample("selected β", linestyle="none", marker="^", markersize=7))
    if any(label.startswith("_bounds-") for label in there):
        rest.append(sample("at most", linestyle="none", marker="o", markersize=5.5, markerfacecolor=PAPER))
    if "_flagged" in there:
        rest.append(sample("flagged", linestyle="none", marker="o", markersize=9, markerfacecolor="none"))
    curves, _ = axis.get_legend_handles_labels()
    axis.legend(
        handles=[*curves, *rest], loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3,
        fontsize=8, frameon=False, labelcolor=INK, handlelength=2.2, columnspacing=1.1,
    )  # fmt: skip


def svg(figure: Figure, salt: str = "ct-harness") -> str:
    """Return a figure as SVG with selectable text; the same figure gives the same bytes.

    Args:
        figure: figure to write, from `draw`.
        salt: seed of the ids inside the SVG.
    """
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "ct-harness"})
    return text.getvalue()


def write(rows: Sequence[LeaderboardRow], directory: Path, stem: str) -> list[Path]:
    """Draw the rows of a board, and write ``stem``.svg and ``stem``.png.

    Raises:
        LeaderboardError: no model was scored, or the directory cannot be written.
    """
    shown = panels(rows)
    if not shown:
        raise LeaderboardError(f"{stem}: no model was scored, so there is nothing to draw; `ct-harness show` says why")
    return write_figure(draw(shown, failures_of(rows)), directory, stem)


def write_figure(figure: Figure, directory: Path, stem: str) -> list[Path]:
    """Write a figure as ``stem``.svg and ``stem``.png.

    Raises:
        LeaderboardError: the directory cannot be written.
    """
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=200)
    files: dict[Path, str | bytes] = {directory / f"{stem}.svg": svg(figure), directory / f"{stem}.png": png.getvalue()}
    for path, content in files.items():
        write_whole(path, content)
    return list(files)
