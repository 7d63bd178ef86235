"""Entries of RobustBench's zoo, and their architectures with random weights: without downloads, on the CPU."""

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
    """A model of the zoo.

    Args:
        dataset: dataset of its board.
        threat: threat of its board.
        name: name of the model.
    """

    dataset: str
    threat: str
    name: str

    @property
    def board(self) -> str:
        """Name of the board, such as ``cifar10/Linf``."""
        return f"{self.dataset}/{self.threat}"


def zoo() -> list[ZooEntry]:
    """List every entry, board by board, in RobustBench's order; its 3D corruptions have no board of their own."""
    with redirect_stdout(sys.stderr):
        entries = boards(import_robustbench())
    return [ZooEntry(dataset, threat, name) for (dataset, threat), models in entries.items() for name in models]


def build(entry: ZooEntry) -> tuple[nn.Module, Tensor]:
    """Build the entry's network with random weights.

    Returns:
        The network in eval mode, and a random image [1, 3, h, w] of the size that it takes.

    Raises:
        ModelError: it cannot be built.
    """
    import torch

    torch.manual_seed(0)
    try:
        with redirect_stdout(sys.stderr), _untrained_on_cpu():
            utils = import_robustbench()
            name = timm_name(entry.name, entry.dataset, entry.threat)
            if utils.timm.is_model(name):
                network = utils.timm.create_model(name, num_classes=CLASSES[entry.dataset])
            else:
                network = boards(utils)[entry.dataset, entry.threat][entry.name]["model"]()
            preprocessing = RobustBench.model_validate(entry._asdict()).preprocessing()
    except Exception as error:  # the zoo is 200 authors' code
        raise ModelError(f"does not build: {type(error).__name__}: {error}") from error
    side = preprocessing.crop or SIDE[entry.dataset]
    return network.eval(), torch.rand(1, 3, side, side)


@contextmanager
def _untrained_on_cpu() -> Iterator[None]:
    """Within the block, give random weights for ``pretrained=True``, ignore ``.cuda()``, and refuse downloads."""
    import timm
    import torch
    import torchvision

    create, resnet50 = timm.create_model, torchvision.models.resnet50

    def create_untrained(name: str, *args: Any, **kwargs: Any) -> Any:
        return create(name, *args, **kwargs | {"pretrained": False})

    def refuse(*_: Any, **__: Any) -> Any:
        raise ModelError("it tries to download weights")

    def unchanged(self: Any, *_: Any, **__: Any) -> Any:
        return self

    with ExitStack() as stack:
        for owner, name, replacement in (
            (timm, "create_model", create_untrained),
            (torchvision.models, "resnet50", lambda *_, **__: resnet50()),
            (torch.hub, "load_state_dict_from_url", refuse),
            (torch.Tensor, "cuda", unchanged),
            (torch.nn.Module, "cuda", unchanged),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        yield
