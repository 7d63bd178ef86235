"""LoRA and fine-tuning: they start as the probe, train what the formula says, and end where a loop by hand does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from helpers.transfer import CLASSES, arrays, by_hand, hand_C, lora_numbers, numbers, sklearns, toy
from torch import Tensor, nn

from harness.analysis.task_types import Classification
from harness.api.records import BASELINE
from harness.datasets.arrays import Arrays
from harness.datasets.digits import Digits
from harness.errors import ModelError
from harness.models.checkpoint import Checkpoint
from harness.models.demo import Demo
from harness.transfer import finetuning
from harness.transfer.backbone import without_classifier
from harness.transfer.finetuning import LabelledImages, count_trained, merged, trainable_copy
from harness.transfer.linear_probe import LinearProbe, fit_with_C
from harness.transfer.probe_model import Probe
from harness.transfer.probe_network import Head, ProbeNetwork
from harness.transfer.settings import METHODS, Tuning
from harness.util.hashing import sha256_of_weights

LORAS = [method for method in METHODS if method.startswith("lora")]


class Mixed(nn.Module):
    """Every kind of layer: convolutions of several sizes, grouped and depthwise, a norm, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(1, 8, (3, 2), bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.deep = nn.Conv2d(12, 12, 1, groups=12)
        self.point = nn.Conv2d(12, 5, 1)
        self.hidden = nn.Linear(5, 9, bias=False)
        self.head = nn.Linear(9, 3)
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.first(x)))
        features = torch.relu(self.point(self.deep(self.grouped(features))))
        logits: Tensor = self.head(torch.relu(self.hidden(features.mean((2, 3)))))
        return logits


def head(width: int, classes: int) -> Head:
    drawn = np.random.default_rng(0)
    mean, scale, weight, bias = drawn.normal(size=width), drawn.uniform(0.5, 2, width), (classes, width), classes
    return Head(LinearProbe(mean, scale, drawn.normal(size=weight), drawn.normal(size=bias), 1.0))


def probed(network: nn.Module, x: Tensor) -> ProbeNetwork:
    features = without_classifier(network.eval(), x[:1])
    return ProbeNetwork(features, head(features(x[:1]).shape[1], CLASSES)).eval().requires_grad_(False)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "digits": (lambda: Demo(name="digits_plain_0to4").load().network, (4, 1, 8, 8)),
    "mixed": (Mixed, (4, 1, 8, 8)),
    "linear": (toy, (4, 1, 4, 4)),
}


@pytest.fixture(params=NETWORKS)
def start(request: pytest.FixtureRequest) -> tuple[ProbeNetwork, Tensor]:
    build, shape = NETWORKS[request.param]
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return probed(build(), x), x


# --- they start as the probe ---


@pytest.mark.parametrize("method", METHODS)
def test_before_training_it_is_the_probe_bit_by_bit(start: tuple[ProbeNetwork, Tensor], method: str) -> None:
    probe, x = start
    before = sha256_of_weights(probe)
    network = trainable_copy(method, probe, x)
    with torch.no_grad():
        assert torch.equal(network(x), probe(x))
        assert torch.equal(merged(network, x)(x), probe(x))
    assert sha256_of_weights(probe) == before
    assert not any(parameter.requires_grad for parameter in probe.parameters())


@pytest.mark.parametrize("method", LORAS)
@torch.no_grad()
def test_merged_it_is_the_same_function_and_each_weight_has_moved_by_b_times_a(
    start: tuple[ProbeNetwork, Tensor], method: str
) -> None:
    probe, x = start
    network = trainable_copy(method, probe, x)
    drawn = torch.Generator().manual_seed(1)
    moved: dict[str, Tensor] = {}
    named = dict(network.features.named_parameters())
    for name, up in named.items():
        if "lora_B" in name:
            up.copy_(0.1 * torch.randn(up.shape, generator=drawn))
            down = named[name.replace("lora_B", "lora_A")]
            layer = name.removeprefix("base_model.model.").partition(".lora_B")[0]
            moved[layer + ".weight"] = torch.einsum("or,r...->o...", up.flatten(1), down)
    expected = network(x)
    assert not torch.allclose(expected, probe(x), atol=1e-3)
    result = merged(network, x)
    torch.testing.assert_close(result(x), expected, rtol=1e-4, atol=1e-5)
    own = dict(probe.features.named_parameters())
    found = dict(result.features.named_parameters())
    assert found.keys() == own.keys()
    for name, weight in own.items():
        torch.testing.assert_close(found[name], weight + moved.get(name, 0), rtol=1e-5, atol=1e-6)
    assert moved.keys() == {f"{name}.weight" for name, module in probe.features.named_modules() if takes_lora(module)}


