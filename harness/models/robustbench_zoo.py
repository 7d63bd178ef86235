"""RobustBench's entries, and each one's architecture with random weights: nothing is downloaded, no GPU is needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import ModelError
from harness.models.robustbench import RobustBench, boards, import_robustbench, timm_name

if TYPE_CHECKING:
    from torch import Tensor, nn

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
SIDE = {"cifar10": 32, "cifar100": 32, "imagenet": 224}


class ZooEntry(NamedTuple):
    """A model's place in the zoo."""

    dataset: str
    threat: str
    name: str

    @property
    def board(self) -> str:
        """``cifar10/Linf``."""
        return f"{self.dataset}/{self.threat}"


def zoo() -> list[ZooEntry]:
    """Every entry, board by board, in RobustBench's order; the boards of 3D corruptions have no models of their own."""
    with redirect_stdout(sys.stderr):
        found = boards(import_robustbench())
    return [ZooEntry(dataset, threat, name) for (dataset, threat), models in found.items() for name in models]


def build(entry: ZooEntry) -> tuple[nn.Module, Tensor]:
    """The entry's network in eval mode, its weights random, and one image [1, 3, h, w] of the size it takes.

    Raises:
        ModelError: it does not build.
    """
    import torch

    torch.manual_seed(0)
    try:
        with redirect_stdout(sys.stderr), _neither_downloads_nor_gpu():
            utils = import_robustbench()
            name = timm_name(entry.name, entry.dataset, entry.threat)
            if utils.timm.is_model(name):
                network = utils.timm.create_model(name, num_classes=CLASSES[entry.dataset])
            else:
                network = boards(utils)[entry.dataset, entry.threat][entry.name]["model"]()
            wanted = RobustBench.model_validate(entry._asdict()).preprocessing()
    except Exception as error:  # the zoo is 200 authors' code
        raise ModelError(f"does not build: {type(error).__name__}: {error}") from error
    side = wanted.crop or SIDE[entry.dataset]
    return network.eval(), torch.rand(1, 3, side, side)


@contextmanager
def _neither_downloads_nor_gpu() -> Iterator[None]:
    """Within it, ``pretrained=True`` gives random weights, ``.cuda()`` stays on the CPU, and a download is an error."""
    import timm
    import torch
    import torchvision

    create, resnet50 = timm.create_model, torchvision.models.resnet50

    def random(name: str, *args: Any, **kwargs: Any) -> Any:
        return create(name, *args, **kwargs | {"pretrained": False})

    def refuse(*_: Any, **__: Any) -> Any:
        raise ModelError("it wants to download weights")

    def here(self: Any, *_: Any, **__: Any) -> Any:
        return self

    with ExitStack() as stack:
        for owner, name, replacement in (
            (timm, "create_model", random),
            (torchvision.models, "resnet50", lambda *_, **__: resnet50()),
            (torch.hub, "load_state_dict_from_url", refuse),
            (torch.Tensor, "cuda", here),
            (torch.nn.Module, "cuda", here),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        yield
