"""A tiny benchmark whose robust accuracy is known, and its images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

ATTACK = {"stages": ["apgd-ce", "square"], "iterations": 3, "queries": 5}


def images() -> tuple[np.ndarray, np.ndarray]:
    """Return 24 images of 8×8 pixels and their labels: in class y, quadrant y is brighter by 0.02 … 0.4.

    Every quadrant has one grey level, and the three others are equally dark, so ``tiny_networks:quadrants`` loses an
    image to L∞ as soon as 2 ε exceeds what its quadrant is brighter by.
    """
    drawn = np.random.default_rng(3)
    y = np.arange(24) % 4
    gaps = drawn.permutation(np.linspace(0.02, 0.4, 24))
    levels = np.repeat(drawn.uniform(0.25, 0.35, (24, 1)), 4, axis=1)
    levels[np.arange(24), y] += gaps
    x = np.kron(levels.reshape(24, 1, 2, 2), np.ones((4, 4)))
    return x.astype("float32"), y.astype("int64")


def save_images(folder: Path) -> None:
    """Write the images where `mapping` has them."""
    x, y = images()
    np.savez(folder / "images.npz", x=x, y=y)


def mapping(**changes: Any) -> dict[str, Any]:
    """Return a benchmark of 24 images in three shards, two β and two attacks; ``changes`` replace keys."""
    return {
        "models": [{"kind": "checkpoint", "builder": "tiny_networks:mixed"}],
        "dataset": {"kind": "arrays", "path": "images.npz"},
        "threat": {"kind": "Linf", "eps": 0.1, "attack": ATTACK},
        "steering": {"beta": [0.9, 0.5]},
        "batch_size": 8,
        "executor": {"kind": "inline"},
        "device": "cpu",
    } | changes


def few_cells(**changes: Any) -> dict[str, Any]:
    """Return the same with one shard, β and attack, for where every cell may cost a process that imports torch."""
    threat = {"kind": "Linf", "eps": 0.1, "attack": {"stages": ["apgd-ce"], "iterations": 3}}
    return mapping(batch_size=24, steering={"beta": [0.5]}, threat=threat) | changes