def takes_lora(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


# --- what they train ---


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_lora_trains_as_many_numbers_as_the_formula_says(start: tuple[ProbeNetwork, Tensor], rank: int) -> None:
    probe, x = start
    width = len(probe.head.mean)
    assert count_trained(f"lora-{rank}", probe, x) == lora_numbers(probe.features, rank) + CLASSES * (width + 1)


def test_the_formula_by_hand() -> None:
    x = torch.rand(1, 1, 8, 8)
    probe = probed(Mixed(), x)
    head = 3 * (9 + 1)
    assert count_trained("lora-2", probe, x) == 2 * (1 * 6 + 8) + 2 * (12 + 5) + 2 * (5 + 9) + head
    assert count_trained("fine_tuning", probe, x) == 48 + 16 + (12 * 2 * 9 + 12) + (12 + 12) + (60 + 5) + 45 + head


def test_a_network_of_torchvision_trains_as_many_too() -> None:
    network = torchvision.models.mobilenet_v2(weights=None)
    x = torch.rand(1, 3, 32, 32)
    probe = probed(network, x)
    without = numbers(network) - 1000 * 1281
    assert without == 2_223_872  # 3.5 million less the classifier
    assert count_trained("fine_tuning", probe, x) == without + CLASSES * 1281
    assert count_trained("lora-4", probe, x) == lora_numbers(probe.features, 4) + CLASSES * 1281
    assert 0 < lora_numbers(probe.features, 4) < without


def test_fine_tuning_trains_every_parameter(start: tuple[ProbeNetwork, Tensor]) -> None:
    probe, x = start
    assert count_trained("fine_tuning", probe, x) == numbers(probe.features) + numbers(probe.head)


def test_training_moves_these_and_nothing_else() -> None:
    """Statistics stay, and so do mean and scale of the probe; under LoRA, biases and norms do too."""
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images, probe = labelled(x, np.arange(24) % 3), probed(Mixed(), x)
    before = {name: tensor.clone() for name, tensor in probe.state_dict().items()}
    settings = Tuning(epochs=2, batch_size=5)
    for method in METHODS:
        *_, trained = finetuning.train(method, probe, images, np.arange(24), 0.05, settings)
        assert not any(module.training for module in trained.modules())
        after = merged(trained, x).state_dict()
        moved = {name for name in before if not torch.equal(after[name], before[name])}
        own = {f"features.{name}" for name, _ in probe.features.named_parameters()}
        if method != "fine_tuning":
            own = {f"features.{n}.weight" for n, module in probe.features.named_modules() if takes_lora(module)}
        assert moved == own | {"head.weight", "head.bias"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in probe.state_dict().items())


# --- against a loop by hand ---


def labelled(x: Tensor, y: np.ndarray) -> LabelledImages:
    labels = torch.from_numpy(y)
    return LabelledImages(lambda positions: (x[list(positions)], labels[list(positions)]), y, Classification())


def held_out(y: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Positions, shuffled and then sorted by class, of which an even share is held out."""
    shuffled = np.random.default_rng(seed).permutation(len(y))
    order = np.array(sorted(shuffled, key=lambda i: y[i]))
    return np.array(sorted(order[i] for i in range(len(y)) if int((i + 1) * share) > int(i * share)))


def plain(weights: list[Tensor], x: Tensor) -> Tensor:
    """The toy and its probe as a formula; the weights are W, b, V, d, and the probe's mean and scale."""
    w, b, v, d, mean, scale = weights
    features = (x.flatten(1) @ w.T + b).clamp_min(0)
    return ((features - mean) / scale) @ v.T + d


def by_hand_epochs(
    start: list[Tensor], x: Tensor, y: Tensor, rate: float, epochs: int, batch: int, seed: int
) -> Iterator[list[Tensor]]:
    """The weights after each epoch of Adam, written out (Kingma & Ba 2015, Algorithm 1)."""
    weights = [tensor.clone() for tensor in start]
    first, second = ([torch.zeros_like(tensor) for tensor in weights[:4]] for _ in range(2))
    order, step = torch.Generator().manual_seed(seed), 0
    for _ in range(epochs):
        shuffled = torch.randperm(len(x), generator=order)
        for chosen in torch.split(shuffled, batch):
            step += 1
            leaves = [tensor.detach().requires_grad_() for tensor in weights[:4]]
            logits = plain([*leaves, *weights[4:]], x[chosen])
            loss = -logits.log_softmax(1)[torch.arange(len(chosen)), y[chosen]].mean()
            for k, gradient in enumerate(torch.autograd.grad(loss, leaves)):
                first[k] = 0.9 * first[k] + 0.1 * gradient
                second[k] = 0.999 * second[k] + 0.001 * gradient**2
                mean, spread = first[k] / (1 - 0.9**step), second[k] / (1 - 0.999**step)
                weights[k] = weights[k] - rate * mean / (spread.sqrt() + 1e-8)
        yield [tensor.clone() for tensor in weights]


def by_hand_start(x: Tensor, y: np.ndarray, C: float) -> list[Tensor]:
    pipeline = sklearns(by_hand(x.numpy()), y, C)
    scaler, probe = pipeline[0], pipeline[1]
    w, b = (parameter.detach() for parameter in list(toy().parameters())[:2])
    rest = (probe.coef_, probe.intercept_, scaler.mean_, scaler.scale_)
    return [w.double(), b.double(), *map(torch.from_numpy, rest)]


@pytest.mark.parametrize("seed", [1, 5])
def test_fine_tuning_is_what_a_loop_by_hand_gives(tmp_path: Path, seed: int) -> None:
    """Rate and epochs chosen on a held-out share, then all images: in float64, without autograd of the network."""
    arrays(tmp_path)
    with np.load(tmp_path / "train.npz") as kept:
        x, y = torch.from_numpy(kept["x"]), kept["y"]
    rates, epochs, batch, share = (0.01, 0.1), 4, 16, 0.3
    C = hand_C(by_hand(x.numpy()), y)
    held = held_out(y, share, seed)
    rest = np.setdiff1d(np.arange(len(y)), held)
    labels = torch.from_numpy(y)

    def score(weights: list[Tensor]) -> tuple[float, float]:
        logits = plain(weights, x[held].double())
        right = float((logits.argmax(1) == labels[held]).double().mean())
        return round(right, 9), -float(nn.functional.cross_entropy(logits, labels[held]))

    start = by_hand_start(x[rest], y[rest], C)
    scores = {(rates[0], 0): score(start)}
    for rate in rates:
        trained = by_hand_epochs(start, x[rest].double(), labels[rest], rate, epochs, batch, seed)
        scores |= {(rate, epoch): score(weights) for epoch, weights in enumerate(trained, start=1)}
    rate, best = max(scores, key=lambda candidate: scores[candidate])
    assert seed != 5 or best > 0
    initial = by_hand_start(x, y, C)
    *_, expected = initial, *by_hand_epochs(initial, x.double(), labels, rate, best, batch, seed)

    tuning = {"epochs": epochs, "learning_rates": rates, "batch_size": batch, "share": share, "seed": seed}
    loaded = toys(tmp_path, tuning=tuning).load()
    network = loaded.steered(BASELINE._replace(method="fine_tuning"))
    shown = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(network(shown).double(), plain(expected, shown.double()), rtol=1e-3, atol=2e-3)
    if best:
        assert not torch.allclose(network(shown).double(), plain(initial, shown.double()), atol=0.05)


def toys(folder: Path, cache: str = "features", **changes: Any) -> Probe:
    fields = {
        "backbone": Checkpoint(builder="helpers.transfer:toy"),
        "train": Arrays(path=str(folder / "train.npz")),
        "cache": str(folder / cache),
    }
    return Probe.model_validate(fields | changes)


BRIEF = {"epochs": 4, "learning_rates": [0.01, 0.1], "share": 0.3, "seed": 2}


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits(tmp_path: Path, method: str) -> None:
    arrays(tmp_path)
    tuned = BASELINE._replace(method=method)

    def weights(cache: str, **changes: Any) -> str:
        torch.manual_seed(len(cache))
        return toys(tmp_path, cache, tuning=BRIEF | changes).load().fitted(tuned)["weights_sha256"]

    assert weights("a") == weights("bb")
    assert weights("a") != weights("a", seed=6)


@pytest.mark.parametrize("method", METHODS)
def test_the_shared_backbone_stays_as_it_was(tmp_path: Path, method: str) -> None:
    arrays(tmp_path)
    loaded = toys(tmp_path, tuning=BRIEF).load()
    x = torch.rand(9, 1, 4, 4)
    body, plain, probe = sha256_of_weights(loaded.body), loaded.body(x), loaded.network(x)
    adapted = loaded.steered(BASELINE._replace(method=method))
    assert sha256_of_weights(loaded.body) == body
    assert torch.equal(loaded.body(x), plain)
    assert torch.equal(loaded.network(x), probe)
    assert not torch.equal(adapted(x), probe)
    shared = {tensor.data_ptr() for tensor in loaded.body.parameters()}
    assert not any(tensor.data_ptr() in shared for tensor in adapted.parameters())
    assert not any(parameter.requires_grad for parameter in adapted.parameters())


# --- what training gains ---


def blind() -> nn.Module:
    """A network whose features are the same for the left and the right half."""
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8 * 16, 12)
    with torch.no_grad():
        weight = linear.weight.view(12, 8, 4, 4)
        weight.copy_(weight + weight.flip(3))
        convolution.weight.copy_(convolution.weight + convolution.weight.flip(3))
    return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), linear, nn.ReLU(), nn.Linear(12, 2))


