"""Models of RobustBench's zoo, loaded by RobustBench's own ``load_model``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import urlparse

from harness.contracts import Model
from harness.errors import ModelError
from harness.models.files import BadCheckpoint, mismatch, read_checkpoint
from harness.plugins import did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from harness.loaded import Loaded


class RobustBench(Model):
    """The model ``name`` on the board ``dataset``/``threat``.

    Its weights are the file ``<model_dir>/<dataset>/<threat>/<name>.pt``, for an ensemble those that end in
    ``.pt_m0.pt``, ``.pt_m1.pt``, …. Where RobustBench takes them from a web address (XCiT, DeiT, AlexNet and
    the standard ResNet-50 of ImageNet), they lie in the cache of ``torch.hub`` instead.
    """

    kind: ClassVar[str] = "robustbench"
    whereabouts: ClassVar[frozenset[str]] = frozenset({"model_dir"})

    name: str
    dataset: Literal["cifar10", "cifar100", "imagenet"] = "cifar10"
    threat: Literal["Linf", "L2", "corruptions"] = "Linf"
    model_dir: str = "models"

    @classmethod
    def names(cls) -> Mapping[str, Sequence[str]]:
        """RobustBench's entries by board."""
        with redirect_stdout(sys.stderr):
            boards = _boards(import_robustbench())
        return {f"robustbench {dataset}/{threat}": list(models) for (dataset, threat), models in boards.items()}

    @property
    def label(self) -> str:
        """The name of the model."""
        return self.name

    def load(self, *, offline: bool = False) -> Loaded:
        """See `Model.load`; files that are missing are downloaded, and kept only when they are whole."""
        from harness.loaded import Loaded, sha256_of_weights

        with redirect_stdout(sys.stderr):  # RobustBench and gdown print
            utils = import_robustbench()
            files = _files(self, utils)
            for file in files:
                file.ensure(offline)
            network = _load(self, utils, files)
        return Loaded(network.eval(), sha256_of_weights(network))


