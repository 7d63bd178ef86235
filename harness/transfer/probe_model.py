"""Model kind ``probe``: a pretrained backbone, steered, with a linear probe fitted on its features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema, field_validator

from harness.api import registry
from harness.api.dataset import Dataset
from harness.api.model import Model
from harness.api.part import Part
from harness.api.records import Preprocessing
from harness.api.validation import Name
from harness.errors import DataError
from harness.transfer.settings import Method, Probing, Tuning

if TYPE_CHECKING:
    from harness.api.model import Scorable


def _nested_part(group: str) -> tuple[BeforeValidator, PlainSerializer, WithJsonSchema]:
    """Annotate a part inside a part: built from its mapping, dumped as one, any kind of its group in the schema."""

    def build(value: Any) -> Part:
        return registry.build_inside(group, value)

    def dump(part: Part) -> dict[str, Any]:
        return {"kind": part.kind} | part.model_dump(mode="json")

    return BeforeValidator(build), PlainSerializer(dump), WithJsonSchema({"group": group})


class Probe(Model):
    """A pretrained backbone with a linear probe on its features, fitted on training images for each steering.

    The probe is scikit-learn's multinomial logistic regression on standardised features; one logistic regression per
    attribute, or ridge regression for values. It takes the place of the backbone's classifier.

    Args:
        backbone: any pretrained model; its own classifier is not used.
        train: dataset that the probe is fitted on; images that are scored are refused.
        classifier: name of the backbone's last layer, such as ``head.fc``; found by itself if it is the last to run.
        probe: settings of the probe, fitted before or after the backbone is steered; see `Probing`.
        methods: other methods to score beside the steerings, on the same images: ``lora-1``, ``lora-2``, ``lora-4``,
            ``fine_tuning``.
        tuning: settings of these methods; see `harness.transfer.settings.Tuning`.
        cache: directory that keeps features, probes and trained weights.
        name: name on the leaderboard; the backbone's if left out.
    """

    kind: ClassVar[str] = "probe"
    location_fields: ClassVar[frozenset[str]] = frozenset({"methods", "cache", "name"})

    backbone: Annotated[Model, *_nested_part("models")]
    train: Annotated[Dataset, *_nested_part("datasets")]
    classifier: str | None = None
    probe: Probing = Probing()
    methods: tuple[Method, ...] = ()
    tuning: Tuning = Tuning()
    cache: str = "runs/features"
    name: Name | None = None

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
        """The name, or else the backbone's, followed by the order of fitting if it is not the default."""
        order = "" if self.probe.order == "steer_first" else f" {self.probe.order}"
        return self.name or f"{self.backbone.label}{order}"

    @property
    def training(self) -> Dataset:
        """The dataset that the probe is fitted on."""
        return self.train

    @property
    def trained_how(self) -> str:
        """The training dataset, the order of fitting, and a hash of the settings of probe and tuning."""
        from harness.util.hashing import sha256

        settings = [self.probe.model_dump(mode="json"), self.tuning.model_dump(mode="json")]
        return f"{self.train.label}; {self.probe.order}; {sha256(settings)[:8]}"

    @property
    def adaptations(self) -> tuple[str, ...]:
        """The other methods to score."""
        return self.methods

    @property
    def sources(self) -> tuple[str, ...]:
        """See `Model.sources`; those of the backbone."""
        return self.backbone.sources

    def identity(self) -> dict[str, Any]:
        """Return the settings, with the identities of the backbone and of the training dataset."""
        return super().identity() | {"backbone": self.backbone.identity(), "train": self.train.identity()}

    def preprocessing(self, *, offline: bool = False) -> Preprocessing:
        """Return the backbone's preprocessing."""
        return self.backbone.preprocessing(offline=offline)

    def load(self, *, offline: bool = False) -> Scorable:
        """Load the backbone without its classifier; the probe is fitted on first use.

        Raises:
            ModelError: the backbone cannot be loaded, or its classifier is not found.
            DataError: the training images are missing or damaged.
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
        training_set = TrainingSet(source(self.train, preprocessing, offline), data, self.train.target)
        example, _ = training_set.read([0])
        body = without_classifier(backbone.network.eval(), example, self.classifier)
        backbone_sha256 = sha256([self.backbone.identity(), backbone.sha256, body.classifier])
        return Transferred(body, backbone_sha256, training_set, self.probe, self.tuning, Path(self.cache))