def sided(n: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Noise, brighter on the left or on the right."""
    drawn = np.random.default_rng(seed)
    y, x = np.arange(n) % 2, drawn.uniform(0, 0.6, (n, 1, 4, 4)).astype(np.float32)
    for image, side in zip(x, y, strict=True):
        image[:, :, 2 * side : 2 * side + 2] += 0.3
    return torch.from_numpy(x), y


@pytest.mark.parametrize("method", ["lora-2", "fine_tuning"])
def test_training_finds_what_the_frozen_features_do_not_hold(method: str) -> None:
    (x, y), (test_x, test_y) = sided(120, 0), sided(200, 1)
    features = without_classifier(blind().eval(), x[:1])
    assert torch.allclose(features(x), features(x.flip(3)), atol=1e-5)
    images = labelled(x, y)

    def fit_probe(positions: np.ndarray | None) -> ProbeNetwork:
        positions = np.arange(120) if positions is None else positions
        probe = fit_with_C(features(x[positions]).detach().numpy(), y[positions], "class", 0.1)
        return ProbeNetwork(features, Head(probe)).eval()

    settings = Tuning(epochs=15, learning_rates=(0.003, 0.02))
    network = finetuning.adapt(method, fit_probe, images, settings)

    def accuracy(network: nn.Module, x: Tensor, y: np.ndarray) -> float:
        return float((network(x).argmax(1).numpy() == y).mean())

    held = held_out(y, settings.share, settings.seed)
    rest = np.setdiff1d(np.arange(len(y)), held)
    assert accuracy(fit_probe(np.arange(120)), test_x, test_y) < 0.65
    assert accuracy(network, test_x, test_y) > 0.9
    assert accuracy(network, x[held], y[held]) >= accuracy(fit_probe(rest), x[held], y[held])


@pytest.mark.parametrize("method", METHODS)
def test_no_epoch_may_be_best_and_then_it_is_the_probe(tmp_path: Path, method: str) -> None:
    """With a learning rate that destroys everything, it ends where it started."""
    arrays(tmp_path)
    loaded = toys(tmp_path, tuning={"epochs": 1, "learning_rates": [1e3], "seed": 1}).load()
    x = torch.rand(9, 1, 4, 4)
    assert torch.equal(loaded.steered(BASELINE._replace(method=method))(x), loaded.network(x))


# --- what cannot be trained ---


class Bare(nn.Module):
    """Nothing but its classifier can take LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.last = nn.Parameter(torch.ones(16)), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.relu(x.flatten(1) * self.scale))
        return logits


