"""One cell → one outcome: run the stage, check what it returned, and judge it by a fresh forward pass."""

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
from harness.engine.verification import allowed, logits
from harness.errors import ModelError
from harness.scheduling.trials import CLEAN, MARGIN, REPLAY, REPLAY_FIRST, TRAINING

SHOWN = 256
"""Replayed images in one forward pass."""


def evaluate(cell: Cell) -> Outcome:
    """Compute ``cell``: the same bits in whichever process, order and company.

    Raises:
        ModelError: the network cannot be scored (NaN logits, probabilities, another number of classes, an attack's
            output that the threat does not allow).
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
    batch = session.enter(source(task.dataset, task.preprocessing, task.offline).read(cell.surviving).to(device))
    with reproducible(), _flags() as flags:
        session.to_channels_last(batch.x[:1])
        started = time.perf_counter()  # what is fitted for a steering is part of its price
        network = session.steered(cell.steering, batch.x[:1])
        attacked = session.attacked(cell, batch.x[:2]) if cell.stage in task.attacks else network
        scores, images = _run_stage(cell, network, attacked, batch)
        seconds = time.perf_counter() - started
    values = np.zeros(len(cell.shard.images), np.float32)
    values[np.isin(cell.shard.images, cell.surviving)] = scores.cpu().numpy()
    adversaries, fooled = None, scores == 0
    if cell.stage in (REPLAY_FIRST, *task.attacks) and fooled.any():
        adversaries = Adversaries(images[fooled].cpu(), tuple(batch.indices[fooled].tolist()))
    known = provenance(device) | session.loaded.fitted(cell.steering)
    return Outcome(cell.key, values, seconds, tuple(sorted(flags)), known, adversaries)


def _score_training(cell: Cell, session: ModelSession, device: str) -> Outcome:
    """How well what is fitted on some of the training images does on the others."""
    task, started = cell.task, time.perf_counter()
    assert task.model.training is not None
    first = source(task.model.training, task.preprocessing, task.offline).read(cell.surviving[:1])
    with reproducible(), _flags() as flags:
        session.to_channels_last(first.x.to(device))
        values = session.loaded.training_scores(cell.steering)
    return Outcome(cell.key, values, time.perf_counter() - started, tuple(sorted(flags)), provenance(device))


def _run_stage(cell: Cell, network: nn.Module, attacked: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """How each image fares in the stage, float [n] (or its margin), and what that made of it [n, c, h, w].

    What the attack made of them with ``attacked`` is judged by ``network``.
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
        allowed(threat, batch.x, images, anywhere=cell.task.normalised)
    return task_type.outcome(logits(network, images), batch.y), images


def _replay(cell: Cell, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Which images survive everything that is shown of them, [n], and what they are then; all checked again."""
    assert cell.candidates is not None
    survived = torch.ones(len(batch), device=batch.x.device)
    if not cell.candidates.indices:
        return survived, batch.x
    position = {image: number for number, image in enumerate(cell.surviving)}
    owners = torch.tensor([position[image] for image in cell.candidates.indices], device=batch.x.device)
    became = batch.x.clone()
    for owner, images in zip(
        torch.split(owners, SHOWN), torch.split(cell.candidates.images.to(batch.x.device), SHOWN), strict=True
    ):
        allowed(cell.task.threat, batch.x[owner], images, anywhere=cell.task.normalised)
        fooled = logits(network, images).argmax(1) != batch.y[owner]
        survived[owner[fooled]] = 0
        became[owner[fooled]] = images[fooled]
    return survived, became


@contextmanager
def _flags() -> Iterator[set[str]]:
    """Collect the names of `Flag` warnings; other warnings pass on."""
    names: set[str] = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield names
    for warning in caught:
        if isinstance(warning.message, Flag):
            names.add(warning.message.name)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
