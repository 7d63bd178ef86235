"""A backbone transferred to other images: steered with a probe on its features, or trained by another method."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from harness.errors import HarnessError, MethodError, ModelError
from harness.transfer import finetuning, linear_probe, lora
from harness.transfer.backbone import FeatureExtractor
from harness.transfer.finetuning import FORWARD_BATCH, LabelledImages
from harness.transfer.linear_probe import LinearProbe
from harness.transfer.probe_network import Head, ProbeNetwork
from harness.transfer.settings import Probing, Tuning
from harness.util.batching import batched
from harness.util.cache import CachedArrays, cached
from harness.util.device_errors import raise_of_device
from harness.util.hashing import sha256, sha256_of_weights
from harness.util.text import listed

if TYPE_CHECKING:
    from harness.api.dataset import Source

FORMAT = 2
"""Part of every cache key: raised when a change of the code could change the cached arrays."""


@dataclass(frozen=True)
class TrainingSet:
    """The chosen images of the training dataset.

    Args:
        source: all images of the dataset, as the backbone takes them.
        data: indices, hashes and labels of the chosen images.
        target: kind of the labels.
    """

    source: Source
    data: Data
    target: Target

    def read(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read images and labels at these positions among the chosen ones."""
        batch = self.source.read(tuple(self.indices[position] for position in positions))
        return batch.x, batch.y

    @cached_property
    def indices(self) -> tuple[int, ...]:
        """Indices of the chosen images in the dataset."""
        return tuple(self.data.digests)


@contextmanager
def _alone(method: str) -> Iterator[None]:
    """Let whatever a method of adapting a model raises be the failure of this method alone.

    Raises:
        MethodError: in place of the error that was raised, unless it is the device's.
    """
    try:
        yield
    except Exception as error:  # a backward pass, or peft, may raise anything
        raise_of_device(error)
        told = str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"
        raise MethodError(told, method) from error


