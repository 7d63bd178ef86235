"""The demo networks, and the digits dataset for which they are trained."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness.api.dataset import Dataset
from harness.api.model import Model
from harness.api.records import Batch
from harness.api.registry import build
from harness.datasets.digits import Digits
from harness.errors import ModelError, SpecError
from harness.models import demo
from harness.models.architectures.digits_net import DigitsNet
from harness.models.demo import Demo, weights_of

ROOT = Path(__file__).parents[2]
NAMES = ("digits_plain", "digits_robust")
FIRST_OF_TEST = [360, 1773, 1482, 600, 850]  # in scikit-learn's order
TEST_IMAGES_PER_CLASS = [47, 51, 49, 57, 48, 52, 47, 52, 53, 44]


def everything(split: str, **keys: Any) -> Batch:
    dataset = build("datasets", {"kind": "digits", "split": split} | keys, "dataset")
    assert isinstance(dataset, Dataset)
    source = dataset.open()
    return source.read(tuple(range(len(source))))


# --- digits ---


def test_images_have_the_promised_shape_range_and_type() -> None:
    for split, size in (("test", 500), ("train", 1297)):
        images = everything(split)
        assert images.x.shape == (size, 1, 8, 8)
        assert images.y.shape == images.indices.shape == (size,)
        assert images.x.dtype == torch.float32
        assert images.y.dtype == images.indices.dtype == torch.int64
        assert (images.x.min().item(), images.x.max().item()) == (0, 1)
        assert images.indices.tolist() == list(range(size))


def test_the_splits_are_disjoint_and_together_all_of_scikit_learns_digits() -> None:
    pixels, labels = load_digits(return_X_y=True)
    pairs = zip(pixels, labels, strict=True)
    original = Counter((tuple(grey.astype(int)), int(label)) for grey, label in pairs)
    found: Counter[tuple[tuple[int, ...], int]] = Counter()
    for split in ("test", "train"):
        images = everything(split)
        for x, y in zip(images.x, images.y, strict=True):
            found[(tuple((16 * x).flatten().int().tolist()), int(y))] += 1
    assert found == original
    assert max(original.values()) == 1, "no two images are equal, so equal counts mean disjoint splits"


def test_the_split_is_the_same_on_every_machine() -> None:
    """A NumPy with another generator would move train images into the test split."""
    digits = load_digits()
    images = everything("test")
    expected = np.stack([digits.images[number] / 16 for number in FIRST_OF_TEST])
    np.testing.assert_array_equal(images.x[:5, 0].numpy(), expected)
    assert images.y.bincount().tolist() == TEST_IMAGES_PER_CLASS


def test_images_are_read_in_the_requested_order() -> None:
    source = Digits().open()
    images, all_images = source.read((7, 3, 499)), everything("test")
    assert images.indices.tolist() == [7, 3, 499]
    assert torch.equal(images.x, all_images.x[[7, 3, 499]])
    assert torch.equal(images.y, all_images.y[[7, 3, 499]])


@pytest.mark.parametrize("split", ["test", "train"])
def test_chosen_classes_keep_the_order_of_their_images_and_are_numbered_as_given(split: str) -> None:
    images, chosen = everything(split), everything(split, classes=(7, 5))
    kept = [index for index, label in enumerate(images.y.tolist()) if label in (7, 5)]
    assert torch.equal(chosen.x, images.x[kept])
    assert [(7, 5)[label] for label in chosen.y.tolist()] == images.y[kept].tolist()
    assert Digits(classes=(7, 5), n=3).label == "digits 7,5[:3]"


@pytest.mark.parametrize(("classes", "fault"), [([3], "at least 2"), ([3, 10], "at most 9"), ([3, 3], "named twice")])
def test_classes_that_cannot_be_chosen_are_refused(classes: list[int], fault: str) -> None:
    with pytest.raises(SpecError, match=rf"dataset\.classes.*{fault}"):
        build("datasets", {"kind": "digits", "classes": classes}, "dataset")


# --- networks ---

FIVE_CLASSES = ("digits_plain_0to4", "digits_robust_0to4")


@pytest.mark.parametrize("name", FIVE_CLASSES)
def test_the_networks_of_five_digits_classify_these_alone(name: str) -> None:
    loaded, images = Demo(name=name).load(), everything("test", classes=(0, 1, 2, 3, 4))
    assert loaded.network(images.x).shape == (len(images), 5)
    assert accuracy(loaded.network, images.x, images.y) >= 0.97
    assert sum(value.numel() for value in loaded.network.parameters()) == 4666 - 5 * (192 + 1)


@pytest.mark.parametrize(("name", "least"), [("digits_plain", 0.965), ("digits_robust", 0.96)])
def test_clean_accuracy_on_the_test_split(name: str, least: float) -> None:
    images = everything("test")
    assert accuracy(Demo(name=name).load().network, images.x, images.y) >= least


def test_the_robust_network_survives_a_gradient_step_that_fools_the_plain_one() -> None:
    """One FGSM step at ε = 0.1."""
    images = everything("test")
    robust_accuracy = {}
    for name in NAMES:
        network = Demo(name=name).load().network
        x = images.x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(network(x), images.y), x)
        robust_accuracy[name] = accuracy(network, (images.x + 0.1 * gradient.sign()).clamp(0, 1), images.y)
    assert robust_accuracy["digits_plain"] < 0.7
    assert robust_accuracy["digits_robust"] > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_ready_to_be_scored(name: str) -> None:
    model = build("models", {"kind": "demo", "name": name}, "models[0]")
    assert isinstance(model, Model)
    loaded = model.load(offline=True)
    assert model.label == name
    assert not loaded.network.training
    assert loaded.network(torch.rand(3, 1, 8, 8)).shape == (3, 10)
    assert loaded.sha256 == model.load().sha256


def test_the_two_networks_differ() -> None:
    assert len({Demo(name=name).load().sha256 for name in NAMES}) == 2


class Activations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the calls of ATen operations that compute activations."""

    WORDS = ("elu", "clamp", "hardtanh", "silu", "tanh", "sigmoid", "softplus")  # "elu" matches relu, too

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if any(word in name for word in self.WORDS):
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_replacing_modules_reaches_two_of_three_relus(name: str) -> None:
    network = Demo(name=name).load().network
    by_module: list[nn.Module] = []
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda module, inputs, output: by_module.append(module))
    with torch.no_grad(), Activations() as activations:
        network(torch.rand(2, 1, 8, 8))
    assert activations.calls == {"relu": 3}
    assert len(by_module) == 2


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_fit_the_architecture_and_are_small(name: str) -> None:
    file = ROOT / "harness" / "models" / "weights" / f"{name}.safetensors"
    weights = load_file(file)
    assert {key: value.shape for key, value in weights.items()} == {
        key: value.shape for key, value in DigitsNet().state_dict().items()
    }
    assert sum(value.numel() for value in weights.values()) == 4666
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in weights.values())
    assert file.stat().st_size < 500_000


