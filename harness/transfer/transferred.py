"""A backbone transferred to other images: steered, and a probe fitted on its features; or adapted in another way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn
import torch
from torch import Tensor, nn

from harness.analysis.task_types import TASK_TYPES
from harness.api.dataset import Data
from harness.api.model import NO_NORMALISATION, Scorable
from harness.api.records import BASELINE, Coverage, FamilyName, Sites, Steering, Target
from harness.api.work import SCORING_VERSION
from harness.curvature.steering import coverage_of, steered_network
from harness.errors import ModelError
from harness.transfer import finetuning, linear_probe
from harness.transfer.backbone import Features
from harness.transfer.finetuning import AT_ONCE, TrainingData
from harness.transfer.linear_probe import Fit
from harness.transfer.probe_network import Head, Probed
from harness.transfer.settings import Probing, Tuning
from harness.util.batching import batched
from harness.util.cache import CachedArrays, cached
from harness.util.hashing import sha256, sha256_of_weights

if TYPE_CHECKING:
    from harness.api.dataset import Source

FORMAT = 1
"""Part of every key of the cache: raised when a change of the code could change what is kept."""


@dataclass(frozen=True)
class TrainingSet:
    """Images to fit on.

    Args:
        source: as the backbone takes them.
        data: which of them, with their hashes and labels.
        target: what the labels are.
    """

    source: Source
    data: Data
    target: Target

    def read(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images and labels at these positions among the chosen ones."""
        batch = self.source.read(tuple(self.images[position] for position in positions))
        return batch.x, batch.y

    @cached_property
    def images(self) -> tuple[int, ...]:
        """The numbers of the chosen ones."""
        return tuple(self.data.digests)