class Transferred:
    """Implementation of `harness.api.model.Scorable`; fitted on first use, on the device that `body` is on.

    Args:
        body: backbone without its classifier, in eval mode.
        backbone_sha256: SHA-256 of the backbone's identity, its weights and the name of its classifier.
        training_set: images that the backbone is transferred to.
        probing: settings of the probe.
        tuning: settings of the other methods.
        cache: directory that keeps features, probes and trained weights.
    """

    def __init__(
        self,
        body: FeatureExtractor,
        backbone_sha256: str,
        training_set: TrainingSet,
        probing: Probing,
        tuning: Tuning,
        cache: Path,
    ) -> None:
        self.body = body
        self.training = training_set.data
        self.sha256 = sha256([backbone_sha256, training_set.data.sha256])
        self._training_set, self._probing, self._tuning, self._cache = training_set, probing, tuning, cache
        self._networks: dict[Steering, nn.Module] = {}
        self._hashes: dict[Steering, str] = {}

    @property
    def network(self) -> nn.Module:
        """The untouched backbone and its probe."""
        return self.steered(BASELINE)

    def steered(self, steering: Steering, example: Tensor | None = None) -> nn.Module:
        """See `Scorable.steered`: steered first and then fitted, the other way round, or trained by another method."""
        if steering not in self._networks:
            self._networks[steering] = self._build(steering).eval().requires_grad_(False)
        return self._networks[steering]

    def _build(self, steering: Steering) -> nn.Module:
        if steering.method:
            with _alone(steering.method):
                return self._adapted(steering)
        return ProbeNetwork(self._steered_backbone(steering), self._head(self._probe(self._probe_steering(steering))))

    def compiled(self, network: nn.Module, compile: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """See `Scorable.compiled`; compiles the backbone alone, since every steering has its own probe."""
        if not isinstance(network, ProbeNetwork):
            return compile(network)
        return ProbeNetwork(compile(network.features), network.head)

    def normalised_space(self) -> tuple[Scorable, Callable[[Tensor], Tensor]]:
        """Refuse, since a probe is fitted on images in [0, 1]; see `Scorable.normalised_space`."""
        raise ModelError(NO_NORMALISATION)

    def coverage(self, sites: Sites, example: Tensor, family: FamilyName = "relu") -> Coverage:
        """Count in the backbone, since a probe has no activation; see `Scorable.coverage`."""
        return coverage_of(self.body, sites, example, family)

    def trainable_parameters(self, method: str = "") -> int:
        """Return the number of weights and biases of the probe, and of what another method trains beside it."""
        start = ProbeNetwork(self.body, self._head(self._blank_probe()))
        if method:
            with _alone(method):
                return finetuning.count_trained(method, start, self._few)
        return sum(parameter.numel() for parameter in start.head.parameters())

    def marks(self, method: str = "") -> set[str]:
        """Return ``lora_partial`` where LoRA leaves out layers that it cannot be merged into; see `Scorable.marks`.

        Their names are a warning, which is shown beside the model's name.
        """
        if not method.startswith("lora"):
            return set()
        taken, layers = lora.mergeable(self.body, finetuning.rank_of(method), self._few), lora.layers(self.body)
        left_out = [re.sub(r"^(network\.)+", "", layer) for layer in layers if layer not in taken]
        if not left_out:
            return set()
        warnings.warn(
            f"{method} leaves out {len(left_out)} of {len(layers)} layers, as merged into them it would be another "
            f"network: {listed(left_out)}",
            stacklevel=2,
        )
        return {"lora_partial"}

    @property
    def _few(self) -> Tensor:
        """A few training images."""
        return self._images(range(min(finetuning.FEW, len(self.training.labels))))[0]

    def _blank_probe(self) -> LinearProbe:
        """Return a probe of the right shape, without fitting one: that is for a worker, on its device."""
        labels = self.training.labels
        answers = int(labels.max()) + 1 if self._training_set.target == "class" else labels.shape[1]
        with torch.no_grad():
            width = self.body(self._images([0])[0]).shape[1]
        return LinearProbe(np.zeros(width), np.ones(width), np.zeros((answers, width)), np.zeros(answers), 1.0)

    def fitted(self, steering: Steering) -> dict[str, str]:
        """Return the hash of all weights of the network to score, the fitted ones included."""
        if steering not in self._hashes:
            self._hashes[steering] = sha256_of_weights(self.steered(steering))
        return {"weights_sha256": self._hashes[steering]}

    def training_scores(self, steering: Steering) -> np.ndarray:
        """Score each training image by cross-validation, with one C for all folds; see `Scorable.training_scores`."""
        fitted_on = self._probe_steering(steering)
        if fitted_on == steering:
            return self._fitted_arrays(steering)["outcomes"]

        def compute() -> CachedArrays:
            outcomes = linear_probe.out_of_fold(
                self._features(fitted_on), self._features(steering), self.training.labels, self._training_set.target,
                self._probe(fitted_on).C, self._probing,
            )  # fmt: skip
            return {"outcomes": outcomes.astype(np.float32)}

        key = ["rehearsed", steering.identity(), *self._settings]  # keys stay as they are: caches outlive names
        return self._cached(key, compute)["outcomes"]

    def _probe_steering(self, steering: Steering) -> Steering:
        """Return the steering on whose features the probe of ``steering`` is fitted."""
        return steering if self._probing.order == "steer_first" else steering.baseline

    def _steered_backbone(self, steering: Steering) -> nn.Module:
        if steering.is_baseline:
            return self.body
        return steered_network(self.body, steering, self._images([0])[0])

    def _images(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read training images and labels onto the device of `body`."""
        device = next(self.body.parameters()).device
        x, y = self._training_set.read(positions)
        return x.to(device), y.to(device)

    def _features(self, steering: Steering) -> np.ndarray:
        """Return the features of all training images under a steering, float32 [n, d]; computed once."""

        @torch.no_grad()
        def compute() -> CachedArrays:
            network = self._steered_backbone(steering)
            batches = batched(range(len(self.training.labels)), FORWARD_BATCH)
            features = np.concatenate([network(self._images(batch)[0]).cpu().numpy() for batch in batches])
            self._check_finite(features, steering)
            return {"features": features}

        return self._cached(["features", steering.identity()], compute)["features"]

    def _check_finite(self, features: np.ndarray, steering: Steering) -> None:
        unusable = ~np.isfinite(features).all(1)
        if unusable.any():
            raise ModelError(
                f"its features at β = {steering.beta:g} are NaN or infinite on {unusable.sum()} of {len(features)} "
                f"training images, first on image {self._training_set.indices[int(unusable.argmax())]}; look at that "
                "image, at its weights and at its normalisation (mean, std)"
            )

    def _fitted_arrays(self, steering: Steering) -> CachedArrays:
        """Return the probe on the features of a steering as arrays, with its out-of-fold outcomes; computed once."""

        def compute() -> CachedArrays:
            features, labels, target = self._features(steering), self.training.labels, self._training_set.target
            chosen = linear_probe.choose_C(features, labels, target, self._probing)
            probe = asdict(linear_probe.fit_with_C(features, labels, target, chosen.C))
            outcomes = {"outcomes": chosen.outcomes.astype(np.float32)}
            return {name: np.asarray(value) for name, value in probe.items()} | outcomes

        return self._cached(["probe", steering.identity(), *self._settings], compute)

    def _probe(self, steering: Steering) -> LinearProbe:
        """Return the probe on the features of a steering."""
        arrays = self._fitted_arrays(steering)
        mean, scale, weight, bias = (arrays[name] for name in ("mean", "scale", "weight", "bias"))
        return LinearProbe(mean, scale, weight, bias, float(arrays["C"]))

    def _probe_on(self, steering: Steering, positions: np.ndarray) -> LinearProbe:
        """Fit a probe on these training images alone; the others have no influence on it, nor on its C."""
        features, labels = self._features(steering)[positions], self.training.labels[positions]
        return linear_probe.fit(features, labels, self._training_set.target, self._probing)

    def _head(self, probe: LinearProbe) -> Head:
        return Head(probe).to(next(self.body.parameters()).device)

    def _adapted(self, steering: Steering) -> ProbeNetwork:
        """Return the network that another method trains; its weights are cached, so every process has the same."""
        untouched = steering.baseline

        def fit_probe(positions: np.ndarray | None) -> ProbeNetwork:
            probe = self._probe(untouched) if positions is None else self._probe_on(untouched, positions)
            return ProbeNetwork(self.body, self._head(probe))

        def compute() -> CachedArrays:
            images = LabelledImages(self._images, self.training.strata, TASK_TYPES[self._training_set.target])
            network = finetuning.adapt(steering.method, fit_probe, images, self._tuning)
            return {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}

        method = [lora.peft_version(steering.method), self._tuning.model_dump(mode="json")]
        weights = self._cached([steering.identity(), *self._settings, *method], compute)
        network = copy.deepcopy(fit_probe(None))
        network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
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

    def _cached(self, key: Sequence[Any], compute: Callable[[], CachedArrays]) -> CachedArrays:
        """Return the arrays cached under ``key``, the versions, the kind of device and what was given; compute once."""
        device = next(self.body.parameters()).device.type
        return cached(self._cache, sha256([*self._versions, device, self.sha256, *key]), compute)
