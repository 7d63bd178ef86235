"""Your own network: a callable that builds it, and a file with its weights."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from harness.api.model import Model
from harness.api.validation import WRITTEN, Name
from harness.errors import ModelError
from harness.models.checkpoint_files import BadCheckpoint, mismatch, read_checkpoint
from harness.util.foreign import ANYTHING, told
from harness.util.text import did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from harness.models.loaded import Loaded

Mean = Annotated[float, Field(strict=True, allow_inf_nan=False), WRITTEN]
Std = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), WRITTEN]


MOVED = {
    "harness.models.cifar_resnet": "harness.models.architectures.cifar_resnet",
    "harness.models.swin": "harness.models.architectures.relu_swin",
    "harness.models.networks": "harness.models.architectures.digits_net",
}
"""Current module of a builder, by the name under which it was first published; either name is the same network."""


class Checkpoint(Model):
    """The network that ``builder`` returns, with the state dict in ``weights``.

    Args:
        builder: callable that returns the network and takes no arguments, as ``package.module:callable``; installed,
            or importable from the working directory.
        weights: path of a state dict (a torch checkpoint, or ``*.safetensors``), or ``pkg:package/path/inside`` for a
            file of an installed package; if omitted, the builder returns the trained network.
        mean: number to be subtracted from each channel of an image in [0, 1]; given together with ``std``.
        std: number by which each channel is then divided, > 0.
        name: name on the leaderboard; the callable's by default.
    """

    kind: ClassVar[str] = "checkpoint"
    location_fields: ClassVar[frozenset[str]] = frozenset({"weights", "name"})  # the weights are hashed

    builder: str
    weights: str | None = None
    mean: Annotated[tuple[Mean, ...], Field(min_length=1)] | None = None
    std: Annotated[tuple[Std, ...], Field(min_length=1)] | None = None
    name: Name | None = None

    @field_validator("builder")
    @classmethod
    def _has_module_and_callable(cls, builder: str) -> str:
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", builder):
            raise ValueError("expected package.module:callable, such as my_networks:resnet18")
        return builder

    @model_validator(mode="after")
    def _mean_with_std(self) -> Checkpoint:
        if (self.mean is None) != (self.std is None):
            given, other = ("mean", "std") if self.std is None else ("std", "mean")
            raise ValueError(f"{given} without {other}; give both, or none if the network normalises itself")
        if self.mean and self.std and len(self.mean) != len(self.std):
            channels = f"mean has {len(self.mean)} channels and std {len(self.std)}"
            raise ValueError(f"{channels}; give both one number a channel")
        return self

    @property
    def label(self) -> str:
        """Name on the leaderboard."""
        return self.name or self.builder.partition(":")[2]

    def identity(self) -> dict[str, Any]:
        """See `Part.identity`; a builder keeps the identity of its first published name."""
        module, _, name = self.builder.partition(":")
        first_published = next((old for old, new in MOVED.items() if new == module), module)
        return super().identity() | {"builder": f"{first_published}:{name}"}

    @property
    def sources(self) -> tuple[str, ...]:
        """See `Model.sources`; the builder's module."""
        module = self.builder.partition(":")[0]
        return (MOVED.get(module, module),)

    def load(self, *, offline: bool = False) -> Loaded:
        """See `Model.load`; nothing is downloaded, unless the builder does so."""
        from harness.models.loaded import Loaded
        from harness.util.hashing import sha256_of_weights

        network = _build(self.builder)
        if self.weights is not None:
            _load_weights(network, _path(self.weights))
        if self.mean is not None and self.std is not None:
            from harness.models.normalisation import Normalised

            network = Normalised(network, self.mean, self.std)
        if network.cpu().eval() is not network:
            raise ModelError(
                f"builder {self.builder!r}: train() of its network returns nothing, or another object, where torch's "
                "returns the network itself; end it with `return self`"
            )
        return Loaded(network, sha256_of_weights(network))


def _build(builder: str) -> nn.Module:
    from torch import nn

    module, _, name = builder.partition(":")
    if module.split(".")[0] == "robustbench":
        from harness.models.robustbench import import_robustbench

        import_robustbench()  # which a plain import cannot do
    with _working_directory_on_path():
        try:
            imported = import_module(MOVED.get(module, module))
        except SystemExit as error:
            raise ModelError(
                f"builder {builder!r}: its module {module!r} ends the process when it is imported: {told(error)}; "
                "put what only a script does, such as reading its arguments, under if __name__ == '__main__'"
            ) from error
        except ANYTHING as error:
            raise ModelError(
                f"builder {builder!r}: the module {module!r} cannot be imported ({error!r}); "
                f"install its package, or run from the directory that holds it (now {Path.cwd()})"
            ) from error
        if not hasattr(imported, name):
            hint = did_you_mean(name, [word for word in vars(imported) if not word.startswith("_")])
            raise ModelError(f"builder {builder!r}: {imported.__file__ or module} has no {name!r}{hint}")
        try:
            network = getattr(imported, name)()
        except SystemExit as error:
            raise ModelError(f"builder {builder!r}: {told(error)}; it must return the network") from error
        except ANYTHING as error:
            raise ModelError(
                f"builder {builder!r}: raised {error!r}; it is called without arguments, and must return the network"
            ) from error
    if not isinstance(network, nn.Module):
        found = type(network).__name__
        raise ModelError(f"builder {builder!r}: returned a {found}; it must return a torch nn.Module")
    return network


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    """Make modules of the working directory importable within the block, behind all installed ones."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _path(weights: str) -> Path:
    """Return the file that ``weights`` names.

    Raises:
        ModelError: there is no such file or package.
    """
    if not weights.startswith("pkg:"):
        path = Path(weights).absolute()
        if not path.is_file():
            raise ModelError(f"weights: no file {path}; give a path from the working directory, or pkg:…")
        return path
    package, _, inside = weights.removeprefix("pkg:").partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None:
        raise ModelError(f"weights {weights!r}: no package {package!r}; install it, or correct pkg:package/path")
    directories = [Path(directory) for directory in spec.submodule_search_locations or ()]
    for directory in directories:
        if (directory / inside).is_file():
            return directory / inside
    raise ModelError(
        f"weights {weights!r}: no file {inside!r} in {', '.join(map(str, directories)) or package}; "
        f"install a version of {package} that ships it, or give the path of a checkpoint"
    )


def _load_weights(network: nn.Module, path: Path) -> None:
    from harness.models.state_dicts import keys_of, own_state

    try:
        content = read_checkpoint(path)
        found = own_state(content, network)
    except BadCheckpoint as bad:
        raise ModelError(f"weights: {path} {bad}; get the file again, or name another") from bad
    try:
        network.load_state_dict(found.state)
    except Exception as error:  # torch raises RuntimeError; a hook of the network may raise anything
        fault = mismatch(error) or f"cannot be loaded ({error!r})"
        raise ModelError(
            f"weights: {path} {fault}; give builder and weights of one network ({keys_of(content)})"
        ) from error
    if found.key or found.prefix:
        warnings.warn(f"weights: {path}: the state dict {found.place} was taken", stacklevel=2)
