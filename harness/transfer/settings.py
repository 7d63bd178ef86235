"""Settings of the linear probe, and of the methods that train the backbone too. Needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from harness.api.validation import WRITTEN, Count

Method = Literal["lora-1", "lora-2", "lora-4", "fine_tuning"]
METHODS: tuple[Method, ...] = get_args(Method)

PositiveReal = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), WRITTEN]


class Tuning(BaseModel):
    """Settings of LoRA and fine-tuning; see `harness.transfer.finetuning`.

    Args:
        epochs: largest number of epochs.
        learning_rates: candidates for Adam's learning rate.
        batch_size: number of training images per step.
        share: share of the training images held out to choose the learning rate and the number of epochs.
        seed: seed of the held-out share, of LoRA's initial matrices and of the order of the images.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: Count = 20
    learning_rates: Annotated[tuple[PositiveReal, ...], Field(min_length=1, max_length=100)] = (1e-5, 1e-4, 1e-3, 1e-2)
    batch_size: Count = 32
    share: Annotated[float, Field(strict=True, gt=0, lt=1), WRITTEN] = 0.2
    seed: Annotated[int, Field(strict=True, ge=0)] = 0


class Probing(BaseModel):
    """Settings of the linear probe; see `harness.transfer.linear_probe`.

    Args:
        order: ``steer_first`` fits a probe for each steering, on the features of the steered backbone; ``fit_first``
            fits one probe on the features of the untouched backbone, which is steered afterwards.
        C: candidates for the inverse regularisation strength, as in scikit-learn; ridge regression has alpha = 1 / C.
        folds: number of folds of the cross-validation.
        seed: seed of the folds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: Literal["steer_first", "fit_first"] = "steer_first"
    C: Annotated[tuple[PositiveReal, ...], Field(min_length=1, max_length=100)] = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    folds: Annotated[int, Field(strict=True, ge=2, le=1_000)] = 5
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
