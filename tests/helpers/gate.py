"""Boards with their outcomes, made from bits, and a committed one to hold them against."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.analysis.metrics import METRICS
from harness.analysis.selection import InSample, choose
from harness.analysis.statistics import paired
from harness.api.records import BASELINE, Coverage, Steering, Target
from harness.api.trial import Cost
from harness.leaderboard import outcomes, ranking
from harness.leaderboard.regression import Board
from harness.leaderboard.scores import Headline, ModelEntry, Score

N = 200
SHARED: dict[str, object] = {
    "model": "m", "dataset": "digits[:200]", "threat": "Linf", "eps": "0.1", "attack": "standard", "n": N, "seed": 0,
    "weights_sha256": "w" * 64, "data_sha256": "d" * 64, "fitted_from": "", "train": "",
}  # fmt: skip
COST = Cost(9, 3, 1.0)
VERSIONS = {"ct_harness": "0", "torch": "2", "device": "cpu", "compiled": "no"}


def entry(
    robust: Mapping[Steering, np.ndarray],
    shared: dict[str, object] = SHARED,
    clean: np.ndarray | None = None,
    target: Target = "class",
) -> ModelEntry:
    """Return a model with these robust scores [N] by steering, and a headline that is chosen in sample."""
    clean = np.ones(N, np.float32) if clean is None else clean
    versions = VERSIONS | {"weights_sha256": str(shared["weights_sha256"])}
    scores = [
        Score(
            steering, clean, bits, True, {"clean": clean, "apgd-ce": bits}, {}, True, bits, frozenset(), COST, versions
        )
        for steering, bits in robust.items()
    ]
    choice = choose(InSample(), scores, np.zeros(N), 0)
    gain = paired(robust[BASELINE], choice.scores(scores)[1])
    headline, metric = Headline("none", choice, gain, "in-sample"), METRICS[target]
    return ModelEntry(dict(shared), scores, headline, Coverage(3, 3, {"relu": 3}), metric=metric)


def board(*entries: ModelEntry) -> Board:
    """Return the board of these models with its outcomes."""
    return Board(ranking.board(entries), outcomes.table(entries))


def flip(bits: np.ndarray, lose: int = 0, gain: int = 0) -> np.ndarray:
    """Return the bits with so many of the surviving images lost, and so many of the others gained."""
    bits = bits.copy()
    bits[np.flatnonzero(bits > 0)[:lose]] = 0
    bits[np.flatnonzero(bits == 0)[-gain:] if gain else []] = 1
    return bits


BITS = (np.random.default_rng(0).random(N) < 0.6).astype(np.float32)
GRID = {BASELINE: BITS, Steering(0.9): flip(BITS, 3, 5)}
COMMITTED = board(entry(GRID))