class Transferred:
    """See `harness.api.model.Scorable`; fitted when it is asked for, on the device that `body` is on.

    Args:
        features: the backbone without its classifier, in eval mode.
        given: SHA-256 of the backbone: what it is, its weights, and the name of its classifier.
        training_data: what it is transferred to.
        probing: how the probe is fitted.
        tuning: how weights are trained, by the methods that do.
        folder: of the cache.
    """

    def __init__(
        self, features: Features, given: str, training_data: TrainingSet, probing: Probing, tuning: Tuning, folder: Path
    ) -> None:
        self.body = features
        self.training = training_data.data
        self.sha256 = sha256([given, training_data.data.sha256])
        self._training_data, self._probing, self._tuning, self._folder = training_data, probing, tuning, folder
        self._made: dict[Steering, nn.Module] = {}
        self._hashes: dict[Steering, str] = {}

    @property
    def network(self) -> nn.Module:
        """The untouched backbone and its probe."""
        return self.steered(BASELINE)

    def steered(self, steering: Steering, example: Tensor | None = None) -> nn.Module:
        """See `Scorable.steered`: steered first and fitted after, or the other way round, or adapted."""
        if steering not in self._made:
            self._made[steering] = self._make(steering).eval().requires_grad_(False)
        return self._made[steering]

    def _make(self, steering: Steering) -> nn.Module:
        if steering.method:
            return self._adapted(steering)
        return Probed(self._steered_backbone(steering), self._head(self._fit(self._fitted_at(steering))))

    def compiled(self, network: nn.Module, compile: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """See `Scorable.compiled`; the backbone alone, since every steering has its own probe."""
        if not isinstance(network, Probed):
            return compile(network)
        return Probed(compile(network.features), network.head)

    def normalised_space(self) -> tuple[Scorable, Callable[[Tensor], Tensor]]:
        """See `Scorable.normalised_space`; refused, since a probe is fitted on images in [0, 1]."""
        raise ModelError(NO_NORMALISATION)

    def coverage(self, sites: Sites, example: Tensor, family: FamilyName = "relu") -> Coverage:
        """See `Scorable.coverage`: of the backbone, since a probe has no activation."""
        return coverage_of(self.body, sites, example, family)

    def trainable_parameters(self, method: str = "") -> int:
        """The probe's weights and biases; of another method also what that trains."""
        start = self.network
        assert isinstance(start, Probed)
        if method:
            return finetuning.count(method, start)
        return sum(parameter.numel() for parameter in start.head.parameters())

    def fitted(self, steering: Steering) -> dict[str, str]:
        """The hash of the network to score, weight by weight, the fitted ones among them."""
        if steering not in self._hashes:
            self._hashes[steering] = sha256_of_weights(self.steered(steering))
        return {"weights_sha256": self._hashes[steering]}

    def training_scores(self, steering: Steering) -> np.ndarray:
        """See `Scorable.training_scores`: fold by fold, with the C that was chosen for all."""
        at = self._fitted_at(steering)
        if at == steering:
            return self._kept_fit(at)["outcomes"]

        def compute() -> CachedArrays:
            outcomes = linear_probe.out_of_fold(
                self._features(at), self._features(steering), self.training.labels, self._training_data.target,
                self._fit(at).C, self._probing,
            )  # fmt: skip
            return {"outcomes": outcomes.astype(np.float32)}

        return self._cached(["rehearsed", steering.identity(), *self._settings], compute)["outcomes"]

    def _fitted_at(self, steering: Steering) -> Steering:
        """On which features the probe of a steering is fitted."""
        return steering if self._probing.order == "steer_first" else steering.baseline

    def _steered_backbone(self, steering: Steering) -> nn.Module:
        if steering.is_baseline:
            return self.body
        return steered_network(self.body, steering, self._images([0])[0])

    def _images(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        device = next(self.body.parameters()).device
        x, y = self._training_data.read(positions)
        return x.to(device), y.to(device)

    def _features(self, steering: Steering) -> np.ndarray:
        """Of all training images under a steering, float32 [n, d]; computed once."""

        @torch.no_grad()
        def compute() -> CachedArrays:
            network = self._steered_backbone(steering)
            parts = batched(range(len(self.training.labels)), AT_ONCE)
            return {"features": np.concatenate([network(self._images(part)[0]).cpu().numpy() for part in parts])}

        return self._cached(["features", steering.identity()], compute)["features"]

    def _kept_fit(self, steering: Steering) -> CachedArrays:
        """The numbers of the probe on the features of a steering, and its out-of-fold outcomes; computed once."""

        def compute() -> CachedArrays:
            features, labels, target = self._features(steering), self.training.labels, self._training_data.target
            chosen = linear_probe.choose_C(features, labels, target, self._probing)
            numbers = asdict(linear_probe.fitted(features, labels, target, chosen.C))
            outcomes = {"outcomes": chosen.outcomes.astype(np.float32)}
            return {name: np.asarray(value) for name, value in numbers.items()} | outcomes

        return self._cached(["probe", steering.identity(), *self._settings], compute)

    def _fit(self, steering: Steering) -> Fit:
        """The probe on the features of a steering."""
        kept = self._kept_fit(steering)
        mean, scale, weight, bias = (kept[name] for name in ("mean", "scale", "weight", "bias"))
        return Fit(mean, scale, weight, bias, float(kept["C"]))

    def _fit_on(self, steering: Steering, positions: np.ndarray) -> Fit:
        """The same on these training images alone: of the others nothing is known to it, C included."""
        features, labels = self._features(steering)[positions], self.training.labels[positions]
        return linear_probe.fit(features, labels, self._training_data.target, self._probing)

    def _head(self, fit: Fit) -> Head:
        return Head(fit).to(next(self.body.parameters()).device)

    def _adapted(self, steering: Steering) -> Probed:
        """Another method's network; its weights are kept, so that every process has the same."""
        untouched = steering.baseline

        def begin(positions: np.ndarray | None) -> Probed:
            fit = self._fit(untouched) if positions is None else self._fit_on(untouched, positions)
            return Probed(self.body, self._head(fit))

        def compute() -> CachedArrays:
            training_data = TrainingData(self._images, self.training.strata, TASK_TYPES[self._training_data.target])
            network = finetuning.adapted(steering.method, begin, training_data, self._tuning)
            return {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}

        how = [finetuning.peft_version(steering.method), self._tuning.model_dump(mode="json")]
        kept = self._cached([steering.identity(), *self._settings, *how], compute)
        network = copy.deepcopy(begin(None))
        network.load_state_dict({name: torch.from_numpy(value) for name, value in kept.items()})
        return network

    @property
    def recipe(self) -> str:
        """See `Scorable.recipe`."""
        return sha256([*self._versions, *self._settings, self._tuning.model_dump(mode="json")])

    @property
    def _settings(self) -> list[Any]:
        return [self._probing.model_dump(mode="json")]

    @property
    def _versions(self) -> list[Any]:
        return [FORMAT, SCORING_VERSION, torch.__version__, sklearn.__version__]

    def _cached(self, what: Sequence[Any], compute: Any) -> CachedArrays:
        where = next(self.body.parameters()).device.type
        return cached(self._folder, sha256([*self._versions, where, self.sha256, *what]), compute)
