"""LoRA: what is scored is what was trained, whatever the library does with a layer; counts are of what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from harness.analysis.task_types import Classification
from harness.api.dataset import Data
from harness.datasets.sources.in_memory import ArraySource
from harness.errors import ModelError
from harness.transfer import finetuning, lora
from harness.transfer.backbone import without_classifier
from harness.transfer.finetuning import LabelledImages, count_trained, merged, trainable_copy
from harness.transfer.linear_probe import LinearProbe
from harness.transfer.probe_network import Head, ProbeNetwork
from harness.transfer.settings import Probing, Tuning
from harness.transfer.transferred import TrainingSet, Transferred

CLASSES = 5


class Net(nn.Module):
    """Three convolutions, of which the last two are of some kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        mode: Any = kind if kind in ("reflect", "circular", "replicate") else "zeros"
        self.stem, self.a = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, padding_mode=mode)
        self.b: nn.Module = self.a if kind == "shared" else nn.Conv2d(8, 8, 3, padding=1)
        if kind == "tied":
            self.b.weight = self.a.weight
        if kind == "dilated":
            self.b = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        if kind == "grouped":
            self.b = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        if kind == "transposed":
            self.b = nn.ConvTranspose2d(8, 8, 3, padding=1)
        if kind == "parametrised":
            self.b = torch.nn.utils.parametrizations.weight_norm(self.b)
        if kind == "weight_norm":
            self.b = torch.nn.utils.weight_norm(self.b)
        if kind == "spectral_norm":
            self.b = torch.nn.utils.spectral_norm(self.b)
        self.fc = nn.Linear(128, CLASSES)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "detached":
            with torch.no_grad():
                x = self.body(x)
        else:
            x = self.body(x)
        logits: Tensor = self.fc(x)
        return logits

    def body(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(F.relu(self.stem(x))))
        if self.kind == "functional":
            x = F.conv2d(x, self.b.get_parameter("weight"), self.b.get_parameter("bias"), padding=1)
        else:
            x = self.b(x)
        return F.adaptive_avg_pool2d(F.relu(x), 4).flatten(1)


KINDS = {
    "plain": ["stem", "a", "b"], "reflect": ["stem", "b"], "circular": ["stem", "b"], "replicate": ["stem", "b"],
    "shared": ["stem"], "tied": ["stem"], "dilated": ["stem", "a"], "weight_norm": ["stem", "a"],
    "spectral_norm": ["stem", "a"], "grouped": ["stem", "a"], "transposed": ["stem", "a"],
    "parametrised": ["stem", "a"], "functional": ["stem", "a"], "detached": ["stem", "a", "b"],
}  # fmt: skip
"""The layers that LoRA can be merged into, by the kind of network."""


@pytest.fixture
def x() -> Tensor:
    return torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def probed(network: nn.Module, x: Tensor) -> ProbeNetwork:
    features = without_classifier(network, x[:1])
    width, drawn = features(x[:1]).shape[1], np.random.default_rng(0)
    weight, bias = drawn.normal(size=(CLASSES, width)), drawn.normal(size=CLASSES)
    head = Head(LinearProbe(np.zeros(width), np.ones(width), weight, bias, 1.0))
    return ProbeNetwork(features, head).eval().requires_grad_(False)


def trained(start: ProbeNetwork, x: Tensor) -> ProbeNetwork:
    y = np.arange(len(x)) % CLASSES
    labels = torch.from_numpy(y)
    images = LabelledImages(lambda at: (x[list(at)], labels[list(at)]), y, Classification())
    *_, network = finetuning.train("lora-2", start, images, np.arange(len(x)), 0.02, Tuning(epochs=6, batch_size=8))
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_network_is_the_trained_one(kind: str, x: Tensor) -> None:
    """Over images that no check has seen."""
    network = trained(start := probed(Net(kind), x), x)
    shown = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = network(shown)
        assert (before - start(shown)).abs().max() > 0.1
        torch.testing.assert_close(merged(network, x[:4])(shown), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "layers"), KINDS.items())
def test_only_layers_where_that_does_not_hold_are_left_out(kind: str, layers: list[str], x: Tensor) -> None:
    names = lora.mergeable(without_classifier(Net(kind), x[:1]), 2, x[:4])
    assert [name.rpartition(".")[2] for name in names] == layers


