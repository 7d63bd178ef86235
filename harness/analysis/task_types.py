"""What a network is asked of an image, and how good its answer is: a class, attributes, or numbers. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.api.records import Target
from harness.errors import ModelError


class TaskType(ABC):
    """How answers are judged, and learned from."""

    @abstractmethod
    def outcome(self, answers: Tensor, y: Tensor) -> Tensor:
        """How good each answer is, float [n], more being better.

        Args:
            answers: what the network yields, [n, k].
            y: as `Batch` has it.
        """

    @abstractmethod
    def loss(self, answers: Tensor, y: Tensor) -> Tensor:
        """What training makes small, a number."""

    @abstractmethod
    def check_answers(self, answers: Tensor, y: Tensor) -> None:
        """Refuse a network whose answers on clean images do not fit the labels.

        Raises:
            ModelError: says what was expected.
        """

    def margin(self, answers: Tensor, y: Tensor) -> Tensor:
        """How far each answer is from a wrong one, float [n]: what is fragile is smaller."""
        return self.outcome(answers, y)


class Classification(TaskType):
    """One of several classes: the one with the largest logit."""

    def outcome(self, answers: Tensor, y: Tensor) -> Tensor:
        """1 where it is right."""
        return (answers.argmax(1) == y).float()

    def loss(self, answers: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(answers, y)

    def check_answers(self, answers: Tensor, y: Tensor) -> None:
        """No probabilities, and a logit for each class."""
        if y.max() >= answers.shape[1]:
            raise ModelError(
                f"the data have labels up to {y.max().item()}, but the network yields {answers.shape[1]} logits; "
                "use a data set and a model with the same classes"
            )
        sums_to_one = torch.allclose(answers.sum(1), answers.new_ones(()))
        if answers.min() >= 0 and answers.max() <= 1 and sums_to_one:
            raise ModelError(
                "it yields probabilities, not logits: attacks on them see vanishing gradients; remove its softmax",
                "probabilities",
            )

    def margin(self, answers: Tensor, y: Tensor) -> Tensor:
        """By how much the logit of ``y`` leads the best other one; negative where the image is misclassified."""
        others = answers.scatter(1, y[:, None], -torch.inf).amax(1)
        return answers.gather(1, y[:, None])[:, 0] - others


class MultilabelClassification(TaskType):
    """Several attributes, each there (a positive logit) or not."""

    def outcome(self, answers: Tensor, y: Tensor) -> Tensor:
        """The share of the attributes that are right, in [0, 1]."""
        return ((answers > 0) == (y == 1)).float().mean(1)

    def loss(self, answers: Tensor, y: Tensor) -> Tensor:
        """Binary cross-entropy, mean over the attributes."""
        return F.binary_cross_entropy_with_logits(answers, y.float())

    def check_answers(self, answers: Tensor, y: Tensor) -> None:
        """A logit for each attribute."""
        _same_width(answers, y, "attributes")


class Regression(TaskType):
    """Numbers."""

    def outcome(self, answers: Tensor, y: Tensor) -> Tensor:
        """The negative of the squared error, mean over the numbers of an image; ≤ 0."""
        return -(answers - y).square().mean(1)

    def loss(self, answers: Tensor, y: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(answers, y)

    def check_answers(self, answers: Tensor, y: Tensor) -> None:
        """A number for each."""
        _same_width(answers, y, "values")


TASK_TYPES: Mapping[Target, TaskType] = {
    "class": Classification(),
    "attributes": MultilabelClassification(),
    "values": Regression(),
}


def _same_width(answers: Tensor, y: Tensor, what: str) -> None:
    if y.ndim != 2 or answers.shape != y.shape:
        raise ModelError(
            f"the data have {what} of shape {list(y.shape)}, but the network yields {list(answers.shape)}; it must be "
            "trained, or its probe fitted, on the same"
        )
