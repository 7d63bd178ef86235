"""LoRA and full fine-tuning of a backbone, on the training images of its probe.

Both start from the linear probe and train it along with the backbone (as Kumar et al. 2022, arXiv 2202.10054, advise),
with Adam. Learning rate and number of epochs are those with the best mean outcome (of equal ones, the lowest loss) on a
held-out share of the training images, which neither the weights nor the initial probe have seen; no epoch at all may be
best. The training is then repeated on all training images. There is no augmentation, and normalisation layers keep
their statistics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.analysis.selection import Holdout, selection_sets
from harness.analysis.task_types import TaskType
from harness.errors import ModelError
from harness.transfer import lora
from harness.transfer.probe_network import ProbeNetwork
from harness.transfer.settings import Tuning
from harness.util.batching import batched
from harness.util.randomness import seeded


@dataclass(frozen=True)
class LabelledImages:
    """Training images with their labels, as fine-tuning reads them.

    Args:
        read: function from positions to images [n, c, h, w] and labels, on the network's device.
        strata: stratum of each image, by which the held-out share is stratified; int [n].
        task_type: outcome and loss of an answer.
    """

    read: Callable[[Sequence[int]], tuple[Tensor, Tensor]]
    strata: np.ndarray
    task_type: TaskType


FORWARD_BATCH = 64
"""Images per forward pass where nothing is trained."""

FEW = 4
"""Training images on which a network is tried before it is trained, and after."""

FitProbe = Callable[[np.ndarray | None], ProbeNetwork]
"""Fits the linear probe of the untouched backbone on the training images at these positions, or on all of them."""


def adapt(method: str, fit_probe: FitProbe, images: LabelledImages, settings: Tuning) -> ProbeNetwork:
    """Train the backbone and its probe by ``method``.

    Args:
        method: one of `harness.transfer.settings.METHODS`.
        fit_probe: fits the probe that training starts from.
        images: all training images.
        settings: candidates for learning rate and epochs, and how they are chosen.

    Returns:
        An ordinary network, LoRA's matrices merged into its weights.

    Raises:
        ModelError: there are too few training images, peft is missing, or LoRA cannot be merged.
    """
    everything = np.arange(len(images.strata))
    held_out, rest = _split(images.strata, settings)
    if not len(held_out):
        raise ModelError(
            f"tuning.share: {settings.share:g} of {len(everything)} training images leaves none to choose on; raise it"
        )
    start = fit_probe(rest)
    scores = {(settings.learning_rates[0], 0): validation_score(start, images, held_out)}
    for rate in settings.learning_rates:
        for epoch, network in enumerate(train(method, start, images, rest, rate, settings), start=1):
            scores[rate, epoch] = validation_score(network, images, held_out)
    rate, epochs = max(scores, key=lambda candidate: scores[candidate])
    network = fit_probe(None)
    for _, trained in zip(range(epochs), train(method, network, images, everything, rate, settings), strict=False):
        network = trained
    return merged(network, _few(images)).eval().requires_grad_(False)


def _few(images: LabelledImages) -> Tensor:
    return images.read(range(min(FEW, len(images.strata))))[0]


def _split(strata: np.ndarray, settings: Tuning) -> tuple[np.ndarray, np.ndarray]:
    """Return the held-out positions and the rest; a class that would be held out entirely stays in the rest."""
    [(held_out, rest)] = selection_sets(Holdout(share=settings.share), strata, settings.seed)
    missing_in_rest = np.isin(strata[held_out], np.setdiff1d(strata[held_out], strata[rest]))
    return held_out[~missing_in_rest], np.sort(np.concatenate([rest, held_out[missing_in_rest]]))


def train(
    method: str, start: ProbeNetwork, images: LabelledImages, positions: np.ndarray, rate: float, settings: Tuning
) -> Iterator[ProbeNetwork]:
    """Train a copy of a network and yield it after each epoch, always the same object.

    Args:
        method: one of `harness.transfer.settings.METHODS`.
        start: network to start from; it is not changed.
        images: all training images.
        positions: positions of the images to train on.
        rate: Adam's learning rate.
        settings: number of epochs, batch size and seed.
    """
    with seeded(settings.seed, next(start.parameters(), None)):
        network = trainable_copy(method, start, _few(images))
    order = torch.Generator().manual_seed(settings.seed)
    optimiser = torch.optim.Adam([weight for weight in network.parameters() if weight.requires_grad], lr=rate)
    for _ in range(settings.epochs):
        shuffled = positions[torch.randperm(len(positions), generator=order).numpy()]
        for batch in batched(shuffled.tolist(), settings.batch_size):
            x, y = images.read(batch)
            optimiser.zero_grad()
            with torch.enable_grad():
                torch.autograd.backward(images.task_type.loss(network(x), y))
            optimiser.step()
        yield network


@torch.no_grad()
def validation_score(network: ProbeNetwork, images: LabelledImages, positions: np.ndarray) -> tuple[float, float]:
    """Return the mean outcome on the images at ``positions``, and their negated mean loss to break ties."""
    outcome = loss = 0.0
    for batch in batched(positions.tolist(), FORWARD_BATCH):
        x, y = images.read(batch)
        answers = network(x)
        outcome += float(images.task_type.outcome(answers, y).double().sum())
        loss += float(images.task_type.loss(answers, y)) * len(batch)
    return round(outcome / len(positions), 9), -loss / len(positions)


def trainable_copy(method: str, start: ProbeNetwork, x: Tensor) -> ProbeNetwork:
    """Return a copy of ``start`` in which ``method``'s weights can be trained; it computes the same at first.

    Args:
        method: one of `harness.transfer.settings.METHODS`.
        start: network to start from; it is not changed.
        x: a few training images [n, c, h, w], on which to find the layers that LoRA can be merged into.
    """
    network = copy.deepcopy(start).requires_grad_(False)
    if method == "fine_tuning":
        network.features.requires_grad_(True)
    else:
        rank = rank_of(method)
        network.features = lora.with_lora(network.features, lora.mergeable(start.features, rank, x), rank)
    network.head.requires_grad_(True)
    return network.eval()


def rank_of(method: str) -> int:
    """Return the rank of LoRA's matrices; ``lora-4`` has 4."""
    return int(method.removeprefix("lora-"))


def count_trained(method: str, start: ProbeNetwork, x: Tensor) -> int:
    """Return the number of parameters that a backward pass of ``method`` reaches, the probe's included.

    Args:
        method: one of `harness.transfer.settings.METHODS`.
        start: network that training starts from.
        x: a few training images [n, c, h, w].
    """
    network = trainable_copy(method, start, x)
    with torch.enable_grad():
        torch.autograd.backward(network(x).sum())
    return sum(weight.numel() for weight in network.parameters() if weight.grad is not None)


@torch.no_grad()
def merged(network: ProbeNetwork, x: Tensor) -> ProbeNetwork:
    """Merge LoRA's matrices, if there are any, into the weights.

    Args:
        network: trained network; it is changed in place.
        x: a few training images [n, c, h, w].

    Raises:
        ModelError: the merged network answers otherwise, so it is not what was trained.
    """
    before = network(x)
    network.features = lora.merge_lora(network.features)
    if not lora.same(before, after := network(x)):
        raise ModelError(
            f"merged into the weights, LoRA is not the network that was trained: its answers change by "
            f"{float((after - before).abs().max()):.2g}; leave it out of methods"
        )
    return network
