"""What RobustBench has published of a model of its zoo, and does a measured accuracy agree with it?"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib.resources import files

ALPHA = 0.001
"""How unlikely the measured accuracy must be before it is called unlike the published one."""


@dataclass(frozen=True)
class Published:
    """The figures of one model on one board, of the whole test set (ImageNet: RobustBench's 5,000 images).

    Args:
        clean: accuracy on clean images, in [0, 1].
        robust: what the board ranks by, in [0, 1]: the accuracy under AutoAttack, or the mean accuracy over the
            corruptions; None under another threat than the board's.
        eps: of the board's ball, in pixels; None where it has none.
        source: the file of RobustBench's repository in which the figures stand.
    """

    clean: float
    robust: float | None
    eps: float | None
    source: str


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


def unlike(clean_correct: int, n: int, published_clean: float) -> bool:
    """Whether ``clean_correct`` of ``n`` is further from the published accuracy than chance explains.

    The exact binomial test (Clopper & Pearson 1934), two-sided, at α = 0.001: the first ``n`` images of a test set are
    taken for a sample of it.

    Args:
        clean_correct: clean images that the untouched network classifies correctly, 0 … ``n``.
        n: images, at least 1.
        published_clean: in [0, 1].
    """
    from scipy.stats import binomtest

    return bool(binomtest(clean_correct, n, published_clean).pvalue < ALPHA)
