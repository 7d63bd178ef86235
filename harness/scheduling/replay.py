"""Replay: adversarial images found under one steering, shown to the other steerings of the same model. Pure.

A steering whose own attacks failed on an image, but which an image found under another steering fools, was not robust
there: its attacks were weak. Only surviving images can still change a score, so only these are replayed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.api.records import Steering
from harness.api.trial import REPLAY, Attempt, Trial
from harness.scheduling.verdicts import Verdicts
from harness.util.hashing import sha256


def replays(
    verdicts: Verdicts, steerings: Sequence[Steering], images: Sequence[int], finished: np.ndarray, shown: np.ndarray
) -> dict[Trial, tuple[Trial, ...]]:
    """Return the trials of the replay, each with the trials whose adversarial images it shows.

    Args:
        verdicts: what is known of the attacks.
        steerings: all steerings.
        images: numbers of the images.
        finished: numbers of the steerings whose robust images are replayed.
        shown: numbers of the steerings whose adversarial images are shown.
    """
    found: dict[tuple[int, int], tuple[Trial, tuple[Trial, ...]]] = {}
    fooled = verdicts.fooled[shown]
    for position in np.flatnonzero(verdicts.alive[finished].any(axis=0) & fooled.any(axis=(0, 2))).tolist():
        attempts = verdicts.attempts[position]
        sources = tuple(
            Trial(steerings[shown[row]], images[position], attempts[attempt])
            for row, attempt in zip(*np.nonzero(fooled[:, position]), strict=True)
        )
        shows = Attempt(REPLAY, of=sha256([[trial.steering.identity(), *trial.attempt] for trial in sources]))
        for number in finished[verdicts.alive[finished, position]].tolist():
            found[number, position] = Trial(steerings[number], images[position], shows), sources
    return dict(found[key] for key in sorted(found))
