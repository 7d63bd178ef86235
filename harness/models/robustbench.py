"""Models of RobustBench's zoo, loaded by RobustBench's own ``load_model``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.api.model import Model
from harness.api.records import AS_STORED, Preprocessing, Published
from harness.datasets.imagenet import class_folders
from harness.errors import ModelError
from harness.models.checkpoint_files import check_checkpoint, hub_file, mismatch
from harness.models.published import published
from harness.models.timm import timm_preprocessing
from harness.util.downloads import Remote
from harness.util.text import did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from harness.models.loaded import Loaded


class RobustBench(Model):
    """The model ``name`` on RobustBench's board ``dataset``/``threat``.

    Its weights are the file ``<model_dir>/<dataset>/<threat>/<name>.pt``; those of an ensemble the files ending in
    ``.pt_m0.pt``, ``.pt_m1.pt``, …. Weights that RobustBench takes from a web address (XCiT, DeiT, AlexNet and the
    standard ResNet-50 of ImageNet) are kept in the cache of ``torch.hub`` instead.

    Args:
        name: name of the model in RobustBench's zoo; see ``ct-harness list models``.
        dataset: dataset of the board.
        threat: threat of the board.
        model_dir: directory of the weights.
    """

    kind: ClassVar[str] = "robustbench"
    location_fields: ClassVar[frozenset[str]] = frozenset({"model_dir"})

    name: str
    dataset: Literal["cifar10", "cifar100", "imagenet"] = "cifar10"
    threat: Literal["Linf", "L2", "corruptions"] = "Linf"
    model_dir: str = "models"

    @classmethod
    def names(cls) -> Mapping[str, Sequence[str]]:
        """Return the names of RobustBench's models, by board."""
        with redirect_stdout(sys.stderr):
            entries = boards(import_robustbench())
        return {f"robustbench {dataset}/{threat}": list(models) for (dataset, threat), models in entries.items()}

    @property
    def label(self) -> str:
        """Name of the model."""
        return self.name

    def preprocessing(self, *, offline: bool = False) -> Preprocessing:
        """Return RobustBench's own preprocessing, which resizes images on the boards of ImageNet alone."""
        if self.dataset != "imagenet":
            return AS_STORED
        with redirect_stdout(sys.stderr):
            utils = import_robustbench()
            entry = _entry(self, utils)
            if (cfg := _timm_cfg(self, utils)) is not None:
                return timm_preprocessing(cfg)
            return _as_preprocessing(import_module("robustbench.data").PREPROCESSINGS[entry["preprocessing"]])

    def class_names(self, *, offline: bool = False) -> Sequence[str]:
        """Return those of ImageNet; the boards of CIFAR are scored on images whose classes have numbers alone."""
        return class_folders() if self.dataset == "imagenet" else ()

    def published(self, dataset: str, threat: str) -> Published | None:
        """Return the accuracies on the model's own board; under another threat, the clean one alone."""
        if dataset != self.dataset:
            return None
        if threat.removesuffix("_3d") == self.threat:
            return published(dataset, threat, self.name)
        own = published(dataset, self.threat, self.name)
        return replace(own, robust=None) if own else None

    def load(self, *, offline: bool = False) -> Loaded:
        """See `Model.load`; missing files are downloaded, and kept only if complete."""
        from harness.models.loaded import Loaded
        from harness.util.hashing import sha256_of_weights

        with redirect_stdout(sys.stderr):  # RobustBench and gdown print
            utils = import_robustbench()
            files = _files(self, utils)
            for file in files:
                file.ensure(offline)
            network = _load(self, utils, files)
        return Loaded(network.eval(), sha256_of_weights(network))


def import_robustbench() -> Any:
    """Import the module ``robustbench.utils``.

    The version on PyPI imports a module ``autoattack`` that PyPI does not have. Its port ``pyautoattack`` takes its
    place, unless ``autoattack`` is installed.

    Raises:
        ModelError: it cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pkg_resources, timm, torch.jit: nothing that users can fix
            if find_spec("autoattack") is None:
                for module in ("autoattack", "autoattack.state"):
                    sys.modules[module] = import_module(f"py{module}")
            return import_module("robustbench.utils")
    except ImportError as error:
        remedy = "pip install 'robustbench>=1.1.1,<2' 'pyautoattack>=0.2,<0.3' 'setuptools<81'"
        raise ModelError(f"RobustBench cannot be imported ({error}); {remedy}") from error


def _files(model: RobustBench, utils: Any) -> list[Remote]:
    """List the files of ``model``, where ``load_model`` will look for them."""
    entry = _entry(model, utils)
    if (cfg := _timm_cfg(model, utils)) is not None:
        return [hub_file(cfg.url)]
    if entry["gdrive_id"] == "":  # Standard_R50 on both boards of ImageNet
        from torchvision.models import ResNet50_Weights

        return [hub_file(ResNet50_Weights.IMAGENET1K_V1.url)]

    def drive_file(name: str, gdrive_id: str) -> Remote:
        path = Path(model.model_dir).absolute() / model.dataset / model.threat / name
        url = f"https://drive.google.com/uc?id={gdrive_id}"
        return Remote(path, url, check_checkpoint, lambda part: utils.download_gdrive_new(gdrive_id, part))

    if isinstance(entry["gdrive_id"], list):
        return [drive_file(f"{model.name}.pt_m{i}.pt", one) for i, one in enumerate(entry["gdrive_id"])]
    return [drive_file(f"{model.name}.pt", entry["gdrive_id"])]


def timm_name(name: str, dataset: str, threat: str) -> str:
    """Return the name by which RobustBench asks timm for a model before it looks into its own zoo."""
    return f"{name.lower().replace('-', '_')}_{dataset}_{threat.lower()}"


def _timm_cfg(model: RobustBench, utils: Any) -> Any | None:
    """Return timm's config of ``model`` if RobustBench builds it with timm, otherwise None."""
    name = timm_name(model.name, model.dataset, model.threat)
    return utils.timm.get_pretrained_cfg(name) if utils.timm.is_model(name) else None