def test_the_check_draws_from_no_generator_of_the_training(x: Tensor) -> None:
    features = without_classifier(Net("reflect"), x[:1])
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    lora.mergeable(features, 2, x[:4])
    assert torch.equal(torch.rand(1), expected)


def test_a_backbone_without_a_layer_that_holds_is_refused(x: Tensor) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Flatten())
    features = without_classifier(nn.Sequential(network, nn.Linear(256, CLASSES)).eval(), x[:1])
    with pytest.raises(ModelError, match="cannot be merged into any of its 1 linear layers"):
        lora.mergeable(features, 2, x[:4])


def test_a_library_that_merges_otherwise_is_caught_after_training_too(
    x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = trained(probed(Net("plain"), x), x)
    merge = lora.merge_lora

    def wrong(features: nn.Module) -> nn.Module:
        result = merge(features)
        next(result.parameters()).data.add_(0.5)
        return result

    monkeypatch.setattr(lora, "merge_lora", wrong)
    with pytest.raises(ModelError, match="not the network that was trained: its answers change by"):
        merged(network, x[:4])


# --- what is said of it ---


def transferred(kind: str, x: Tensor, folder: Path) -> Transferred:
    labels = np.arange(len(x)) % CLASSES
    data = Data({number: str(number) for number in range(len(x))}, labels)
    images = TrainingSet(ArraySource(x.numpy(), labels), data, "class")
    return Transferred(without_classifier(Net(kind), x[:1]), "", images, Probing(), Tuning(), folder)


@pytest.mark.parametrize(
    ("kind", "names"),
    [("tied", "2 of 3 layers, .*: a, b"), ("grouped", "1 of 3 layers, .*: b"), ("transposed", "1 of 3 layers, .*: b")],
)
def test_layers_that_are_left_out_are_named(kind: str, names: str, x: Tensor, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=f"^lora-2 leaves out {names}$"):
        assert transferred(kind, x, tmp_path).marks("lora-2") == {"lora_partial"}


def test_nothing_is_said_where_all_take_part(x: Tensor, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    assert [transferred("plain", x, tmp_path).marks(method) for method in ("lora-2", "fine_tuning", "")] == [set()] * 3
    assert not [warning for warning in recwarn if "leaves out" in str(warning.message)]


# --- counts ---


HEAD = CLASSES * 129
BY_HAND = {
    ("lora-2", "plain"): 2 * (9 + 8) + 2 * (2 * (72 + 8)), ("lora-2", "functional"): 2 * (9 + 8) + 2 * (72 + 8),
    ("lora-2", "detached"): 0, ("fine_tuning", "detached"): 0, ("fine_tuning", "functional"): 80 + 584 + 584,
    ("lora-2", "shared"): 2 * (9 + 8), ("fine_tuning", "shared"): 80 + 584,
}  # fmt: skip


@pytest.mark.parametrize(("case", "body"), BY_HAND.items())
def test_what_no_gradient_reaches_is_not_counted(case: tuple[str, str], body: int, x: Tensor) -> None:
    method, kind = case
    assert count_trained(method, probed(Net(kind), x), x[:4]) == body + HEAD


def test_attention_of_swin_is_called_as_a_function_and_so_not_trained_by_lora() -> None:
    torch.manual_seed(0)
    network = torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=CLASSES).eval()
    x = torch.rand(2, 3, 32, 32)
    start = probed(network, x)
    names = lora.mergeable(start.features, 2, x)
    assert not [name for name in names if name.endswith(("qkv", "attn.proj"))]
    assert [name for name in names if name.endswith("mlp.0")]
    alive = [weight.numel() for weight in moved(start, x)]
    assert count_trained("lora-2", start, x) == sum(alive)


def moved(start: ProbeNetwork, x: Tensor) -> list[Tensor]:
    """The weights that two steps of gradient descent move: after the first, no matrix of LoRA is zero."""
    network = trainable_copy("lora-2", start, x)
    before = [weight.detach().clone() for weight in network.parameters()]
    optimiser = torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        with torch.enable_grad():
            torch.autograd.backward(F.cross_entropy(network(x), torch.arange(len(x)) % CLASSES))
        optimiser.step()
    return [now for now, old in zip(network.parameters(), before, strict=True) if not torch.equal(now, old)]
