"""Accuracies that RobustBench has published of the models in its zoo."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from importlib.resources import files

from harness.api.records import Published


def published(dataset: str, threat: str, name: str) -> Published | None:
    """Return the accuracies that RobustBench published of a model; None if it has not.

    Args:
        dataset: dataset of the board, "cifar10", "cifar100" or "imagenet".
        threat: threat of the board, "Linf", "L2" or "corruptions"; or "corruptions_3d", which the board of corruptions
            reports beside its own.
        name: name of the model, exactly as in RobustBench's zoo.

    Example:
        >>> published("cifar10", "Linf", "Standard").clean
        0.9478
    """
    return _table().get((dataset, threat, name))


@cache
def _table() -> Mapping[tuple[str, str, str], Published]:
    """Read ``published.csv``: ``model_info`` of RobustBench's repository in March 2025, with accuracies in percent."""
    text = files("harness.models").joinpath("published.csv").read_text(encoding="utf-8")
    return {(row["dataset"], row["threat"], row["model"]): _record(row) for row in csv.DictReader(text.splitlines())}


def _record(row: Mapping[str, str]) -> Published:
    board = row["threat"].removesuffix("_3d")  # one file of RobustBench holds both kinds of corruptions
    return Published(
        clean=float(Fraction(row["clean"]) / 100),
        robust=float(Fraction(row["robust"]) / 100),
        eps=float(Fraction(row["eps"])) if row["eps"] else None,
        source=f"RobustBench, model_info/{row['dataset']}/{board}/{row['model']}.json, March 2025",
    )
