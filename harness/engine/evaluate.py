"""Evaluation of a cell: run its stage, verify the images it made, and judge them by a fresh forward pass."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from harness.analysis.task_types import TASK_TYPES
from harness.api.records import Batch
from harness.api.threat import Flag
from harness.api.work import Adversaries, Cell, Outcome
from harness.engine.acceleration import attacking
from harness.engine.images import source
from harness.engine.numerics import reproducible, resolve
from harness.engine.provenance import provenance
from harness.engine.session import ModelSession, model_session
from harness.engine.verification import logits, verify
from harness.errors import ModelError
from harness.scheduling.trials import CLEAN, MARGIN, REPLAY, REPLAY_FIRST, TRAINING

REPLAY_BATCH = 256
"""Candidates of a replay in one forward pass."""


def evaluate(cell: Cell) -> Outcome:
    """Compute the outcome of ``cell``: the same bits in any process and in any order.

    Raises:
        ModelError: the network cannot be scored (NaN logits, probabilities, too few classes, an attack's output that
            the threat does not allow), or its weights have changed since the run began.
    """
    task = cell.task
    device = resolve(task.device)
    session = model_session(task.model, device, task.offline, task.normalised)
    if session.loaded.sha256 != task.weights_sha256:
        raise ModelError(
            f"its weights changed while the benchmark ran ({task.weights_sha256[:12]} before); run it again"
        )
    if cell.stage == TRAINING:
        return _score_training(cell, session, device)
    batch = session.to_input_space(
        source(task.dataset, task.preprocessing, task.offline).read(cell.surviving).to(device)
    )
    with reproducible(), _flags() as flags:
        session.to_channels_last(batch.x[:1])
        started = time.perf_counter()  # a probe's fit under this steering counts as time of its first cell
        network = session.steered(cell.steering, batch.x[:1])
        attacked = session.attacked(cell, batch.x[:2]) if cell.stage in task.attacks else network
        scores, images = _run_stage(cell, network, attacked, batch)
        seconds = time.perf_counter() - started
    values = np.zeros(len(cell.shard.images), np.float32)
    values[np.isin(cell.shard.images, cell.surviving)] = scores.cpu().numpy()
    adversaries, fooled = None, scores == 0
    if cell.stage in (REPLAY_FIRST, *task.attacks) and fooled.any():
        adversaries = Adversaries(images[fooled].cpu(), tuple(batch.indices[fooled].tolist()))
    made_with = provenance(device) | session.loaded.fitted(cell.steering)
    return Outcome(cell.key, values, seconds, tuple(sorted(flags)), made_with, adversaries)


def _score_training(cell: Cell, session: ModelSession, device: str) -> Outcome:
    """Score the training images by cross-validation, each with what was fitted without it."""
    task, started = cell.task, time.perf_counter()
    assert task.model.training is not None
    example = source(task.model.training, task.preprocessing, task.offline).read(cell.surviving[:1])
    with reproducible(), _flags() as flags:
        session.to_channels_last(example.x.to(device))
        values = session.loaded.training_scores(cell.steering)
    return Outcome(cell.key, values, time.perf_counter() - started, tuple(sorted(flags)), provenance(device))


def _run_stage(cell: Cell, network: nn.Module, attacked: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Run the stage of ``cell`` on the images of ``batch``.

    Args:
        cell: says which stage of which task.
        network: the network that judges.
        attacked: the same network as attacks run it: compiled, say, or in half precision.
        batch: the surviving images.

    Returns:
        A score for each image, float [n] (in the stage `MARGIN`, its margin), and the perturbed images [n, c, h, w].
    """
    threat, task_type = cell.task.threat, TASK_TYPES[cell.task.dataset.target]
    if cell.stage == MARGIN:
        return task_type.margin(logits(network, batch.x), batch.y), batch.x
    if cell.stage in (REPLAY, REPLAY_FIRST):
        return _replay(cell, network, batch)
    if cell.stage == CLEAN:
        task_type.check_answers(logits(network, batch.x), batch.y)
        if not cell.task.normalised:
            threat.inspect(network, batch)
        images = batch.x
    else:
        with attacking(cell.task.precision):
            images = threat.perturb(cell.stage, attacked, batch, cell.seed).detach()
        verify(threat, batch.x, images, normalised=cell.task.normalised)
    return task_type.outcome(logits(network, images), batch.y), images


def _replay(cell: Cell, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Try all candidates of ``cell``, verified once more, on the network.

    Returns:
        1 for each image that survives all of its candidates, else 0, float [n]; and the images [n, c, h, w], each of
        those that do not survive replaced by a candidate that fooled the network.
    """
    assert cell.candidates is not None
    survived = torch.ones(len(batch), device=batch.x.device)
    if not cell.candidates.indices:
        return survived, batch.x
    position = {image: index for index, image in enumerate(cell.surviving)}
    originals = torch.tensor([position[image] for image in cell.candidates.indices], device=batch.x.device)
    perturbed = batch.x.clone()
    for original, images in zip(
        torch.split(originals, REPLAY_BATCH),
        torch.split(cell.candidates.images.to(batch.x.device), REPLAY_BATCH),
        strict=True,
    ):
        verify(cell.task.threat, batch.x[original], images, normalised=cell.task.normalised)
        fooled = logits(network, images).argmax(1) != batch.y[original]
        survived[original[fooled]] = 0
        perturbed[original[fooled]] = images[fooled]
    return survived, perturbed


@contextmanager
def _flags() -> Iterator[set[str]]:
    """Collect the names of the `Flag` warnings raised in the block; all other warnings are raised again."""
    names: set[str] = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield names
    for warning in caught:
        if isinstance(warning.message, Flag):
            names.add(warning.message.name)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
