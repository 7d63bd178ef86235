"""The features of a network: what a hook of our own sees going into the library's last layer."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from harness.curvature.steering import steer
from harness.errors import ModelError
from harness.models.normalisation import Normalised
from harness.models.robustbench_zoo import ZooEntry, build
from harness.transfer.backbone import without_classifier
from harness.util.hashing import sha256_of_weights

X = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def body() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Flatten(), nn.Linear(16, 6), nn.ReLU()]


class Headed(nn.Module):
    """Its classifier has a name, and something with as many outputs comes before it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*body(), nn.Linear(6, 3), nn.ReLU())
        self.head = nn.ModuleDict({"fc": nn.Linear(3, 3)})

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head["fc"](self.body(x))
        return logits


class Pooling(nn.Module):
    """Its classifier is a 1×1 convolution, and the mean over all places comes after it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 6, 3)
        self.last = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.mean(self.last(torch.relu(self.stem(x))), (2, 3))


class ActivatedLogits(Pooling):
    """As in SqueezeNet, a ReLU comes after its classifier."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(torch.relu(self.stem(x)))).mean((2, 3))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*body())
        self.weight = nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.body(x), self.weight)


class Ensemble(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList([nn.Sequential(*body(), nn.Linear(6, 3)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(*body()), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(input=self.body(x))
        return logits


def seen(network: nn.Module, name: str, x: Tensor, run: nn.Module | None = None) -> Tensor:
    """The input of the module ``name`` of ``network`` while ``run`` runs, averaged over its positions if it has any."""
    found: list[Tensor] = []
    hook = network.get_submodule(name).register_forward_hook(lambda _, args, __: found.append(args[0]))
    with torch.no_grad():
        (run or network)(x)
    hook.remove()
    return found[-1].mean((2, 3)) if found[-1].ndim == 4 else found[-1]


@torch.no_grad()
def check(network: nn.Module, x: Tensor, name: str, width: int, linear: bool = True) -> None:
    features = without_classifier(network.eval(), x[:1])
    assert features.classifier == name
    assert not features.training
    found, last = features(x), network.get_submodule(name)
    assert isinstance(last, nn.Linear | nn.Conv2d)
    assert found.shape == (len(x), width)
    torch.testing.assert_close(found, seen(network, name, x), rtol=0, atol=0)
    if linear:
        logits = nn.functional.linear(found, last.weight.flatten(1), last.bias)
        torch.testing.assert_close(logits, network(x), rtol=1e-4, atol=1e-5)
    assert {id(tensor) for tensor in features.parameters()} <= {id(tensor) for tensor in network.parameters()}


# --- hand-made networks ---


@pytest.mark.parametrize(
    ("network", "name", "width"),
    [
        (nn.Sequential(*body(), nn.Linear(6, 3)), "3", 6),
        (nn.Sequential(*body(), nn.Dropout(), nn.Linear(6, 3)), "4", 6),
        (Headed(), "head.fc", 3),
        (Pooling(), "last", 6),
        (Normalised(Headed(), (0.4,), (0.2,)), "network.head.fc", 3),
    ],
    ids=["sequential", "dropout", "named head", "1×1 convolution", "normalised"],
)
def test_the_last_layer_of_a_network_is_found(network: nn.Module, name: str, width: int) -> None:
    check(network, X, name, width)


def test_finding_it_changes_nothing() -> None:
    network = Headed().eval()
    before, names = sha256_of_weights(network), [name for name, _ in network.named_modules()]
    without_classifier(network, X[:1])
    assert sha256_of_weights(network) == before
    assert [name for name, _ in network.named_modules()] == names
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("name", ["head.fc", "fc", "network.head.fc"])
def test_it_can_be_named_with_or_without_the_prefix_of_a_wrapper(name: str) -> None:
    network = Normalised(Headed(), (0.4,), (0.2,)).eval()
    with torch.no_grad():
        assert torch.equal(without_classifier(network, X[:1], name)(X), without_classifier(network, X[:1])(X))


@pytest.mark.parametrize(
    ("network", "name", "message"),
    [
        (nn.Sequential(*body(), nn.Linear(6, 3), nn.LogSoftmax(1)), None, "'3'.* something comes after it"),
        (nn.Sequential(*body(), nn.Linear(6, 3), nn.Linear(3, 2)), "3", "cannot be taken before '3'"),
        (Ensemble(), None, r"(cannot be taken before|seems to be) 'members\.1\.3'"),
        (Functional(), None, "linear layers and convolutions yields its 3 logits"),
        (Headed(), "head.fcc", r"classifier 'head\.fcc': .*did you mean 'head\.fc'"),
        (Headed(), "body.2", r"classifier 'body\.2' is not called, or is no linear layer"),
        (Ensemble(), "3", r"classifier '3': .*members\.0\.3 or members\.1\.3"),
    ],
    ids=["log-softmax", "not the last", "ensemble", "functional", "misspelt", "no linear layer", "two"],
)
def test_what_cannot_be_found_is_reported_with_a_remedy(network: nn.Module, name: str | None, message: str) -> None:
    with pytest.raises(ModelError, match=rf"(?s){message}.*\(classifier: head\.fc\), or choose another backbone"):
        without_classifier(network.eval(), X[:1], name)


def test_features_that_are_no_numbers_are_no_fault_of_the_classifier() -> None:
    network = nn.Sequential(*body(), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    with pytest.raises(ModelError, match=r"its features before '3' are NaN or infinite .*; check its weights"):
        without_classifier(network, X[:1])


def test_a_classifier_called_by_keyword_is_found_or_asked_for() -> None:
    try:
        features = without_classifier(ByKeyword().eval(), X[:1])
    except ModelError as error:
        assert "classifier: " in str(error)  # noqa: PT017
    else:
        with torch.no_grad():
            assert torch.equal(features(X), features.network.get_submodule("body")(X))


# --- steered, they are still the input of the classifier ---


@pytest.mark.parametrize(
    "network", [Headed(), Pooling(), ActivatedLogits()], ids=["linear", "1×1 convolution", "ReLU after it"]
)
@pytest.mark.parametrize("beta", [1.0, 0.5])
@torch.no_grad()
def test_features_of_the_steered_network_are_what_goes_into_its_classifier(network: nn.Module, beta: float) -> None:
    features = without_classifier(network.eval(), X[:1])
    expected = seen(network, features.classifier, X, run=steer(network, beta, example=X[:1]))
    steered = steer(features, beta, example=X[:1])
    torch.testing.assert_close(steered(X), expected, rtol=1e-6, atol=1e-6)


# --- networks of the libraries ---

TORCHVISION: dict[str, tuple[str, int]] = {
    "resnet18": ("fc", 512),
    "mobilenet_v2": ("classifier.1", 1280),
    "squeezenet1_0": ("classifier.1", 512),
    "efficientnet_b0": ("classifier.1", 1280),
    "shufflenet_v2_x0_5": ("fc", 1024),
}
HEAVIER: dict[str, tuple[str, int]] = {
    "vgg11": ("classifier.6", 4096),
    "densenet121": ("classifier", 1024),
    "googlenet": ("fc", 1024),
    "inception_v3": ("fc", 2048),
    "convnext_tiny": ("classifier.2", 768),
    "swin_t": ("head", 768),
}


def images(side: int) -> Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [*TORCHVISION, *(pytest.param(name, marks=pytest.mark.slow) for name in HEAVIER)])
def test_of_torchvision(name: str) -> None:
    arguments: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(name, weights=None, **arguments)
    classifier, width = (TORCHVISION | HEAVIER)[name]
    side = 299 if name == "inception_v3" else 224 if name in HEAVIER else 64
    check(network, images(side), classifier, width, linear=name != "squeezenet1_0")  # a ReLU comes after that one


LIGHT = ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"]


@pytest.mark.parametrize(
    "name", [*LIGHT, *(pytest.param(name, marks=pytest.mark.slow) for name in ("swin_tiny_patch4_window7_224",))]
)
def test_of_timm(name: str) -> None:
    """timm documents its name as ``classifier`` of the config, and its width as ``in_features``."""
    network = timm.create_model(name)
    classifier = network.pretrained_cfg["classifier"]
    assert network.get_classifier() is network.get_submodule(classifier)
    check(network, images(224), classifier, network.get_classifier().in_features)


def test_a_network_with_two_classifiers_is_refused() -> None:
    network = timm.create_model("deit_tiny_distilled_patch16_224").eval()
    with pytest.raises(ModelError, match="choose another backbone"):
        without_classifier(network, images(224))


ZOO: dict[str, tuple[str, str, int]] = {
    "Wong2020Fast": ("Linf", "linear", 512),  # a PreActResNet-18
    "Ding2020MMA": ("Linf", "fc", 256),  # a WideResNet-28-4
    "Hendrycks2020AugMix_ResNeXt": ("corruptions", "classifier", 1024),
    "Wang2023Better_WRN-28-10": ("Linf", "logits", 640),
    "Standard": ("Linf", "fc", 640),  # a WideResNet-28-10
    "Debenedetti2022Light_XCiT-S12": ("Linf", "model.head", 384),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if place >= 4 else []) for place, name in enumerate(ZOO)]
)
def test_of_robustbench(name: str) -> None:
    threat, classifier, width = ZOO[name]
    network, example = build(ZooEntry("cifar10", threat, name))
    check(network, example, classifier, width)
    assert network.get_submodule(classifier).in_features == width
