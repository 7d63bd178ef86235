"""Selection of β without selection bias: chosen on other images than those it is reported on. Pure.

Chosen on the very images it is reported on, the best of 30 β gains one to three points where there is nothing to gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from harness.api.records import Steering
from harness.api.validation import WRITTEN


class Procedure(BaseModel):
    """A procedure, named by its ``kind``, with its settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CrossValidation(Procedure):
    """Cross-validation: on each fold, the β that wins on the other folds; reported on all images.

    Args:
        folds: number of folds, stratified by label and fixed by the benchmark's seed.
    """

    kind: Literal["cross_validation"] = "cross_validation"
    folds: Annotated[int, Field(strict=True, ge=2, le=1_000)] = 5


class Holdout(Procedure):
    """Holdout: the β that wins on a share of the images; reported on the others.

    Args:
        share: share of the images to choose on, in (0, 1), stratified by label and fixed by the benchmark's seed.
    """

    kind: Literal["holdout"] = "holdout"
    share: Annotated[float, Field(strict=True, gt=0, lt=1), WRITTEN] = 0.5


class InSample(Procedure):
    """Choice in sample: the β that wins on all images, reported on the same. Biased, and marked ``in-sample``."""

    kind: Literal["none"] = "none"


class OnTraining(Procedure):
    """Choice on training images: the β that wins by cross-validation on them; reported on all scored images."""

    kind: Literal["training"] = "training"


AnySelection = CrossValidation | Holdout | InSample | OnTraining
Selection = Annotated[AnySelection, Field(discriminator="kind")]


@dataclass(frozen=True)
class Scored:
    """Scores by which a steering is ranked.

    Args:
        steering: the steering that was scored.
        clean: clean score of each image, [n]: in [0, 1], or a negative error.
        robust: robust score of each image, [n], likewise.
    """

    steering: Steering
    clean: np.ndarray
    robust: np.ndarray


def better(scored: Scored) -> tuple[float, float, float, float]:
    """Return a sort key, smaller for the better steering.

    By robust score, then clean score, then β nearest that of the untouched network, then c nearest ½. The means are
    rounded, so that the order in which images are summed cannot break a tie.
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
    """The β that a procedure has chosen.

    Args:
        chosen: the chosen steering for each part of the images.
        parts: positions of the images that each choice is reported on, [k] each; disjoint.
    """

    chosen: tuple[Steering, ...]
    parts: tuple[np.ndarray, ...]

    @property
    def reported(self) -> np.ndarray:
        """Positions of all reported images, ascending."""
        return np.sort(np.concatenate(self.parts))

    def scores(self, grid: Sequence[Scored]) -> tuple[np.ndarray, np.ndarray]:
        """Return clean and robust scores of the `reported` images, in their order, each under the β chosen for it.

        Args:
            grid: scores of every steering on the same images.
        """
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
    """Choose β by a procedure.

    Args:
        selection: the procedure.
        grid: scores of every steering on the same images, the baseline among them.
        labels: labels of these images, int [n], by which folds are stratified.
        seed: seed of the folds.
        training_scores: scores of every steering on the training images; needed only for a choice made on them.
    """
    if isinstance(selection, OnTraining):
        return Choice((min(training_scores, key=better).steering,), (np.arange(len(labels)),))
    sets = selection_sets(selection, labels, seed)
    winners = tuple(min((_on(scored, chosen_on) for scored in grid), key=better).steering for chosen_on, _ in sets)
    return Choice(winners, tuple(reported_on for _, reported_on in sets))


def selection_sets(selection: AnySelection, labels: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the positions of the images that each choice is made on, and of those that it is reported on.

    Args:
        selection: the procedure; one that chooses on training images has no sets.
        labels: labels of the images, int [n], by which folds are stratified.
        seed: seed of the folds.
    """
    if isinstance(selection, OnTraining):
        return []
    everything = np.arange(len(labels))
    if isinstance(selection, InSample):
        return [(everything, everything)]
    order = by_label(labels, seed)
    position = np.arange(len(labels))
    if isinstance(selection, CrossValidation):
        fold_of = position % selection.folds  # fold sizes differ by at most one, in all and within each label
        return [(np.sort(order[fold_of != fold]), np.sort(order[fold_of == fold])) for fold in range(selection.folds)]
    to_choose = np.floor((position + 1) * selection.share) > np.floor(position * selection.share)
    return [(np.sort(order[to_choose]), np.sort(order[~to_choose]))]


def by_label(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the positions of the images, shuffled and then sorted by label, so that every k-th is a stratified sample.

    scikit-learn's StratifiedKFold would refuse labels with fewer images than folds.

    Args:
        labels: labels of the images, int [n].
        seed: seed of the shuffling.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    return shuffled[np.argsort(np.asarray(labels)[shuffled], kind="stable")]


def _on(scored: Scored, positions: np.ndarray) -> Scored:
    return Scored(scored.steering, scored.clean[positions], scored.robust[positions])
