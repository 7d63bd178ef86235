"""Small public networks, as their authors published them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import field_validator

from harness.api.model import Model
from harness.api.records import Preprocessing, Published
from harness.errors import ModelError
from harness.models.catalogue import Entry, catalogue
from harness.models.checkpoint_files import BadCheckpoint, mismatch, read_checkpoint
from harness.util.downloads import BadFile, Remote
from harness.util.lockfile import fingerprint
from harness.util.text import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.models.loaded import Loaded

COMPRESSED = ".net"
"""Suffix of files of Deep Compression."""


class Zoo(Model):
    """The network ``name`` of the catalogue, with the normalisation of its training inside.

    Its weights are the authors' file ``<model_dir>/zoo/<file>``, whose hash the catalogue knows.

    Args:
        name: name in the catalogue; see ``ct-harness list models``.
        model_dir: directory of the weights.
    """

    kind: ClassVar[str] = "zoo"
    location_fields: ClassVar[frozenset[str]] = frozenset({"model_dir"})

    name: str
    model_dir: str = "models"

    @field_validator("name")
    @classmethod
    def _in_catalogue(cls, name: str) -> str:
        if name not in catalogue():
            hint = did_you_mean(name, catalogue())
            raise ValueError(f"no network {name!r} in the catalogue{hint}; `ct-harness list models` names them all")
        return name

    @classmethod
    def names(cls) -> Mapping[str, Sequence[str]]:
        """Return the names in the catalogue, by dataset."""
        entries = catalogue().values()
        return {
            f"zoo {dataset}": [entry.name for entry in entries if entry.dataset == dataset]
            for dataset in dict.fromkeys(entry.dataset for entry in entries)
        }

    @property
    def entry(self) -> Entry:
        """Entry in the catalogue."""
        return catalogue()[self.name]

    @property
    def label(self) -> str:
        """Name in the catalogue."""
        return self.name

    def preprocessing(self, *, offline: bool = False) -> Preprocessing:
        """Return the preprocessing with which the authors validated the network."""
        return Preprocessing(self.entry.resize, self.entry.crop)

    def published(self, dataset: str, threat: str) -> Published | None:
        """Return the clean accuracy alone, as none of the authors ran AutoAttack."""
        if dataset != self.entry.dataset or self.entry.clean is None:
            return None
        return Published(self.entry.clean, robust=None, eps=None, source=self.entry.source)

    def load(self, *, offline: bool = False) -> Loaded:
        """See `Model.load`; a missing file is downloaded."""
        from harness.models.loaded import Loaded
        from harness.models.normalisation import Normalised
        from harness.util.hashing import sha256_of_weights

        file = _file(self.entry, Path(self.model_dir).absolute() / "zoo")
        file.ensure(offline)
        network = self.entry.build()
        try:
            network.load_state_dict(_state(self.entry, file.path, network))
        except (BadCheckpoint, RuntimeError) as error:  # of a file that is what it should be: torch's fault or ours
            raise ModelError(f"{file.path} {mismatch(error) or error}; report it") from error
        normalised = Normalised(network, self.entry.mean, self.entry.std).eval()
        return Loaded(normalised, sha256_of_weights(normalised))


def _file(entry: Entry, directory: Path) -> Remote:
    """Return the authors' file; any other of that name is refused."""

    def check(path: Path) -> None:
        found = fingerprint(path).sha256
        if found != entry.sha256:
            raise BadFile(f"is not the published file: expected SHA-256 {entry.sha256[:16]}…, found {found[:16]}…")

    return Remote(directory / entry.file, entry.url, check)


def _state(entry: Entry, path: Path, network: nn.Module) -> Mapping[str, Tensor]:
    """Return the state dict of ``network`` in the authors' file."""
    from harness.models.deep_compression import decode
    from harness.models.state_dicts import own_state

    if path.suffix == COMPRESSED:
        return decode(path, network)
    return own_state(read_checkpoint(path), network, entry.key).state
