"""A linear probe: what scikit-learn fits on the features of training images, and how well that generalises. Pure.

Multinomial logistic regression on standardised features; for attributes a logistic regression each, for values ridge
regression. Regularisation is chosen by cross-validation on the training images alone, and the same folds tell for each
image how good the answer is of a probe that was fitted without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.analysis.selection import CrossValidation, selection_sets
from harness.api.dataset import strata
from harness.api.records import Target
from harness.errors import ModelError
from harness.transfer.settings import Probing

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

ITERATIONS = 2000
"""Of L-BFGS; far more than it needs but for the weakest regularisation, which cross-validation rarely chooses."""

SURE = 10.0
"""The log-odds of an attribute that all training images have."""


@dataclass(frozen=True)
class Fit:
    """A probe: ``answers = ((features − mean) / scale) @ weight.T + bias``.

    Args:
        mean: of each feature, [d].
        scale: its standard deviation, [d].
        weight: [k, d].
        bias: [k].
        C: the chosen one.
    """

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    C: float


@dataclass(frozen=True)
class ChosenC:
    """What cross-validation chose.

    Args:
        C: the best; of equal ones the smallest.
        outcomes: with it, how good the answer for each image is of a probe that was fitted without it, float [n].
    """

    C: float
    outcomes: np.ndarray


def fit(features: np.ndarray, y: np.ndarray, target: Target, settings: Probing) -> Fit:
    """The probe on these images, C chosen among them; see `choose_C`."""
    return fitted(features, y, target, choose_C(features, y, target, settings).C)


def choose_C(features: np.ndarray, y: np.ndarray, target: Target, settings: Probing) -> ChosenC:
    """The C that does best on folds that it was not fitted on.

    Args:
        features: float [n, d].
        y: as `Batch` has it, of the same images.
        target: what it is.
        settings: the candidates, and the folds.

    Raises:
        ModelError: these images cannot be fitted.
    """
    checked = [ChosenC(C, out_of_fold(features, features, y, target, C, settings)) for C in sorted(settings.C)]
    return max(checked, key=lambda chosen: round(float(chosen.outcomes.mean()), 12))


def out_of_fold(
    features: np.ndarray, shown: np.ndarray, y: np.ndarray, target: Target, C: float, settings: Probing
) -> np.ndarray:
    """For each training image, how good the answer is of a probe fitted on the other folds; float [n].

    Args:
        features: that the probes are fitted on, [n, d].
        shown: that they are asked about, [n, d]: the same, or those of the same images under a steering.
        y: labels.
        target: what they are.
        C: of all the probes.
        settings: the folds.
    """
    outcomes = np.empty(len(y))
    for others, fold in folds(y, settings):
        probe = pipeline(features[others], y[others], target, C)
        outcomes[fold] = judged(np.asarray(probe.predict(shown[fold])), y[fold], target)
    return outcomes


def folds(y: np.ndarray, settings: Probing) -> list[tuple[np.ndarray, np.ndarray]]:
    """The cut into folds, balanced by class: for each the positions of the others, and its own."""
    if settings.folds > len(y):
        raise ModelError(f"probe.folds: {settings.folds} folds of {len(y)} training images; use fewer folds")
    return selection_sets(CrossValidation(folds=settings.folds), strata(y), settings.seed)


def judged(answers: np.ndarray, y: np.ndarray, target: Target) -> np.ndarray:
    """How good predictions are, [n]; as `harness.analysis.task_types` judges what a network yields."""
    if target == "class":
        return np.asarray(answers == y, float)
    answers = answers.reshape(y.shape)
    graded = answers == y if target == "attributes" else -((answers - y) ** 2)
    return np.asarray(graded.mean(axis=1))


def pipeline(features: np.ndarray, y: np.ndarray, target: Target, C: float) -> Pipeline:
    """scikit-learn's own, fitted; on one thread, in float64.

    Raises:
        ModelError: it cannot be; says why.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    logistic = LogisticRegression(C=C, max_iter=ITERATIONS)
    estimators: Mapping[Target, Any] = {
        "class": logistic,
        "attributes": OneVsRestClassifier(logistic),  # answers for one that all images have, or none, with that
        "values": Ridge(alpha=1 / C),
    }
    made = make_pipeline(StandardScaler(), estimators[target])
    try:
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("ignore", "Label .* is present in all training examples")
            made.fit(features.astype(np.float64), y)
    except ValueError as error:
        raise ModelError(f"the probe cannot be fitted on {len(y)} training images: {error}; give it more") from error
    return made


def fitted(features: np.ndarray, y: np.ndarray, target: Target, C: float) -> Fit:
    """The probe fitted on these images, as numbers."""
    scaler, estimator = (step for _, step in pipeline(features, y, target, C).steps)
    if target == "attributes":
        weight, bias = _a_row_for_each_attribute(estimator.estimators_, features.shape[1])
    else:
        weight, bias = np.atleast_2d(estimator.coef_), np.atleast_1d(estimator.intercept_)
    if target == "class":
        weight, bias = _a_row_for_each_class(weight, bias, estimator.classes_)
    return Fit(scaler.mean_, scaler.scale_, weight, bias, C)


def _a_row_for_each_attribute(parts: Sequence[Any], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of each; sure ones where scikit-learn has but a constant."""
    nothing = np.zeros((1, width))
    weight = [part.coef_ if hasattr(part, "coef_") else nothing for part in parts]
    bias = [
        part.intercept_ if hasattr(part, "coef_") else np.where(part.predict(nothing) == 1, SURE, -SURE)
        for part in parts
    ]
    return np.concatenate(weight), np.concatenate(bias)


def _a_row_for_each_class(weight: np.ndarray, bias: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A logit for each class 0 … K − 1: of two classes scikit-learn has one row, and none of a class it never saw."""
    if len(classes) == 2:  # log-odds of the second: half of it to each side
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    missing = sorted(set(range(int(classes.max()) + 1)) - set(classes.tolist()))
    if missing:
        raise ModelError(
            f"the training images have none of class {missing[0]}; number the classes 0, 1, … without gaps"
        )
    return weight, bias
