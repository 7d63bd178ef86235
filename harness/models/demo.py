"""Small networks shipped with the package, so that a first leaderboard needs no download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from harness.api.model import Model
from harness.errors import ModelError

if TYPE_CHECKING:
    from harness.models.loaded import Loaded


class Demo(Model):
    """A residual ReLU network for digits, trained by ``ci/train_demo.py`` on the train split.

    Args:
        name: name of the network: ``digits_plain`` (standard training) or ``digits_robust`` (PGD adversarial training,
            L∞, ε = 0.15); with the suffix ``_0to4``, trained on the digits 0 to 4 alone, for transfer to the others.
        normalised: whether the same function is given as a network of normalised images preceded by its
            normalisation, for ``protocol: paper``.
    """

    kind: ClassVar[str] = "demo"

    name: Literal["digits_plain", "digits_robust", "digits_plain_0to4", "digits_robust_0to4"]
    normalised: bool = False

    @classmethod
    def names(cls) -> Mapping[str, Sequence[str]]:
        """Return the names of the demo networks."""
        return {"demo": get_args(cls.model_fields["name"].annotation)}

    @property
    def label(self) -> str:
        """Name of the network."""
        return self.name

    def class_names(self, *, offline: bool = False) -> Sequence[str]:
        """Return the digits that the network was trained on."""
        return "01234" if self.name.endswith("_0to4") else "0123456789"

    def load(self, *, offline: bool = False) -> Loaded:
        """Load the network with its packaged weights; downloads nothing.

        Raises:
            ModelError: the packaged weights are missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load
        from torch import nn

        from harness.models.architectures.digits_net import DigitsNet
        from harness.models.loaded import Loaded
        from harness.models.normalisation import Denormalised, Normalised
        from harness.util.hashing import sha256_of_weights

        path = weights_of(self.name)
        network = DigitsNet(5 if self.name.endswith("_0to4") else 10)
        try:
            network.load_state_dict(load(path.read_bytes()))
        except FileNotFoundError as error:
            expected = f"expected its weights at {path}, found no file"
            raise ModelError(f"demo {self.name}: {expected}; {REPAIR}") from error
        except (SafetensorError, RuntimeError) as error:  # RuntimeError: tensors of another architecture
            found = f"the weights at {path} are damaged: {error}"
            raise ModelError(f"demo {self.name}: {found}; {REPAIR}") from error
        scored: nn.Module = network
        if self.normalised:
            scored = Normalised(nn.Sequential(Denormalised(MEAN, STD), network), MEAN, STD)
        return Loaded(scored.eval(), sha256_of_weights(scored))


MEAN, STD = (0.305,), (0.376,)
"""Mean and standard deviation of the pixels of the training images."""
REPAIR = "reinstall ct-harness, or in a checkout run: python ci/train_demo.py"


def weights_of(name: str) -> Traversable:
    """Return the packaged file with the weights of the demo network ``name``."""
    return files("harness.models").joinpath("weights", f"{name}.safetensors")
