"""What RobustBench has published of a model of its zoo, and does a measured accuracy agree with it?"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from importlib.resources import files

from harness.api.records import Published


def published(dataset: str, threat: str, name: str) -> Published | None:
    """RobustBench's figures of the model ``name``; None where it has none.

    Args:
        dataset: "cifar10", "cifar100" or "imagenet".
        threat: the board, "Linf", "L2" or "corruptions"; or "corruptions_3d", which stands beside the latter.
        name: exactly as in RobustBench's zoo.

    Example:
        >>> published("cifar10", "Linf", "Standard").clean
        0.9478
    """
    return _table().get((dataset, threat, name))


@cache
def _table() -> Mapping[tuple[str, str, str], Published]:
    """``published.csv``: ``model_info`` of RobustBench's repository in March 2025, accuracies in percent as there."""
    text = files("harness.models").joinpath("published.csv").read_text(encoding="utf-8")
    return {(row["dataset"], row["threat"], row["model"]): _record(row) for row in csv.DictReader(text.splitlines())}


def _record(row: Mapping[str, str]) -> Published:
    board = row["threat"].removesuffix("_3d")  # one file holds both kinds of corruptions
    return Published(
        clean=float(Fraction(row["clean"]) / 100),
        robust=float(Fraction(row["robust"]) / 100),
        eps=float(Fraction(row["eps"])) if row["eps"] else None,
        source=f"RobustBench, model_info/{row['dataset']}/{board}/{row['model']}.json, March 2025",
    )
