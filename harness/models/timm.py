"""Models of timm, from its registry or from any repository on the Hugging Face hub."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api.model import Model
from harness.api.records import Preprocessing
from harness.datasets.imagenet import class_folders
from harness.errors import ModelError
from harness.models.checkpoint_files import hub_file, loading, read_checkpoint
from harness.util.downloads import from_hugging_face
from harness.util.text import did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from harness.models.loaded import Loaded

HUB = "hf_hub:"
CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights in a repository, the preferred one first."""


class Timm(Model):
    """A pretrained model of timm, with the mean and std of its training inside.

    The weights are kept in the cache of the Hugging Face hub. The ``config.json`` of a repository on the hub is
    downloaded as soon as the preprocessing is needed.

    Args:
        name: name in timm's registry such as ``resnet18.a1_in1k`` (timm's default weights without a tag), or
            ``hf_hub:user/repo`` with an optional ``@revision``.
        file: path of a checkpoint of this model; with it, no weights are downloaded.
    """

    kind: ClassVar[str] = "timm"
    location_fields: ClassVar[frozenset[str]] = frozenset({"file"})  # the weights are hashed

    name: str
    file: str | None = None

    @classmethod
    def names(cls) -> Mapping[str, Sequence[str]]:
        """Return the names of timm's pretrained models."""
        import timm

        return {"timm": timm.list_pretrained()}

    @property
    def label(self) -> str:
        """Name of the model."""
        return self.name

    def preprocessing(self, *, offline: bool = False) -> Preprocessing:
        """Return timm's validation preprocessing of the model, at the resolution of its training."""
        return timm_preprocessing(_card(self.name, offline).cfg)

    def class_names(self, *, offline: bool = False) -> Sequence[str]:
        """Return those that a repository gives; otherwise ImageNet's where there are as many classes."""
        cfg = _card(self.name, offline).cfg
        return cfg.label_names or (class_folders() if cfg.num_classes == 1000 else ())

    def load(self, *, offline: bool = False) -> Loaded:
        """See `Model.load`; missing weights are downloaded."""
        from harness.models.loaded import Loaded
        from harness.models.normalisation import Normalised
        from harness.util.hashing import sha256_of_weights

        card = _card(self.name, offline)
        path = Path(self.file).absolute() if self.file is not None else _weights(card, offline)
        network = Normalised(_network(card, path), card.cfg.mean, card.cfg.std).eval()
        return Loaded(network, sha256_of_weights(network))


@dataclass(frozen=True)
class _Card:
    """All that is known of a model before its weights are loaded.

    Args:
        name: name in the benchmark.
        architecture: name of timm's builder.
        cfg: timm's ``PretrainedCfg``.
        arguments: keyword arguments of the builder.
    """

    name: str
    architecture: str
    cfg: Any
    arguments: Mapping[str, Any]


def _card(name: str, offline: bool) -> _Card:
    """Look a model up, in timm's registry or on the hub.

    Raises:
        ModelError: there is no such model, or it has no such weights.
    """
    import timm

    if name.startswith(HUB):
        return _card_of_hub(name, offline)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = did_you_mean(name, timm.list_models())
        raise ModelError(f"timm has no model {architecture!r}{hint}; `ct-harness list models` names them all")
    known = [full for full in timm.list_pretrained() if full.partition(".")[0] == architecture]
    if not known or (tag and name not in known):
        missing = f"{name!r}{did_you_mean(name, known)}" if tag else f"{architecture!r}"
        raise ModelError(f"timm has no weights {missing}; of {architecture} it has: {', '.join(known) or 'none'}")
    return _Card(name, architecture, timm.get_pretrained_cfg(name), {})


def _card_of_hub(name: str, offline: bool) -> _Card:
    import timm
    from timm.models import PretrainedCfg

    repo, _, revision = name.removeprefix(HUB).partition("@")
    by_hand = "to do without it, name the timm architecture and give its weights under file"
    path = from_hugging_face(repo, [CONFIG], revision or None, offline, by_hand)
    try:
        config = json.loads(path.read_text())
        cfg = config.get("pretrained_cfg", config)  # in old repositories the file is the pretrained_cfg itself
        known = {key: value for key, value in cfg.items() if key in PretrainedCfg.__dataclass_fields__}
        known["label_names"] = tuple(config.get("label_names") or ())
        known["num_classes"] = config.get("num_classes", known.get("num_classes", 1000))
        architecture = str(config["architecture"])
    except (ValueError, AttributeError, KeyError) as error:
        raise ModelError(f"{path}: no timm config ({error!r}); name a repository of a timm model") from error
    if not timm.is_model(architecture):
        raise ModelError(f"{path}: timm {timm.__version__} has no architecture {architecture!r}; try a newer timm")
    hub = {"hf_hub_id": name.removeprefix(HUB), "architecture": architecture}
    return _Card(name, architecture, PretrainedCfg(**(known | hub)), config.get("model_args") or {})


def _weights(card: _Card, offline: bool) -> Path:
    """Return the local file of the weights, which is downloaded if missing."""
    if card.cfg.hf_hub_id is None:
        remote = hub_file(card.cfg.url)
        remote.ensure(offline)
        return remote.path
    repo, _, revision = card.cfg.hf_hub_id.partition("@")
    names = [card.cfg.hf_hub_filename] if card.cfg.hf_hub_filename else WEIGHTS
    by_hand = f"to do without the download, get it on another machine and give it to {card.name} under file"
    return from_hugging_face(repo, names, revision or None, offline, by_hand)


def _network(card: _Card, path: Path) -> nn.Module:
    import timm

    with loading(path, card.name, "timm"):
        read_checkpoint(path)  # timm would run the code in a pickle
        cfg = replace(card.cfg, file=str(path), source="file", custom_load=False)
        network: nn.Module = timm.create_model(card.architecture, pretrained=True, pretrained_cfg=cfg, **card.arguments)
    return network


def timm_preprocessing(cfg: Any) -> Preprocessing:
    """Return the preprocessing with which timm validates a model.

    Args:
        cfg: the model's ``PretrainedCfg`` in timm.

    Raises:
        ModelError: the preprocessing pads, or its images are not square.
    """
    from timm.data import resolve_data_config

    data = resolve_data_config(pretrained_cfg=cfg.to_dict())
    _, height, width = data["input_size"]
    if height != width or data["crop_mode"] not in ("center", "squash"):
        expected = f"{height}×{width} pixels, crop mode {data['crop_mode']!r}"
        raise ModelError(f"{cfg.architecture}: takes images of {expected}; ct-harness crops squares from the centre")
    scaled = math.floor(height / data["crop_pct"])
    resize = (scaled, scaled) if data["crop_mode"] == "squash" else scaled
    return Preprocessing(resize, height, data["interpolation"])
