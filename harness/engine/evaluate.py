"""One cell → one outcome: run the stage, check what it returned, and judge it by a fresh forward pass."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from harness.analysis.task_types import QUESTIONS
from harness.api.model import Model, Scorable
from harness.api.records import Batch, Compile, Precision, Steering
from harness.api.threat import SLACK_BOX, Flag, Threat
from harness.api.work import Adversaries, Cell, Outcome
from harness.config.protocol import in_normalised_space, normalised
from harness.curvature.steering import Steered
from harness.engine.acceleration import At, Dialled, attacking, compiled, lay_out, lowered, tried, wants_compiling
from harness.engine.images import source
from harness.engine.numerics import reproducible, resolve
from harness.engine.provenance import provenance
from harness.errors import HarnessError, InvalidAdversary, ModelError
from harness.models.normalisation import Normalised
from harness.scheduling.trials import CLEAN, MARGIN, REPLAY, REPLAY_FIRST, TRAINING
from harness.transfer.probe_network import Probed

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
    bench = workbench(task.model, device, task.offline, task.normalised)
    if bench.loaded.sha256 != task.weights_sha256:
        raise ModelError(
            f"its weights changed while the benchmark ran ({task.weights_sha256[:12]} before); run it again"
        )
    if cell.stage == TRAINING:
        return _rehearse(cell, bench, device)
    batch = bench.enter(source(task.dataset, task.preprocessing, task.offline).read(cell.standing).to(device))
    with reproducible(), _flags() as flags:
        bench.lay_out(batch.x[:1])
        started = time.perf_counter()  # what is fitted for a steering is part of its price
        network = bench.steered(cell.steering, batch.x[:1])
        attacked = bench.attacked(cell, batch.x[:2]) if cell.stage in task.attacks else network
        scores, images = _run_stage(cell, network, attacked, batch)
        seconds = time.perf_counter() - started
    values = np.zeros(len(cell.shard.images), np.float32)
    values[np.isin(cell.shard.images, cell.standing)] = scores.cpu().numpy()
    adversaries, lost = None, scores == 0
    if cell.stage in (REPLAY_FIRST, *task.attacks) and lost.any():
        adversaries = Adversaries(images[lost].cpu(), tuple(batch.indices[lost].tolist()))
    known = provenance(device) | bench.loaded.fitted(cell.steering)
    return Outcome(cell.key, values, seconds, tuple(sorted(flags)), known, adversaries)


def _rehearse(cell: Cell, bench: Workbench, device: str) -> Outcome:
    """How well what is fitted on some of the training images does on the others."""
    task, started = cell.task, time.perf_counter()
    assert task.model.training is not None
    first = source(task.model.training, task.preprocessing, task.offline).read(cell.standing[:1])
    with reproducible(), _flags() as flags:
        bench.lay_out(first.x.to(device))
        values = bench.loaded.rehearsed(cell.steering)
    return Outcome(cell.key, values, time.perf_counter() - started, tuple(sorted(flags)), provenance(device))


def _run_stage(cell: Cell, network: nn.Module, attacked: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """How each image fares in the stage, float [n] (or its margin), and what that made of it [n, c, h, w].

    What the attack made of them with ``attacked`` is judged by ``network``.
    """
    threat, question = cell.task.threat, QUESTIONS[cell.task.dataset.target]
    if cell.stage == MARGIN:
        return question.margin(logits(network, batch.x), batch.y), batch.x
    if cell.stage in (REPLAY, REPLAY_FIRST):
        return _replay(cell, network, batch)
    if cell.stage == CLEAN:
        question.admit(logits(network, batch.x), batch.y)
        if not cell.task.normalised:
            threat.inspect(network, batch)
        images = batch.x
    else:
        with attacking(cell.task.precision):
            images = threat.perturb(cell.stage, attacked, batch, cell.seed).detach()
        allowed(threat, batch.x, images, anywhere=cell.task.normalised)
    return question.outcome(logits(network, images), batch.y), images


def _replay(cell: Cell, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Which images survive everything that is shown of them, [n], and what they are then; all checked again."""
    assert cell.shown is not None
    survived = torch.ones(len(batch), device=batch.x.device)
    if not cell.shown.indices:
        return survived, batch.x
    position = {image: number for number, image in enumerate(cell.standing)}
    owners = torch.tensor([position[image] for image in cell.shown.indices], device=batch.x.device)
    became = batch.x.clone()
    for owner, images in zip(
        torch.split(owners, SHOWN), torch.split(cell.shown.images.to(batch.x.device), SHOWN), strict=True
    ):
        allowed(cell.task.threat, batch.x[owner], images, anywhere=cell.task.normalised)
        fooled = logits(network, images).argmax(1) != batch.y[owner]
        survived[owner[fooled]] = 0
        became[owner[fooled]] = images[fooled]
    return survived, became


