"""Linear probe: scikit-learn's fit on the features of training images, and its cross-validated outcomes. Pure.

Multinomial logistic regression on standardised features for classes, one logistic regression per attribute, ridge
regression for values. The regularisation is chosen by cross-validation on the training images alone. The same folds
score each image with a probe that was fitted without it.
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
"""Iterations of L-BFGS: far more than it needs, except under the weakest regularisation, which is rarely chosen."""

CERTAIN = 10.0
"""Log-odds of an attribute that all training images have."""


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: ``answers = ((features − mean) / scale) @ weight.T + bias``.

    Args:
        mean: mean of each feature, [d].
        scale: standard deviation of each feature, [d].
        weight: weights of each answer, [k, d].
        bias: bias of each answer, [k].
        C: inverse regularisation strength that it was fitted with.
    """

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    C: float


@dataclass(frozen=True)
class ChosenC:
    """The choice of cross-validation.

    Args:
        C: candidate with the best mean outcome; the smallest of equal ones.
        outcomes: outcome of each training image with this C, out of fold; float [n].
    """

    C: float
    outcomes: np.ndarray


def fit(features: np.ndarray, y: np.ndarray, target: Target, settings: Probing) -> LinearProbe:
    """Fit a probe on these images, with the C that cross-validation chooses on them; see `choose_C`."""
    return fit_with_C(features, y, target, choose_C(features, y, target, settings).C)


def choose_C(features: np.ndarray, y: np.ndarray, target: Target, settings: Probing) -> ChosenC:
    """Choose C by cross-validation.

    Args:
        features: features of the training images, float [n, d].
        y: labels of the training images; see `Batch`.
        target: kind of the labels.
        settings: candidates for C, and the folds.

    Raises:
        ModelError: no probe can be fitted on these images.
    """
    candidates = [ChosenC(C, out_of_fold(features, features, y, target, C, settings)) for C in sorted(settings.C)]
    return max(candidates, key=lambda candidate: round(float(candidate.outcomes.mean()), 12))


def out_of_fold(
    features: np.ndarray, scored: np.ndarray, y: np.ndarray, target: Target, C: float, settings: Probing
) -> np.ndarray:
    """Return the outcome of each training image with a probe that was fitted on the other folds; float [n].

    Args:
        features: features that the probes are fitted on, [n, d].
        scored: features that the probes answer, [n, d]: the same, or those of the same images under a steering.
        y: labels of the images.
        target: kind of the labels.
        C: inverse regularisation strength of every probe.
        settings: number and seed of the folds.
    """
    outcomes = np.empty(len(y))
    for others, fold in folds(y, settings):
        pipeline = fit_pipeline(features[others], y[others], target, C)
        outcomes[fold] = grade(np.asarray(pipeline.predict(scored[fold])), y[fold], target)
    return outcomes


def folds(y: np.ndarray, settings: Probing) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the positions outside and inside each fold, stratified by class.

    Raises:
        ModelError: there are more folds than images.
    """
    if settings.folds > len(y):
        raise ModelError(f"probe.folds: {settings.folds} folds of {len(y)} training images; use fewer folds")
    return selection_sets(CrossValidation(folds=settings.folds), strata(y), settings.seed)


def grade(answers: np.ndarray, y: np.ndarray, target: Target) -> np.ndarray:
    """Return the outcome of each prediction, [n], as `harness.analysis.task_types` grades a network's answers."""
    if target == "class":
        return np.asarray(answers == y, float)
    answers = answers.reshape(y.shape)
    grades = answers == y if target == "attributes" else -((answers - y) ** 2)
    return np.asarray(grades.mean(axis=1))


def fit_pipeline(features: np.ndarray, y: np.ndarray, target: Target, C: float) -> Pipeline:
    """Fit scikit-learn's own pipeline, on one thread and in float64.

    Raises:
        ModelError: scikit-learn cannot fit these images; says why.
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
        "attributes": OneVsRestClassifier(
            logistic
        ),  # answers with a constant for an attribute that all images have, or none
        "values": Ridge(alpha=1 / C),
    }
    pipeline = make_pipeline(StandardScaler(), estimators[target])
    try:
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("ignore", "Label .* is present in all training examples")
            pipeline.fit(features.astype(np.float64), y)
    except ValueError as error:
        raise ModelError(
            f"the probe cannot be fitted on {len(y)} training images: {error}; use more of them"
        ) from error
    return pipeline


def fit_with_C(features: np.ndarray, y: np.ndarray, target: Target, C: float) -> LinearProbe:
    """Fit a probe on these images with a given C."""
    scaler, estimator = (step for _, step in fit_pipeline(features, y, target, C).steps)
    if target == "attributes":
        weight, bias = _attribute_rows(estimator.estimators_, features.shape[1])
    else:
        weight, bias = np.atleast_2d(estimator.coef_), np.atleast_1d(estimator.intercept_)
    if target == "class":
        weight, bias = _class_rows(weight, bias, estimator.classes_)
    return LinearProbe(scaler.mean_, scaler.scale_, weight, bias, C)


def _attribute_rows(estimators: Sequence[Any], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights [k, d] and biases [k] of the log-odds; constants where scikit-learn fitted a constant."""
    zero = np.zeros((1, width))
    weight = [estimator.coef_ if hasattr(estimator, "coef_") else zero for estimator in estimators]
    bias = [
        estimator.intercept_
        if hasattr(estimator, "coef_")
        else np.where(estimator.predict(zero) == 1, CERTAIN, -CERTAIN)
        for estimator in estimators
    ]
    return np.concatenate(weight), np.concatenate(bias)


def _class_rows(weight: np.ndarray, bias: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and biases of a logit per class 0 … K − 1; scikit-learn has a single row for two classes.

    Raises:
        ModelError: a class is missing.
    """
    if len(classes) == 2:  # the row is the log-odds of the second class: half of it for each
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    missing = sorted(set(range(int(classes.max()) + 1)) - set(classes.tolist()))
    if missing:
        raise ModelError(
            f"the training images have none of class {missing[0]}; number the classes 0, 1, … without gaps"
        )
    return weight, bias
