"""Classifiers of torchvision, with its published weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api.model import Model
from harness.api.records import Preprocessing
from harness.datasets.imagenet import class_folders
from harness.errors import ModelError
from harness.models.checkpoint_files import hub_file, loading, read_checkpoint
from harness.util.text import did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from harness.models.loaded import Loaded

DEFAULT = "DEFAULT"


class TorchVision(Model):
    """A classifier of torchvision, with the mean and std of its training inside.

    The weights are kept in the cache of ``torch.hub``.

    Args:
        name: name of the model, such as ``resnet18``; see ``ct-harness list models``.
        weights: name of the weights, such as ``IMAGENET1K_V1``; by default those that torchvision recommends.
        file: path of a checkpoint of this model; with it, nothing is downloaded, and ``weights`` only determines the
            preprocessing.
    """

    kind: ClassVar[str] = "torchvision"
    location_fields: ClassVar[frozenset[str]] = frozenset({"file"})  # the weights are hashed

    name: str
    weights: str = DEFAULT
    file: str | None = None

    @classmethod
    def names(cls) -> Mapping[str, Sequence[str]]:
        """Return the names of torchvision's classifiers."""
        from torchvision import models

        return {"torchvision": models.list_models(module=models)}

    @property
    def label(self) -> str:
        """Name of the model, followed by that of the weights if they are not the default."""
        return self.name if self.weights == DEFAULT else f"{self.name} {self.weights}"

    def preprocessing(self, *, offline: bool = False) -> Preprocessing:
        """Return the preprocessing with which torchvision validated these weights."""
        transforms = _weights(self).transforms()
        [resize], [crop] = transforms.resize_size, transforms.crop_size
        return Preprocessing(resize, crop, transforms.interpolation.value)

    def class_names(self, *, offline: bool = False) -> Sequence[str]:
        """Return those of ImageNet, on which all classifiers of torchvision were trained."""
        return class_folders()

    def load(self, *, offline: bool = False) -> Loaded:
        """See `Model.load`; missing weights are downloaded."""
        from harness.models.loaded import Loaded
        from harness.models.normalisation import Normalised
        from harness.util.hashing import sha256_of_weights

        weights = _weights(self)
        if self.file is not None:
            path = Path(self.file).absolute()
        else:
            remote = hub_file(weights.url)
            remote.ensure(offline)
            path = remote.path
        transforms = weights.transforms()
        network = Normalised(_network(self, weights, path), transforms.mean, transforms.std).eval()
        return Loaded(network, sha256_of_weights(network))


def _weights(model: TorchVision) -> Any:
    """Return torchvision's entry of the weights that ``model`` names.

    Raises:
        ModelError: torchvision has no such model, or no such weights of it.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if model.name not in known:
        hint = f"{did_you_mean(model.name, known)}; `ct-harness list models` names them all"
        raise ModelError(f"torchvision has no classifier {model.name!r}{hint}")
    members = models.get_model_weights(model.name).__members__
    if model.weights not in members:
        hint = f"{did_you_mean(model.weights, members)}; of {model.name} it has: {', '.join(members) or 'none'}"
        raise ModelError(f"torchvision has no weights {model.weights!r}{hint}")
    return members[model.weights]


def _network(model: TorchVision, weights: Any, path: Path) -> nn.Module:
    from torchvision import models

    with loading(path, model.name, "torchvision"), _state_dict_given(weights, read_checkpoint(path)):
        network: nn.Module = models.get_model(model.name, weights=weights, progress=False)
    return network


@contextmanager
def _state_dict_given(weights: Any, state: Mapping[str, Any]) -> Iterator[None]:
    """Make torchvision load ``state`` within the block instead of downloading; its builder still sees the entry."""
    type(weights).get_state_dict = lambda *_, **__: state
    try:
        yield
    finally:
        del type(weights).get_state_dict