def test_missing_weights_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "weights_of", lambda name: tmp_path / "no.safetensors")
    message = r"digits_plain: .*no\.safetensors.*no file; reinstall ct-harness"
    with pytest.raises(ModelError, match=message):
        Demo(name="digits_plain").load()


@pytest.mark.parametrize("fault", ["cut", "empty", "of another architecture"])
def test_damaged_weights_are_named_with_the_remedy(fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    if fault == "of another architecture":
        save_file({"stem.weight": torch.zeros(1, 1, 3, 3)}, path)
    else:
        path.write_bytes(weights_of("digits_plain").read_bytes()[: 5000 if fault == "cut" else 0])
    monkeypatch.setattr(demo, "weights_of", lambda name: path)
    message = r"(?s)digits_plain: .*bad\.safetensors are damaged.*; reinstall ct-harness"
    with pytest.raises(ModelError, match=message):
        Demo(name="digits_plain").load()


def test_parsing_a_benchmark_does_not_import_torch() -> None:
    parts = "harness.models.demo, harness.transfer.probe_model, harness.datasets.digits, harness.threats.clean"
    code = f"import sys, {parts}; print(*sys.modules)"
    assert not {"torch", "sklearn"} & set(run(sys.executable, "-c", code).split())


@pytest.mark.slow
def test_training_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    script = str(ROOT / "ci" / "train_demo.py")
    for again in ("a", "b"):
        run(sys.executable, script, "--out", str(tmp_path / again), "--steps", "5")
    for name in (*NAMES, *FIVE_CLASSES):
        first, second = ((tmp_path / again / f"{name}.safetensors").read_bytes() for again in ("a", "b"))
        assert first == second
        assert load_file(tmp_path / "a" / f"{name}.safetensors").keys() == DigitsNet().state_dict().keys()


def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((network(x).argmax(1) == y).float().mean())


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
