"""Figure 1: the measures have closed forms, the networks do what the picture says, and the bytes are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Command
from torch import Tensor

from harness.report import demo_figure
from harness.report.demo_figure import (
    BETAS,
    INTERVAL,
    SIDE,
    SQUARE,
    TrainedNetwork,
    division,
    fit,
    level_set,
    slope_variation,
    turning,
)


@pytest.fixture(scope="module")
def spirals() -> TrainedNetwork:
    return demo_figure.spirals()


@pytest.fixture(scope="module")
def wave() -> TrainedNetwork:
    return demo_figure.wave()


def test_the_curvature_of_curves() -> None:
    x = np.linspace(-1, 1, 20_001)
    assert slope_variation(x, 3 * x - 1) == pytest.approx(0, abs=1e-6)
    assert slope_variation(x, x**2) == pytest.approx(2, rel=1e-3)  # f″ = 2
    assert slope_variation(x, np.maximum(x, 0)) == pytest.approx(1 / 2)  # one jump of 1 over a length of 2
    assert slope_variation(x, np.sin(np.pi * x)) == pytest.approx(2 * np.pi, rel=1e-3)  # mean of |π² sin πx|


@pytest.mark.parametrize("radius", [0.3, 0.9])
def test_the_curvature_of_a_circle_is_one_over_its_radius(radius: float) -> None:
    side = np.linspace(*SQUARE, SIDE)
    x, y = np.meshgrid(side, side)
    lines = level_set(side, x**2 + y**2 - radius**2)
    assert len(lines) == 1
    assert np.hypot(*lines[0].T) == pytest.approx(radius, abs=1e-3)

    def circle(points: Tensor) -> Tensor:
        return points.square().sum(1, keepdim=True) - radius**2

    assert turning(circle, lines) == pytest.approx(1 / radius, rel=1e-2)


def test_the_curvature_of_straight_lines_and_of_a_corner() -> None:
    side = np.linspace(*SQUARE, SIDE)
    x, y = np.meshgrid(side, side)
    assert turning(lambda points: points @ torch.ones(2, 1, dtype=torch.float64), level_set(side, x + y)) < 1e-9
    corner = level_set(side, np.maximum(x, y))
    found = turning(lambda points: points.amax(1, keepdim=True), corner)
    assert found == pytest.approx(np.pi / 2 / 2.4, rel=2e-2)  # a right angle on two arms of 1.2
    assert np.isnan(turning(circle_at_infinity, level_set(side, np.ones_like(x))))


def circle_at_infinity(points: Tensor) -> Tensor:
    return torch.ones(len(points), 1)


def test_the_networks_have_learned_their_tasks(spirals: TrainedNetwork, wave: TrainedNetwork) -> None:
    right = (spirals.network(spirals.x) > 0) == (spirals.y > 0.5)
    assert right.double().mean() > 0.95
    assert (wave.network(wave.x) - wave.y).square().mean() < 0.01


def test_at_one_it_is_the_untouched_network_and_at_zero_nearly_linear(
    spirals: TrainedNetwork, wave: TrainedNetwork
) -> None:
    x = torch.linspace(*INTERVAL, demo_figure.POINTS, dtype=torch.float64)[:, None]
    panels = {beta: fit(wave, beta) for beta in BETAS}
    np.testing.assert_allclose(panels[1.0].values, wave.network(x)[:, 0].numpy(), atol=1e-12)
    assert panels[0.0].curvature < panels[0.5].curvature < panels[0.7].curvature < panels[1.0].curvature / 2
    assert division(spirals, 0.0).curvature < 0.1 < division(spirals, 1.0).curvature
    for beta in BETAS:
        assert len(division(spirals, beta).boundary) >= 1


def test_the_command_draws_the_same_picture_again_and_another_for_another_seed(here: Path, command: Command) -> None:
    for arguments in (["-o", "a"], ["-o", "b"], ["-o", "c", "--seed", "1"]):
        ended = command("demo", *arguments)
        assert ended.code == 0, ended.err
    for suffix in ("svg", "png"):
        a, b, c = ((here / folder / f"figure_one.{suffix}").read_bytes() for folder in "abc")
        assert a == b != c
    text = (here / "a" / "figure_one.svg").read_text()
    assert all(f"β = {beta:g}" in text for beta in BETAS)