def test_lora_without_layers_is_refused() -> None:
    x = torch.rand(1, 1, 4, 4)
    probe = probed(Bare(), x)
    with pytest.raises(ModelError, match=r"LoRA needs linear layers or convolutions.*; leave it out"):
        count_trained("lora-1", probe, x)
    assert count_trained("fine_tuning", probe, x) == 16 + 3 * 17


def test_lora_without_peft_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    x = torch.rand(1, 1, 4, 4)
    with pytest.raises(ModelError, match=r"LoRA needs peft .*; pip install 'ct-harness\[transfer\]'"):
        trainable_copy("lora-1", probed(toy(), x), x)


def test_a_share_that_leaves_none_to_choose_on_is_refused(tmp_path: Path) -> None:
    arrays(tmp_path)
    loaded = toys(tmp_path, tuning={"share": 0.01}).load()
    with pytest.raises(ModelError, match=r"tuning\.share: 0\.01 of 60 training images .*; raise it"):
        loaded.steered(BASELINE._replace(method="fine_tuning"))


@pytest.mark.parametrize("classes", [(5, 6, 7, 8, 9), (5, 6, 7, 8, 9, 4)])
def test_a_class_that_is_held_out_entirely_is_refused(tmp_path: Path, classes: Any) -> None:
    """One image per class, of which every fifth is held out: the others have fewer classes."""
    train = Digits(split="train", classes=classes, per_class=1)
    fields = {"backbone": Demo(name="digits_plain_0to4"), "train": train, "tuning": {"epochs": 1}}
    loaded = Probe.model_validate(fields | {"cache": str(tmp_path)}).load()
    with pytest.raises(ModelError, match=r"training images"):
        loaded.steered(BASELINE._replace(method="fine_tuning"))