def _as_preprocessing(compose: Any) -> Preprocessing:
    """Convert an entry of RobustBench's table, which has at most one Resize and one CenterCrop, in this order."""
    preprocessing = AS_STORED
    for step in compose.transforms[:-1]:  # the last is ToTensor
        match type(step).__name__:
            case "Resize":
                size = tuple(step.size) if isinstance(step.size, list) else step.size
                preprocessing = preprocessing._replace(resize=size, interpolation=step.interpolation.value)
            case "CenterCrop":
                preprocessing = preprocessing._replace(crop=step.size[0])
            case other:
                raise ModelError(f"RobustBench prepares its images by {other}, which ct-harness does not know")
    return preprocessing


def boards(utils: Any) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Return the entries of RobustBench's zoo by dataset and threat, each a mapping from name to entry."""
    return {
        (dataset.value, threat.value): models
        for dataset, threats in utils.all_models.items()
        for threat, models in threats.items()
    }


def _entry(model: RobustBench, utils: Any) -> Mapping[str, Any]:
    """Return the zoo's entry of ``model``.

    Raises:
        ModelError: there is no such board, or ``model`` is not on it.
    """
    known = boards(utils)
    board = known.get((model.dataset, model.threat))
    if board is None:
        names = ", ".join(map("/".join, known))
        raise ModelError(f"RobustBench has no board {model.dataset}/{model.threat}; its boards: {names}")
    if model.name not in board:
        others = ["/".join(where) for where, models in known.items() if model.name in models]
        elsewhere = f"; it is on {' and '.join(others)}: set dataset and threat" if others else ""
        hint = elsewhere or f"{did_you_mean(model.name, board)}; `ct-harness list models` names them all"
        raise ModelError(f"no {model.name!r} on RobustBench's board {model.dataset}/{model.threat}{hint}")
    entry: Mapping[str, Any] = board[model.name]
    return entry


def _load(model: RobustBench, utils: Any, files: list[Remote]) -> nn.Module:
    where = {"model_dir": model.model_dir, "dataset": model.dataset, "threat_model": model.threat}
    try:
        with _missing_weights_refused(utils):
            network: nn.Module = utils.load_model(model.name, **where)
    except Exception as error:  # the zoo is 200 authors' code
        paths = ", ".join(str(file.path) for file in files)
        by_hand = "; ".join(file.by_hand for file in files)
        if fault := mismatch(error):
            raise ModelError(f"{paths} {fault}; delete it and run again, or {by_hand}") from error
        raise ModelError(
            f"{paths}: load_model failed ({error!r}); if the file is not RobustBench's, {by_hand}"
        ) from error
    return network


@contextmanager
def _missing_weights_refused(utils: Any) -> Iterator[None]:
    """Make ``load_model`` refuse, within the block, a checkpoint that leaves weights at their initialisation.

    If ``normalize.mean`` is missing, RobustBench also ignores every other missing key of an ImageNet model: a wrong
    checkpoint would silently give a random network.
    """
    original = utils._safe_load_state_dict

    def load(network: nn.Module, name: str, state: Mapping[str, Any], dataset: Any) -> nn.Module:
        loaded: nn.Module = original(network, name, state, dataset)
        constants = {"mean", "std", "mu", "sigma"}
        weights = (key for key, _ in loaded.named_parameters() if key.rpartition(".")[2] not in constants)
        missing = [f'"{key}"' for key in weights if key not in state]
        if missing:
            raise RuntimeError(f"Missing key(s) in state_dict: {', '.join(missing)}. ")  # torch's wording
        return loaded

    utils._safe_load_state_dict = load
    try:
        yield
    finally:
        utils._safe_load_state_dict = original
