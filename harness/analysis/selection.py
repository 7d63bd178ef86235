"""The choice of β that is not fooled: made on other images than those it is reported on. Pure.

The best of 30 β on the images that it is reported on gains one to three points when there is nothing to gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from harness.api.records import Steering


class Procedure(BaseModel):
    """A way of doing something, by its ``kind``, with its settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CrossValidation(Procedure):
    """On each fold the β that wins on the other folds; reported on all images.

    Args:
        folds: how many, stratified by label and fixed by the benchmark's seed.
    """

    kind: Literal["cross_validation"] = "cross_validation"
    folds: Annotated[int, Field(strict=True, ge=2)] = 5


class Holdout(Procedure):
    """The β that wins on a share of the images; reported on the others.

    Args:
        share: of the images to choose on, stratified by label and fixed by the benchmark's seed.
    """

    kind: Literal["holdout"] = "holdout"
    share: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.5


class InSample(Procedure):
    """The β that wins on all images, reported on the same: not to be trusted, and marked ``in-sample``."""

    kind: Literal["none"] = "none"


class OnTraining(Procedure):
    """The β that wins by cross-validation on the images that a model is fitted on; reported on all images."""

    kind: Literal["training"] = "training"


AnySelection = CrossValidation | Holdout | InSample | OnTraining
Selection = Annotated[AnySelection, Field(discriminator="kind")]


@dataclass(frozen=True)
class Scored:
    """What ranks a steering: clean and robust scores of each image, [n]: in [0, 1], or negative errors."""

    steering: Steering
    clean: np.ndarray
    robust: np.ndarray


def better(scored: Scored) -> tuple[float, float, float, float]:
    """Sorts the better steering first: robust, then clean, then β nearest the untouched network, then c nearest ½.

    The means are rounded, so that the order in which images are summed cannot break a tie.
    """
    steering = scored.steering
    return (
        -round(float(scored.robust.mean(dtype=np.float64)), 9),
        -round(float(scored.clean.mean(dtype=np.float64)), 9),
        abs(steering.beta - steering.native),
        abs(steering.c - 0.5),
    )


@dataclass(frozen=True)
class Choice:
    """The outcome of a procedure that chooses β.

    Args:
        chosen: the steering for each part of ``parts``.
        parts: positions of the images that each was reported on, [k] each; disjoint.
    """

    chosen: tuple[Steering, ...]
    parts: tuple[np.ndarray, ...]

    @property
    def reported(self) -> np.ndarray:
        """Positions of all reported images, ascending."""
        return np.sort(np.concatenate(self.parts))

    def scores(self, grid: Sequence[Scored]) -> tuple[np.ndarray, np.ndarray]:
        """Clean and robust scores of the `reported` images, in their order, each under the β chosen for it."""
        by_steering = {scored.steering: scored for scored in grid}
        clean = np.full(len(grid[0].clean), np.nan)
        robust = clean.copy()
        for steering, part in zip(self.chosen, self.parts, strict=True):
            clean[part] = by_steering[steering].clean[part]
            robust[part] = by_steering[steering].robust[part]
        return clean[self.reported], robust[self.reported]


def choose(
    selection: AnySelection,
    grid: Sequence[Scored],
    labels: np.ndarray,
    seed: int,
    training_scores: Sequence[Scored] = (),
) -> Choice:
    """Choose β among ``grid``, which holds the baseline, as ``selection`` says.

    Args:
        selection: the procedure.
        grid: every steering's scores on the same images.
        labels: of these images, int [n].
        seed: fixes the folds.
        training_scores: for a choice made on training images, every steering's scores there.
    """
    if isinstance(selection, OnTraining):
        return Choice((min(training_scores, key=better).steering,), (np.arange(len(labels)),))
    sets = selection_sets(selection, labels, seed)
    winners = tuple(min((_on(scored, chosen_on) for scored in grid), key=better).steering for chosen_on, _ in sets)
    return Choice(winners, tuple(reported_on for _, reported_on in sets))


def selection_sets(selection: AnySelection, labels: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each choice to be made on these images: the positions it is made on, and those it is reported on."""
    if isinstance(selection, OnTraining):
        return []
    everything = np.arange(len(labels))
    if isinstance(selection, InSample):
        return [(everything, everything)]
    order = by_label(labels, seed)
    position = np.arange(len(labels))
    if isinstance(selection, CrossValidation):
        deal = position % selection.folds  # like cards: sizes differ by at most one, in all and within each label
        return [(np.sort(order[deal != fold]), np.sort(order[deal == fold])) for fold in range(selection.folds)]
    to_choose = np.floor((position + 1) * selection.share) > np.floor(position * selection.share)
    return [(np.sort(order[to_choose]), np.sort(order[~to_choose]))]


def by_label(labels: np.ndarray, seed: int) -> np.ndarray:
    """Positions of the images, shuffled by ``seed`` and then ordered by label; every k-th is a stratified sample.

    scikit-learn's StratifiedKFold is not used since it refuses labels with fewer images than folds.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    return shuffled[np.argsort(np.asarray(labels)[shuffled], kind="stable")]


def _on(scored: Scored, positions: np.ndarray) -> Scored:
    return Scored(scored.steering, scored.clean[positions], scored.robust[positions])
