"""Settings of the methods that train a backbone; see `harness.transfer.finetuning`. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    pass

from typing import get_args

Method = Literal["lora-1", "lora-2", "lora-4", "fine_tuning"]
METHODS: tuple[Method, ...] = get_args(Method)

Rate = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Positive = Annotated[int, Field(strict=True, gt=0)]


class Tuning(BaseModel):
    """How weights are trained.

    Args:
        epochs: at most so many.
        learning_rates: of Adam, to choose from.
        batch_size: training images a step.
        share: of the training images that learning rate and epochs are chosen on.
        seed: of that share, of LoRA's first matrices, and of the order of the images.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: Positive = 20
    learning_rates: Annotated[tuple[Rate, ...], Field(min_length=1)] = (1e-5, 1e-4, 1e-3, 1e-2)
    batch_size: Positive = 32
    share: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.2
    seed: Annotated[int, Field(strict=True, ge=0)] = 0


Strength = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


class Probing(BaseModel):
    """How the probe is fitted.

    Args:
        order: ``steer_first``: on the features of the steered backbone, for each steering anew; ``fit_first``: once,
            on those of the untouched one, and what it answers is steered.
        C: inverse strengths of the regularisation to choose from, as scikit-learn has it; of ridge regression alpha
            is its inverse.
        folds: of the cross-validation.
        seed: of the folds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: Literal["steer_first", "fit_first"] = "steer_first"
    C: Annotated[tuple[Strength, ...], Field(min_length=1)] = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    folds: Annotated[int, Field(strict=True, ge=2)] = 5
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
