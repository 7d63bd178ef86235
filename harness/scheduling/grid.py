"""The points of the grid, and their order. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from harness.api.records import FamilyName, Sites, Steering


def grid(
    betas: Sequence[float],
    cs: Sequence[float],
    sites: Sites,
    family: FamilyName = "relu",
    native: float = 1.0,
    methods: Sequence[str] = (),
) -> tuple[Steering, ...]:
    """Return the steerings to score: the baseline, the grid of (β, c) with β descending, then the other methods.

    Args:
        betas: values of β, in [0, 1].
        cs: values of c, in [0, 1].
        sites: calls of an activation that every point of the grid steers.
        family: family of activations that every point of the grid steers.
        native: β at which this family leaves the network untouched.
        methods: other ways to adapt the model, each scored once, with its activations as they are.
    """
    points = {Steering(beta, c, sites, family, native) for beta in betas for c in cs if beta != native}
    baseline = Steering(native, 1.0, sites, family, native).baseline
    others = (baseline._replace(method=method) for method in methods)
    return (baseline, *sorted(points, key=lambda point: (-point.beta, point.c)), *others)


def in_line(steerings: Sequence[Steering]) -> list[int]:
    """Return the numbers of the steerings in an order in which neighbours are alike; other methods are left out.

    Along β for one c, and back along β for the next.
    """
    points = [number for number, steering in enumerate(steerings) if not steering.method]
    cs = sorted({steerings[number].c for number in points})

    def place(number: int) -> tuple[int, float, int]:
        turn = cs.index(steerings[number].c)
        return turn, steerings[number].beta * (-1 if turn % 2 else 1), number

    return sorted(points, key=place)
