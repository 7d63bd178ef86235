"""A transferred classifier: a pretrained backbone, steered, and a linear probe fitted on its features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema, field_validator

from harness.api import registry
from harness.api.dataset import Dataset
from harness.api.model import Model
from harness.api.part import Part
from harness.api.records import Preprocessing
from harness.errors import DataError
from harness.transfer.settings import Method, Probing, Tuning

if TYPE_CHECKING:
    from harness.api.model import Scorable


def _built(group: str) -> tuple[BeforeValidator, PlainSerializer, WithJsonSchema]:
    """A part inside of a part: built from its mapping, written as one, and in the schema any kind of its group."""

    def build(value: Any) -> Part:
        return registry.build_inside(group, value)

    def dumped(part: Part) -> dict[str, Any]:
        return {"kind": part.kind} | part.model_dump(mode="json")

    return BeforeValidator(build), PlainSerializer(dumped), WithJsonSchema({"group": group})


class Probe(Model):
    """A linear probe on the features of a backbone, fitted on training images: the plain one, and one a steering.

    scikit-learn's multinomial logistic regression on standardised features, which for attributes is one a piece, for
    values ridge regression. The network is the backbone up to its classifier, and the probe.

    Args:
        backbone: any model; of its classifier only the place is used.
        train: the images that the probe is fitted on; if they are those that are scored, they are refused.
        classifier: the name of the backbone's last layer, such as ``head.fc``; it is found by itself where it is the
            last layer that runs.
        probe: how it is fitted, and whether before or after the backbone is steered; see `Probing`.
        methods: to score beside the steerings, on the same images: ``lora-1``, ``lora-2``, ``lora-4``, ``fine_tuning``.
        tuning: how those are trained; see `harness.transfer.settings.Tuning`.
        cache: the folder of features and fits.
        name: its name on the leaderboard; the backbone's without it.
    """

    kind: ClassVar[str] = "probe"
    location_fields: ClassVar[frozenset[str]] = frozenset({"methods", "cache", "name"})

    backbone: Annotated[Model, *_built("models")]
    train: Annotated[Dataset, *_built("datasets")]
    classifier: str | None = None
    probe: Probing = Probing()
    methods: tuple[Method, ...] = ()
    tuning: Tuning = Tuning()
    cache: str = "runs/features"
    name: str | None = None

    @field_validator("methods")
    @classmethod
    def _each_once(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        if len(set(methods)) < len(methods):
            raise ValueError("a method is named twice; name each once")
        return methods

    @field_validator("backbone")
    @classmethod
    def _not_fitted_itself(cls, backbone: Model) -> Model:
        if backbone.training is not None:
            raise ValueError("a probe is fitted on a pretrained network; give the probe's own backbone")
        return backbone

    @property
    def label(self) -> str:
        """The name; without it the backbone's, and the order of fitting where that is not the usual one."""
        order = "" if self.probe.order == "steer_first" else f" {self.probe.order}"
        return self.name or f"{self.backbone.label}{order}"

    @property
    def training(self) -> Dataset:
        """What the probe is fitted on."""
        return self.train

    @property
    def trained_how(self) -> str:
        """The training set, the order, and a hash of the settings of probe and tuning."""
        from harness.util.hashing import sha256

        settings = [self.probe.model_dump(mode="json"), self.tuning.model_dump(mode="json")]
        return f"{self.train.label}; {self.probe.order}; {sha256(settings)[:8]}"

    @property
    def adaptations(self) -> tuple[str, ...]:
        """The methods."""
        return self.methods

    def identity(self) -> dict[str, Any]:
        """The backbone's and the training set's own, and how the probe is fitted."""
        return super().identity() | {"backbone": self.backbone.identity(), "train": self.train.identity()}

    def preprocessing(self, *, offline: bool = False) -> Preprocessing:
        """The backbone's."""
        return self.backbone.preprocessing(offline=offline)

    def load(self, *, offline: bool = False) -> Scorable:
        """The backbone without its classifier; the probe is fitted when the network is asked for.

        Raises:
            ModelError: the backbone cannot be loaded, or its classifier is not found.
            DataError: the training images are not there.
        """
        from harness.engine.images import open_data, source
        from harness.transfer.backbone import without_classifier
        from harness.transfer.transferred import TrainingSet, Transferred
        from harness.util.hashing import sha256

        backbone = self.backbone.load(offline=offline)
        preprocessing = self.preprocessing(offline=offline)
        try:
            data = open_data(self.train, offline, preprocessing)
        except DataError as error:
            raise type(error)(f"train: {error}") from error
        training_data = TrainingSet(source(self.train, preprocessing, offline), data, self.train.target)
        example, _ = training_data.read([0])
        features = without_classifier(backbone.network.eval(), example, self.classifier)
        given = sha256([self.backbone.identity(), backbone.sha256, features.classifier])
        return Transferred(features, given, training_data, self.probe, self.tuning, Path(self.cache))
