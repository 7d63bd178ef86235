"""Figure 1: the effect of β on two networks small enough to be seen whole.

A classifier of two spirals and a regression of a wave are trained with ReLU, that is at β = 1, and then steered to
smaller β as any network is; nothing is trained again. Below each picture stands its measured curvature. The idea is
that of the first figure of the Curvature Tuning paper (arXiv 2502.07783); data, networks and measures are our own.

c is 0.5, as everywhere else in the harness. There, a network at β = 0 is smooth but not linear: only c = 1 makes it
linear, and on the way there, near β = 0.9, its curvature first rises above ReLU's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.curvature.steering import steer
from harness.report.plot import CLEAN, INK, PAPER, ROBUST, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BETAS = (1.0, 0.9, 0.8, 0.7, 0.5, 0.0)
C = 0.5
WIDTH, STEPS, RATE = 12, 600, 1e-2
"""Both networks: units in each of two hidden layers, steps of Adam, initial learning rate."""
INTERVAL = (-1.0, 1.0)
"""Interval on which the wave is drawn and measured."""
SQUARE = (-1.2, 1.2)
"""Each side of the square on which the spirals are drawn and measured."""
POINTS, SIDE = 2001, 241
"""Grid points on the interval, and on each side of the square."""
CLASSES = ((ROBUST, "#cfe3f1", "o"), (CLEAN, "#fbe9d9", "^"))
"""Colour of the points, colour of the region, and marker of each class."""

Field = Callable[[Tensor], Tensor]
"""A function from [n, d] to [n, 1]."""


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network and its training data.

    Args:
        x: inputs, float64 [n, 1] or [n, 2].
        y: targets, float64 [n, 1]; 0 or 1 for a classification.
        network: network with output [n, 1], for a classification a logit.
    """

    x: Tensor
    y: Tensor
    network: nn.Module


@dataclass(frozen=True)
class DemoPanel:
    """A network at one β.

    Args:
        beta: steering parameter.
        values: outputs on the grid: [POINTS], or [SIDE, SIDE] with the second coordinate first.
        curvature: see `slope_variation` and `turning`.
        boundary: lines on which the output of a classification is 0, [n, 2] each.
    """

    beta: float
    values: np.ndarray
    curvature: float
    boundary: tuple[np.ndarray, ...] = ()


def wave(seed: int = 0) -> TrainedNetwork:
    """Train a regression of a growing wave in one dimension."""
    x = torch.linspace(*INTERVAL, 80, dtype=torch.float64)[:, None]
    y = torch.sin(2.5 * np.pi * x) * (0.6 + 0.4 * x) + 0.5 * x
    return _trained(x, y, F.mse_loss, seed)


def spirals(seed: int = 0) -> TrainedNetwork:
    """Train a classification of two spirals in the plane, half a turn apart, with 80 noisy points each."""
    noise = np.random.default_rng(seed).normal(0, 0.02, (160, 2))
    radius = np.sqrt(np.linspace(0.06, 1, 80))
    angle = 1.3 * 2 * np.pi * radius
    arm = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    y = torch.arange(160, dtype=torch.float64)[:, None] // 80
    return _trained(torch.from_numpy(np.concatenate([arm, -arm]) + noise), y, F.binary_cross_entropy_with_logits, seed)


def _trained(x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor], seed: int) -> TrainedNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(x.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
        ).double()
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(loss(network(x), y))
        optimizer.step()
        schedule.step()
    return TrainedNetwork(x, y, network.requires_grad_(False).eval())


def fit(task: TrainedNetwork, beta: float, c: float = C) -> DemoPanel:
    """Return the fitted curve of a regression at one β."""
    x = np.linspace(*INTERVAL, POINTS)
    values = steer(task.network, beta, c)(torch.from_numpy(x)[:, None])[:, 0].numpy()
    return DemoPanel(beta, values, slope_variation(x, values))


def division(task: TrainedNetwork, beta: float, c: float = C) -> DemoPanel:
    """Return the decision boundary of a classification at one β."""
    network = steer(task.network, beta, c)
    side = np.linspace(*SQUARE, SIDE)
    grid = torch.from_numpy(np.stack(np.meshgrid(side, side), -1))
    values = network(grid.reshape(-1, 2)).reshape(SIDE, SIDE).numpy()
    boundary = level_set(side, values)
    return DemoPanel(beta, values, turning(network, boundary), boundary)


def slope_variation(x: np.ndarray, values: np.ndarray) -> float:
    """Return the mean curvature of a function of one variable: the variation of its slope per length.

        κ = Σᵢ |sᵢ₊₁ − sᵢ| / (x_n − x_0)        with sᵢ = (f(xᵢ₊₁) − f(xᵢ)) / (xᵢ₊₁ − xᵢ)

    On a fine grid this is the mean of |f″| where f is smooth. Where f is piecewise affine, so that f″ is a sum of point
    masses, it is the sum of the jumps of slope over the length. So ReLU and every smaller β are measured alike.

    Args:
        x: points in ascending order, [n], n ≥ 3.
        values: f at these points, [n].

    Returns:
        κ ≥ 0; 0 for an affine function.
    """
    slopes = np.diff(values) / np.diff(x)
    return float(np.abs(np.diff(slopes)).sum() / (x[-1] - x[0]))