def import_robustbench() -> Any:
    """The module ``robustbench.utils``.

    As published on PyPI it wants a module ``autoattack`` that is not there; ``pyautoattack`` is a port of
    it, and takes its place unless the real one is installed.

    Raises:
        ModelError: it cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pkg_resources, timm, torch.jit: nothing that users can mend
            if find_spec("autoattack") is None:
                for module in ("autoattack", "autoattack.state"):
                    sys.modules[module] = import_module(f"py{module}")
            return import_module("robustbench.utils")
    except ImportError as error:
        remedy = "pip install 'robustbench>=1.1.1,<2' 'pyautoattack>=0.2,<0.3' 'setuptools<81'"
        raise ModelError(f"RobustBench cannot be imported ({error}); {remedy}") from error


@dataclass(frozen=True)
class _File:
    """A file that ``load_model`` is going to read.

    Args:
        path: where it looks for it.
        url: where anyone can get it with a browser.
        download: writes it to a path.
    """

    path: Path
    url: str
    download: Callable[[str], object]

    @property
    def by_hand(self) -> str:
        """How to do without the download."""
        return f"to put it there by hand, open {self.url} in a browser and save the file as {self.path}"

    def ensure(self, offline: bool) -> None:
        """Have it there and whole, or raise `ModelError`; a file that was there before is never touched."""
        if not self.path.is_file():
            if offline:
                raise ModelError(f"{self.path}: no such file, and offline none is downloaded; {self.by_hand}")
            self._fetch()
        else:
            try:
                read_checkpoint(self.path)
            except BadCheckpoint as bad:
                raise ModelError(f"{self.path} {bad}; delete it and run again, or {self.by_hand}") from bad

    def _fetch(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # It is looked at before it takes its place: what stands there is whole, whoever else downloads.
        with TemporaryDirectory(dir=self.path.parent, prefix=".download-") as folder:
            part = Path(folder) / self.path.name
            try:
                self.download(str(part))
                if not part.is_file():
                    raise FileNotFoundError("no file came")
                read_checkpoint(part)
            except BadCheckpoint as bad:
                raise ModelError(f"{self.path}: what came from {self.url} {bad}; {self.by_hand}") from bad
            except Exception as error:  # gdown, requests and urllib have no common base
                why = " ".join(f"{type(error).__name__}: {error}".split())  # gdown's come on many lines
                raise ModelError(f"{self.path}: the download failed ({why}); {self.by_hand}") from error
            part.replace(self.path)


def _files(model: RobustBench, utils: Any) -> list[_File]:
    """The files of ``model``, as ``load_model`` will look for them."""
    timm_name = f"{model.name.lower().replace('-', '_')}_{model.dataset}_{model.threat.lower()}"
    entry = _entry(model, utils)
    if utils.timm.is_model(timm_name):
        return [_hub_file(utils.timm.get_pretrained_cfg(timm_name).url)]
    if entry["gdrive_id"] == "":  # Standard_R50 on both boards of ImageNet
        from torchvision.models import ResNet50_Weights

        return [_hub_file(ResNet50_Weights.IMAGENET1K_V1.url)]

    def drive_file(name: str, gdrive_id: str) -> _File:
        path = Path(model.model_dir).absolute() / model.dataset / model.threat / name
        url = f"https://drive.google.com/uc?id={gdrive_id}"
        return _File(path, url, lambda part: utils.download_gdrive_new(gdrive_id, part))

    if isinstance(entry["gdrive_id"], list):
        return [drive_file(f"{model.name}.pt_m{i}.pt", one) for i, one in enumerate(entry["gdrive_id"])]
    return [drive_file(f"{model.name}.pt", entry["gdrive_id"])]


def _hub_file(url: str) -> _File:
    from torch import hub

    path = Path(hub.get_dir()).absolute() / "checkpoints" / Path(urlparse(url).path).name
    return _File(path, url, lambda part: hub.download_url_to_file(url, part))


def _boards(utils: Any) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {
        (dataset.value, threat.value): models
        for dataset, boards in utils.all_models.items()
        for threat, models in boards.items()
    }


def _entry(model: RobustBench, utils: Any) -> Mapping[str, Any]:
    """What the zoo knows of ``model``.

    Raises:
        ModelError: there is no such board, or ``model`` is not on it.
    """
    boards = _boards(utils)
    board = boards.get((model.dataset, model.threat))
    if board is None:
        known = ", ".join("/".join(board) for board in boards)
        raise ModelError(f"RobustBench has no board {model.dataset}/{model.threat}; its boards: {known}")
    if model.name not in board:
        others = ["/".join(where) for where, models in boards.items() if model.name in models]
        elsewhere = f"; it is on {' and '.join(others)}: set dataset and threat" if others else ""
        hint = elsewhere or f"{did_you_mean(model.name, board)}; `ct-harness list models` names them all"
        raise ModelError(f"no {model.name!r} on RobustBench's board {model.dataset}/{model.threat}{hint}")
    entry: Mapping[str, Any] = board[model.name]
    return entry


def _load(model: RobustBench, utils: Any, files: list[_File]) -> nn.Module:
    where = {"model_dir": model.model_dir, "dataset": model.dataset, "threat_model": model.threat}
    try:
        with _nothing_left_random(utils):
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
def _nothing_left_random(utils: Any) -> Iterator[None]:
    """Within it, ``load_model`` refuses a checkpoint that leaves weights as they were initialised.

    Where ``normalize.mean`` is missing, RobustBench forgives an ImageNet model every other missing key: a
    wrong checkpoint would make a random network, in silence.
    """
    original = utils._safe_load_state_dict

    def load(network: nn.Module, name: str, state: Mapping[str, Any], dataset: Any) -> nn.Module:
        loaded: nn.Module = original(network, name, state, dataset)
        constants = {"mean", "std", "mu", "sigma"}
        weights = (key for key, _ in loaded.named_parameters() if key.rpartition(".")[2] not in constants)
        missing = [f'"{key}"' for key in weights if key not in state]
        if missing:
            raise RuntimeError(f"Missing key(s) in state_dict: {', '.join(missing)}. ")  # as torch says it
        return loaded

    utils._safe_load_state_dict = load
    try:
        yield
    finally:
        utils._safe_load_state_dict = original