def allowed(threat: Threat, x: Tensor, perturbed: Tensor, anywhere: bool = False) -> None:
    """Refuse what no threat allows, then what this one does not.

    Args:
        threat: whose stage it was.
        x: the images [n, c, h, w].
        perturbed: what the stage made of them: as many, finite, in [0, 1].
        anywhere: whether they are normalised, so that of the box and the threat nothing can be said.

    Raises:
        InvalidAdversary: never scored.
    """
    if perturbed.shape != x.shape:
        raise InvalidAdversary(f"the attack returned {list(perturbed.shape)} for {list(x.shape)}", "invalid")
    if not perturbed.isfinite().all():
        raise InvalidAdversary("the attack returned NaN or infinite pixels; nothing of it is scored", "invalid")
    if anywhere:
        return
    low, high = perturbed.min().item(), perturbed.max().item()
    if low < -SLACK_BOX or high > 1 + SLACK_BOX:
        raise InvalidAdversary(f"the attack returned pixels in [{low:.6g}, {high:.6g}], not [0, 1]", "invalid")
    threat.check(x, perturbed)


def logits(network: nn.Module, x: Tensor) -> Tensor:
    """A fresh forward pass: [n, c, h, w] to [n, classes], checked to be finite numbers."""
    with torch.no_grad():
        result = network(x)
    if not isinstance(result, Tensor) or result.ndim != 2 or len(result) != len(x):
        found = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ModelError(f"expected logits of shape [{len(x)}, classes], found {found}")
    if not result.isfinite().all():
        raise ModelError("its logits are NaN or infinite on images in [0, 1]; check the weights and the normalisation")
    return result


@dataclass
class Workbench:
    """A model in this process, on its device, with the steered networks made so far (they share its weights)."""

    loaded: Scorable
    normalising: Normalised | None = None
    steered_so_far: dict[Steering, nn.Module] = field(default_factory=dict)
    attacked_so_far: dict[tuple[Steering, Compile, Precision], nn.Module] = field(default_factory=dict)
    dialled: Dialled | None = None
    laid_out: bool = False

    def steered(self, steering: Steering, example: Tensor) -> nn.Module:
        """The network to score under ``steering``, made once."""
        if steering not in self.steered_so_far:
            self.steered_so_far[steering] = self.loaded.steered(steering, example).eval()
        return self.steered_so_far[steering]

    def enter(self, batch: Batch) -> Batch:
        """The images as the network here takes them."""
        return batch if self.normalising is None else normalised(batch, self.normalising)

    def lay_out(self, example: Tensor) -> None:
        """See `harness.engine.acceleration.lay_out`; once, before anything is steered."""
        if not self.laid_out:
            lay_out(self.loaded.body, example)
            self.laid_out = True

    def attacked(self, cell: Cell, example: Tensor) -> nn.Module:
        """The same network as attacks run it, made once; see `harness.engine.acceleration`.

        Raises:
            ModelError: it must be compiled, and cannot be; or a CPU is asked for TF32.
        """
        task = cell.task
        if task.precision == "tf32" and not example.is_cuda:
            raise ModelError("precision: tf32 is for a GPU, and this is a CPU; set precision=float32 or bfloat16")
        key = cell.steering, task.compile, task.precision
        if key not in self.attacked_so_far:
            network = self.steered(cell.steering, example)
            if wants_compiling(task.compile, task.device):
                network = self._compiled(network, example, must=task.compile == "always")
            self.attacked_so_far[key] = lowered(network, task.precision)
        return self.attacked_so_far[key]

    def _compiled(self, network: nn.Module, example: Tensor, must: bool) -> nn.Module:
        if isinstance(network, Probed):  # of a grid only the probes differ otherwise than in β and c
            return Probed(self._compiled(network.features, example, must), network.head)
        fast = compiled(network)
        if isinstance(network, Steered) and (dials := network.dials()) is not None:
            self.dialled = self.dialled or Dialled(network)
            fast = At(self.dialled, torch.tensor(dials, device=example.device))
        try:
            return tried(fast, network, example)
        except ModelError:
            if must:
                raise
            return network


@lru_cache(maxsize=2)
def workbench(model: Model, device: str, offline: bool, normalised: bool = False) -> Workbench:
    """Load ``model`` once a process; with ``normalised`` the network that takes normalised images.

    Raises:
        ModelError: it cannot be loaded, or is not in eval mode.
    """
    try:
        loaded = model.load(offline=offline)
    except HarnessError:
        raise
    except Exception as error:  # whatever a builder or a library raises: it is this model's failure
        raise ModelError(f"cannot be loaded: {type(error).__name__}: {error}") from error
    training = [name or "the network" for name, module in loaded.body.named_modules() if module.training]
    if training:
        raise ModelError(f"it is in training mode ({training[0]}); call network.eval() where it is built")
    loaded.body.requires_grad_(False).to(device)
    return Workbench(*in_normalised_space(loaded)) if normalised else Workbench(loaded)


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
