"""Models of torchvision, with the weights that it publishes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api.model import Model
from harness.api.records import Preprocessing
from harness.errors import ModelError
from harness.models.checkpoint_files import hub_file, loading, read_checkpoint
from harness.util.text import did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from harness.models.loaded import Loaded

DEFAULT = "DEFAULT"


class TorchVision(Model):
    """A classifier of torchvision, with the mean and std of its weights inside.

    Its weights lie in the cache of ``torch.hub``.

    Args:
        name: ``resnet18``, …: see ``ct-harness list models``.
        weights: ``IMAGENET1K_V1``, …; without it those that torchvision holds for the best.
        file: a checkpoint of this model that lies here; nothing is downloaded then, and ``weights`` says how its
            pictures are prepared.
    """

    kind: ClassVar[str] = "torchvision"
    location_fields: ClassVar[frozenset[str]] = frozenset({"file"})  # the weights are hashed

    name: str
    weights: str = DEFAULT
    file: str | None = None

    @classmethod
    def names(cls) -> Mapping[str, Sequence[str]]:
        """The classifiers of torchvision."""
        from torchvision import models

        return {"torchvision": models.list_models(module=models)}

    @property
    def label(self) -> str:
        """The name of the model, and of the weights where they are not the default."""
        return self.name if self.weights == DEFAULT else f"{self.name} {self.weights}"

    def preprocessing(self, *, offline: bool = False) -> Preprocessing:
        """What torchvision did when it validated these weights."""
        wanted = _weights(self).transforms()
        [resize], [crop] = wanted.resize_size, wanted.crop_size
        return Preprocessing(resize, crop, wanted.interpolation.value)

    def load(self, *, offline: bool = False) -> Loaded:
        """See `Model.load`; the weights are downloaded where they are missing."""
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
        wanted = weights.transforms()
        network = Normalised(_network(self, weights, path), wanted.mean, wanted.std).eval()
        return Loaded(network, sha256_of_weights(network))


def _weights(model: TorchVision) -> Any:
    """The entry in torchvision of the weights that ``model`` names.

    Raises:
        ModelError: torchvision does not know the name, or no such weights.
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

    with loading(path, model.name, "torchvision"), _in_place_of_a_download(weights, read_checkpoint(path)):
        network: nn.Module = models.get_model(model.name, weights=weights, progress=False)
    return network


@contextmanager
def _in_place_of_a_download(weights: Any, state: Mapping[str, Any]) -> Iterator[None]:
    """Within it, torchvision's builders get ``state``: what they build depends on the entry, not only on its file."""
    type(weights).get_state_dict = lambda *_, **__: state
    try:
        yield
    finally:
        del type(weights).get_state_dict
