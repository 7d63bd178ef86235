"""Task types: classification, attributes and regression, and how an answer is scored in each. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.api.records import Target
from harness.errors import ModelError

TELLING = 16
"""Outputs in [0, 1] from which on they are no coincidence."""


class TaskType(ABC):
    """A type of labels, with its score and its training loss."""

    @abstractmethod
    def outcome(self, answers: Tensor, y: Tensor) -> Tensor:
        """Return the score of each answer, float [n]; more is better.

        Args:
            answers: outputs of the network, [n, k].
            y: labels, as in `harness.api.records.Batch`.
        """

    @abstractmethod
    def loss(self, answers: Tensor, y: Tensor) -> Tensor:
        """Return the training loss, a scalar; arguments as in `outcome`."""

    @abstractmethod
    def check_answers(self, answers: Tensor, y: Tensor) -> None:
        """Refuse a network whose answers on clean images do not suit the labels; arguments as in `outcome`.

        Raises:
            ModelError: their shape differs from the labels', or they are probabilities.
        """

    @abstractmethod
    def check_logits(self, answers: Tensor) -> None:
        """Refuse an untouched network whose outputs on several clean images [n, k] show that they are no logits.

        Raises:
            ModelError: they are probabilities.
        """

    def margin(self, answers: Tensor, y: Tensor) -> Tensor:
        """Return the distance of each answer from a wrong one, float [n]; by default its score."""
        return self.outcome(answers, y)


class Classification(TaskType):
    """Classification: the answer is the class with the largest logit."""

    def outcome(self, answers: Tensor, y: Tensor) -> Tensor:
        """Return 1 for each correct answer, otherwise 0."""
        return (answers.argmax(1) == y).float()

    def loss(self, answers: Tensor, y: Tensor) -> Tensor:
        """Return the cross-entropy."""
        return F.cross_entropy(answers, y)

    def check_answers(self, answers: Tensor, y: Tensor) -> None:
        """Expect a logit for each class, and no probabilities."""
        if answers.shape[1] == 1:
            raise ModelError(
                "it yields one logit an image, so every image has the same class; let it yield one for each class "
                "(of two classes, [-z, z] for one logit z)"
            )
        if y.max() >= answers.shape[1]:
            raise ModelError(
                f"the data have labels up to {y.max().item()}, but the network yields {answers.shape[1]} logits; "
                "use a dataset and a model with the same classes"
            )
        if _in_unit_interval(answers) and torch.allclose(answers.sum(1), answers.new_ones(())):
            raise _probabilities("softmax")

    def check_logits(self, answers: Tensor) -> None:
        """Refuse the outputs of a sigmoid: each in [0, 1], where logits would have both signs."""
        if answers.numel() >= TELLING and _in_unit_interval(answers):
            raise _probabilities("sigmoid")

    def margin(self, answers: Tensor, y: Tensor) -> Tensor:
        """Return the logit of ``y`` less the largest other one; negative where the image is misclassified."""
        others = answers.scatter(1, y[:, None], -torch.inf).amax(1)
        return answers.gather(1, y[:, None])[:, 0] - others


class MultilabelClassification(TaskType):
    """Multilabel classification: each attribute is present if its logit is positive."""

    def outcome(self, answers: Tensor, y: Tensor) -> Tensor:
        """Return the share of correct attributes, in [0, 1]."""
        return ((answers > 0) == (y == 1)).float().mean(1)

    def loss(self, answers: Tensor, y: Tensor) -> Tensor:
        """Return the binary cross-entropy, averaged over the attributes."""
        return F.binary_cross_entropy_with_logits(answers, y.float())

    def check_answers(self, answers: Tensor, y: Tensor) -> None:
        """Expect a logit for each attribute."""
        _same_width(answers, y, "attributes")

    def check_logits(self, answers: Tensor) -> None:
        """Accept any outputs: a few attributes may all be likely."""


class Regression(TaskType):
    """Regression of one or more numbers."""

    def outcome(self, answers: Tensor, y: Tensor) -> Tensor:
        """Return the negative squared error, averaged over the numbers of an image; at most 0."""
        return -(answers - y).square().mean(1)

    def loss(self, answers: Tensor, y: Tensor) -> Tensor:
        """Return the mean squared error."""
        return F.mse_loss(answers, y)

    def check_answers(self, answers: Tensor, y: Tensor) -> None:
        """Expect an output for each number."""
        _same_width(answers, y, "values")

    def check_logits(self, answers: Tensor) -> None:
        """Accept any outputs: values may be in [0, 1]."""


TASK_TYPES: Mapping[Target, TaskType] = {
    "class": Classification(),
    "attributes": MultilabelClassification(),
    "values": Regression(),
}


def _in_unit_interval(answers: Tensor) -> bool:
    return bool(answers.min() >= 0 and answers.max() <= 1)


def _probabilities(made_by: str) -> ModelError:
    return ModelError(
        f"it yields probabilities, not logits: attacks on them see vanishing gradients; remove its {made_by}",
        "probabilities",
    )


def _same_width(answers: Tensor, y: Tensor, what: str) -> None:
    if y.ndim != 2 or answers.shape != y.shape:
        raise ModelError(
            f"the data have {what} of shape {list(y.shape)}, but the network yields {list(answers.shape)}; train it, "
            "or fit its probe, on the same labels"
        )
