"""What else can be done with a backbone on the same training images: LoRA, and full fine-tuning.

Both begin as the linear probe and train its weights too (as Kumar et al. 2022, arXiv 2202.10054, advise), with Adam.
Learning rate and number of epochs are those that do best (of equal ones with the least loss) on a share of the training
images that neither the weights nor the probe they begin with have seen; no epoch at all may be best. Then all training
images are used. Nothing is augmented, and normalisation layers keep their statistics.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from threading import RLock

import numpy as np
import torch
from torch import Tensor, nn

from harness.analysis.selection import Holdout, selection_sets
from harness.analysis.task_types import TaskType
from harness.errors import ModelError
from harness.transfer.probe_network import Probed
from harness.transfer.settings import Tuning
from harness.util.batching import batched


@dataclass(frozen=True)
class TrainingData:
    """Training images.

    Args:
        read: from positions to images [n, c, h, w] and labels, on the network's device.
        strata: what a share of them is balanced by, int [n].
        task_type: how answers are judged.
    """

    read: Callable[[Sequence[int]], tuple[Tensor, Tensor]]
    strata: np.ndarray
    task_type: TaskType


AT_ONCE = 64
"""Images in one forward pass, where nothing is trained."""

Begin = Callable[[np.ndarray | None], Probed]
"""The linear probe fitted on the training images at these positions, or on all, on the untouched backbone."""


def adapted(method: str, begin: Begin, training_data: TrainingData, settings: Tuning) -> Probed:
    """The backbone and its probe, trained by ``method``; an ordinary network, LoRA's matrices merged into its weights.

    Raises:
        ModelError: the training images are too few, or peft is missing.
    """
    everything = np.arange(len(training_data.strata))
    held, rest = _share(training_data.strata, settings)
    if not len(held):
        raise ModelError(
            f"tuning.share: {settings.share:g} of {len(everything)} training images leaves none to choose on"
        )
    start = begin(rest)
    found = {(settings.learning_rates[0], 0): merit(start, training_data, held)}
    for rate in settings.learning_rates:
        for epoch, network in enumerate(training(method, start, training_data, rest, rate, settings), start=1):
            found[rate, epoch] = merit(network, training_data, held)
    rate, epochs = max(found, key=lambda checked: found[checked])
    network = begin(None)
    for _, trained in zip(
        range(epochs), training(method, network, training_data, everything, rate, settings), strict=False
    ):
        network = trained
    return merged(network).eval().requires_grad_(False)


def _share(strata: np.ndarray, settings: Tuning) -> tuple[np.ndarray, np.ndarray]:
    """What is held out, and the rest, which has every class: of what has but one image, that is not held."""
    [(held, rest)] = selection_sets(Holdout(share=settings.share), strata, settings.seed)
    only_held = np.isin(strata[held], np.setdiff1d(strata[held], strata[rest]))
    return held[~only_held], np.sort(np.concatenate([rest, held[only_held]]))


def training(
    method: str, start: Probed, training_data: TrainingData, positions: np.ndarray, rate: float, settings: Tuning
) -> Iterator[Probed]:
    """The network after each epoch, always the same object; ``start`` is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = trainable(method, start)
    order = torch.Generator().manual_seed(settings.seed)
    optimiser = torch.optim.Adam([weight for weight in network.parameters() if weight.requires_grad], lr=rate)
    for _ in range(settings.epochs):
        shuffled = positions[torch.randperm(len(positions), generator=order).numpy()]
        for batch in batched(shuffled.tolist(), settings.batch_size):
            x, y = training_data.read(batch)
            optimiser.zero_grad()
            with torch.enable_grad():
                torch.autograd.backward(training_data.task_type.loss(network(x), y))
            optimiser.step()
        yield network


@torch.no_grad()
def merit(network: Probed, training_data: TrainingData, positions: np.ndarray) -> tuple[float, float]:
    """The mean outcome on these training images, and the negative of the loss."""
    outcome = loss = 0.0
    for part in batched(positions.tolist(), AT_ONCE):
        x, y = training_data.read(part)
        answers = network(x)
        outcome += float(training_data.task_type.outcome(answers, y).double().sum())
        loss += float(training_data.task_type.loss(answers, y)) * len(part)
    return round(outcome / len(positions), 9), -loss / len(positions)


def trainable(method: str, start: Probed) -> Probed:
    """A copy of ``start`` whose weights can be trained as ``method`` says; it computes the same at first."""
    network = copy.deepcopy(start).requires_grad_(False)
    if method == "fine_tuning":
        network.features.requires_grad_(True)
    else:
        network.features = with_lora(network.features, int(method.removeprefix("lora-")))
    network.head.requires_grad_(True)
    return network.eval()


def count(method: str, start: Probed) -> int:
    """How many numbers ``method`` trains, the probe's among them."""
    return sum(weight.numel() for weight in trainable(method, start).parameters() if weight.requires_grad)


def with_lora(features: nn.Module, rank: int) -> nn.Module:
    """Low-rank matrices (Hu et al. 2021, arXiv 2106.09685) beside linear layers and convolutions; scaled by one.

    Left out are convolutions in groups, which peft cannot merge, and subclasses of either, such as those inside of
    ``nn.MultiheadAttention``.

    Raises:
        ModelError: peft is not installed, or there is no such layer.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ModelError(f"LoRA needs peft ({error}); pip install 'ct-harness[transfer]'") from error
    names = [
        name
        for name, module in features.named_modules()
        if type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)
    ]
    if not names:
        raise ModelError("LoRA needs linear layers or convolutions, and the backbone has none; leave it out")
    wanted = "|".join(map(re.escape, names))
    made: nn.Module = get_peft_model(features, LoraConfig(r=rank, lora_alpha=rank, target_modules=f"^(?:{wanted})$"))
    return made


def peft_version(method: str) -> str:
    """That of what a method is made with; empty for those that need no other library."""
    return version("peft") if method.startswith("lora") else ""


def merged(network: Probed) -> Probed:
    """The same function, LoRA's matrices in the weights."""
    merge = getattr(network.features, "merge_and_unload", None)
    if merge is not None:
        from tqdm import tqdm

        tqdm.set_lock(RLock())  # peft draws a bar; the bar's own lock is a semaphore that a stopped worker would leave
        network.features = merge()
    return network