def level_set(side: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the lines on which a function on a square is 0, [n, 2] each; a closed line ends where it begins.

    Args:
        side: coordinates along either side, [m].
        values: values of the function, [m, m], the second coordinate first.
    """
    from contourpy import LineType, contour_generator  # matplotlib's own

    lines = contour_generator(side, side, values, line_type=LineType.Separate).lines(0.0)
    return tuple(np.asarray(line) for line in lines)


def turning(function: Field, boundary: Sequence[np.ndarray]) -> float:
    """Return the mean curvature of the boundary g = 0 in the plane, in radians per unit length.

        κ = Σᵢ ∠(nᵢ, nᵢ₊₁) / Σᵢ ‖pᵢ₊₁ − pᵢ‖        with n = ∇g / ‖∇g‖ at the points p along the boundary

    This is the mean of |curvature| where the boundary is smooth, 1/r for a circle. Where it is made of straight pieces,
    it is the sum of the angles at its corners over the length. The normals come from the gradient, since the short
    pieces of a line that was traced on a grid zigzag.

    Args:
        function: g, from [n, 2] to [n, 1].
        boundary: lines on which g is 0, from `level_set`.

    Returns:
        κ ≥ 0; 0 for straight lines, NaN where there is no boundary.
    """
    angle = length = 0.0
    for line in boundary:
        points = torch.from_numpy(line).requires_grad_()
        (normals,) = torch.autograd.grad(function(points).sum(), points)
        before, after = normals[:-1], normals[1:]
        cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
        angle += float(torch.atan2(cross, (before * after).sum(1)).abs().sum())
        length += float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())
    return angle / length if length else float("nan")


def draw(seed: int = 0) -> Figure:
    """Train both networks, steer them to every β, and draw them: a column for each β."""
    from matplotlib.figure import Figure

    classification, regression = spirals(seed), wave(seed)
    figure = Figure(figsize=(10, 4.75), facecolor=PAPER)
    axes = figure.subplots(2, len(BETAS), sharex="row", sharey="row")
    figure.subplots_adjust(left=0.075, right=0.99, top=0.85, bottom=0.115, wspace=0.1, hspace=0.48)
    for axis, beta in zip(axes[0], BETAS, strict=True):
        axis.set_title(f"β = {beta:g}", fontsize=12, color=INK, pad=6)
    divisions = [division(classification, beta) for beta in BETAS]
    fits = [fit(regression, beta) for beta in BETAS]
    for axis, panel in zip(axes[0], divisions, strict=True):
        _draw_division(axis, panel, classification)
    for axis, panel in zip(axes[1], fits, strict=True):
        _draw_fit(axis, panel, regression)
    _measured(axes[0], divisions, "curvature of\nboundary")
    _measured(axes[1], fits, "curvature\nof curve")
    figure.text(0.01, 0.955, "Two trained ReLU networks, bent by β alone: nothing is retrained", fontsize=13, color=INK)
    return figure


def _draw_division(axis: Axes, panel: DemoPanel, task: TrainedNetwork) -> None:
    side = np.linspace(*SQUARE, SIDE)
    fills = [region for _, region, _ in CLASSES]
    axis.contourf(side, side, panel.values, [-np.inf, 0.0, np.inf], colors=fills)
    for label, (colour, _, marker) in enumerate(CLASSES):
        x, y = task.x[task.y[:, 0] == label].T.numpy()
        axis.plot(x, y, marker, color=colour, markersize=2.2, markeredgewidth=0)
    for line in panel.boundary:
        axis.plot(*line.T, color=INK, linewidth=1.5)
    axis.set(xlim=SQUARE, ylim=SQUARE, xticks=[-1, 0, 1], yticks=[-1, 0, 1])


def _draw_fit(axis: Axes, panel: DemoPanel, task: TrainedNetwork) -> None:
    axis.plot(task.x[:, 0], task.y[:, 0], "o", color=CLEAN, markersize=2.2, markeredgewidth=0)
    axis.plot(np.linspace(*INTERVAL, POINTS), panel.values, color=ROBUST, linewidth=1.8)
    axis.set(xlim=INTERVAL, ylim=(-2, 2), xticks=[-0.5, 0, 0.5], yticks=[-2, 0, 2])


def _measured(axes: Sequence[Axes], panels: Sequence[DemoPanel], name: str) -> None:
    """Write the measured curvature below each picture, and its name beside the first."""
    for axis, panel in zip(axes, panels, strict=True):
        axis.tick_params(labelsize=8, color=INK, labelcolor=INK, labelleft=axis is axes[0])
        axis.set_xlabel(f"{panel.curvature:.2f}", fontsize=11, color=INK, labelpad=4)
    axes[0].annotate(
        name, (0, 0), xycoords=axes[0].xaxis.label, xytext=(-12, 5), textcoords="offset points", ha="right",
        va="center", fontsize=8, color=INK,
    )  # fmt: skip


def write(directory: Path, seed: int = 0) -> list[Path]:
    """Draw, and write ``figure_one.svg`` and ``figure_one.png``; the same bytes for the same seed.

    Raises:
        LeaderboardError: the directory cannot be written.
    """
    return write_figure(draw(seed), directory, "figure_one")
