"""A portion in the process that computes it: its images, its networks, and the trials that can share a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor

from harness.api.records import Batch, Steering
from harness.api.trial import Trial
from harness.api.work import Portion, Task
from harness.engine.fixed_width import FixedWidth, if_it_fits
from harness.engine.images import PIECE, ImageCache, source
from harness.engine.numerics import resolve
from harness.engine.session import Lane, ModelSession, NoNetwork, model_session
from harness.engine.verification import logits
from harness.errors import ModelError
from harness.util.batching import batched, grouped
from harness.util.device_errors import give_back_memory
from harness.util.noise import Noise, key_of
from harness.util.threads import ahead, in_threads, readers

T = TypeVar("T")
R = TypeVar("R")

EXAMPLES = 4
"""Images of noise on which a network is tried, under several β at once where it can be."""


@dataclass
class Computation:
    """Trials of one stage in the process that computes them.

    Args:
        portion: the trials; their task's device is this process's from then on, no longer "auto".
    """

    portion: Portion
    device: str = field(init=False)
    session: ModelSession = field(init=False)
    images: ImageCache = field(init=False)

    def __post_init__(self) -> None:
        self.device = resolve(self.portion.task.device)
        task = replace(self.portion.task, device=self.device)
        self.portion = replace(self.portion, task=task)
        self.session = _session(task, self.device)
        where = (task.dataset, task.preprocessing)
        if where not in self.session.images:
            opened = source(task.dataset, task.preprocessing, task.offline)
            self.session.images[where] = ImageCache(opened, self.readers)
        self.images = self.session.images[where]

    @cached_property
    def readers(self) -> int:
        """Number of threads that read images; none on a CPU, where each core has a worker."""
        return 0 if self.device == "cpu" else readers()

    def ahead(self, parts: Iterable[T], read: Callable[[T], R]) -> Iterator[tuple[T, R]]:
        """Yield each part with what ``read`` makes of it, where there are readers while the next is read."""
        return ahead(parts, read) if self.readers else ((part, read(part)) for part in parts)

    def batch(self, trials: Sequence[Trial]) -> tuple[Batch, list[str]]:
        """Return the clean images of trials, on the device and as the network takes them, and their digests."""
        batch, digests = self.read(trials)
        return self.placed(batch), digests

    def placed(self, batch: Batch) -> Batch:
        """Return images on the device and as the network takes them."""
        return self.session.to_input_space(batch.to(self.device))

    def read(self, trials: Sequence[Trial]) -> tuple[Batch, list[str]]:
        """Return the clean images of trials, in [0, 1] and on the CPU, and their digests; uses no GPU."""
        batch, digests = self.images.read([trial.image for trial in trials])
        for trial, digest in zip(trials, digests, strict=True):
            if self.portion.digests.get(trial.image, digest) != digest:
                raise ModelError(
                    f"image {trial.image} of the dataset is another one here than where the run was started; give "
                    "every machine the same files, and leave them as they are while a benchmark runs"
                )
        return batch, digests

    def read_perturbed(self, trials: Sequence[Trial]) -> tuple[Batch, list[str], Tensor | None]:
        """Return, besides what `read` does, what the stage makes of the images where no network is needed for it.

        Returns:
            clean images, digests, and perturbed images [n, c, h, w]; None unless the threat is `Threat.concurrent`.
        """
        task = self.portion.task
        batch, digests = self.read(trials)
        if not task.threat.concurrent or task.normalised:
            return batch, digests, None
        keys = self.keys(trials, digests, "cpu")

        def perturb(places: Sequence[int]) -> Tensor:
            noise = Noise(task.seed, keys[list(places)])
            return task.threat.perturb(self.portion.stage, NoNetwork(), batch.part(places), noise).detach()

        return batch, digests, torch.cat(in_threads(perturb, batched(range(len(trials)), PIECE), self.readers))

    def keys(self, trials: Sequence[Trial], digests: Sequence[str], device: str | None = None) -> Tensor:
        """Return the keys of the trials' noise, int64 [n]: of seed, image and attempt, the same for every steering.

        Args:
            trials: the trials.
            digests: digest of each trial's image.
            device: device of the keys; by default that of the computation.
        """
        seed = self.portion.task.seed
        return torch.tensor(
            [
                key_of(seed, digest, trial.attempt.stage, trial.attempt.target, trial.attempt.restart)
                for trial, digest in zip(trials, digests, strict=True)
            ],
            device=device or self.device,
        )

    def lane(self, steering: Steering, attacked: bool = False) -> Lane:
        """Return the network of a steering that judges, or that is attacked."""
        made = self.session.attacked if attacked else self.session.judge
        return made(self.portion.task, steering, self.example)

    def provenance(self, steering: Steering) -> dict[str, str]:
        """Return whether the network was compiled that a stage has attacked; empty of what is no attack."""
        if self.portion.stage not in self.portion.task.attacks:
            return {}
        return {"compiled": "yes" if self.lane(steering, attacked=True).compiled else "no"}

    @cached_property
    def example(self) -> Tensor:
        """Noise in the network's input space, [m, c, h, w], the same in every process: what is proved of any image."""
        first, _ = self.images.read([self.portion.trials[0].image])
        noise = torch.rand(EXAMPLES, *first.x.shape[1:], generator=torch.Generator().manual_seed(0))
        example = self.session.to_input_space(replace(first, x=noise).to(self.device)).x
        self.session.to_channels_last(example[:1], self.portion.task.precision)
        return example

    def groups(self, trials: Sequence[Trial], attacked: bool = False) -> Iterator[Group]:
        """Yield the trials whose images can go through a network together."""
        lanes = {steering: self.lane(steering, attacked) for steering in dict.fromkeys(t.steering for t in trials)}
        places = grouped(range(len(trials)), lambda place: lanes[trials[place].steering].network)
        for network, own in places.items():
            parameters = [lanes[trials[place].steering].parameters for place in own]
            rows = None if parameters[0] is None else torch.stack([row for row in parameters if row is not None])
            yield Group(network, [trials[place] for place in own], own, rows)

    def width(self, network: FixedWidth) -> int:
        """Return the number of images that go through a network at once."""
        return min(self.portion.task.batch_size, network.widest) if self.portion.task.batch_size else network.width

    def answers(self, trials: Sequence[Trial], x: Tensor) -> Tensor:
        """Return the judge's answers [n, k] for images [n, c, h, w], one for each trial; a trial may come twice."""
        result: list[Tensor] = [torch.empty(0)] * len(trials)
        for group in self.groups(trials):
            for part in batched(range(len(group.places)), self.width(group.network)):
                places = [group.places[number] for number in part]
                found = logits(group.network, x[places], *group.rows_of(part))
                for place, answer in zip(places, found, strict=True):
                    result[place] = answer
        return torch.stack(result)


def _session(task: Task, device: str) -> ModelSession:
    """Load a model, in place of those before it where there is no room for both.

    Raises:
        ModelError: it cannot be loaded, or its weights do not fit.
    """
    load = partial(model_session, task.model, device, task.offline, task.normalised)
    session = if_it_fits(load)
    if session is None:
        model_session.cache_clear()
        give_back_memory()
        session = if_it_fits(load)
    if session is None:
        raise ModelError(f"its weights do not fit in the memory of {device}; free some of it, or use another device")
    return session


@dataclass(frozen=True, eq=False)
class Group:
    """Trials whose images can go through one network together.

    Args:
        network: the network.
        trials: the trials.
        places: their places among all trials.
        parameters: parameters of each trial's curve, [n, p]; None where all are of one steering.
    """

    network: FixedWidth
    trials: list[Trial]
    places: list[int]
    parameters: Tensor | None

    def rows_of(self, which: Sequence[int]) -> tuple[Tensor, ...]:
        """Return what the network takes besides the images of some of the trials, by their numbers in the group."""
        return () if self.parameters is None else (self.parameters[list(which)],)
