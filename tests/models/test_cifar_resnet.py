"""The CIFAR ResNets of the paper: RobustBench's function, the authors' keys, and ReLUs that are not modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.api.records import Sites
from harness.curvature.steering import steer
from harness.models.architectures import cifar_resnet
from harness.models.robustbench import import_robustbench

DEPTHS = [("18", "BasicBlock", (2, 2, 2, 2), 9, 17), ("50", "Bottleneck", (3, 4, 6, 3), 33, 49)]
DEEPEST = ("152", "Bottleneck", (3, 8, 36, 3), 101, 151)


def built(depth: str, classes: int) -> nn.Module:
    """Build a network with statistics and weights other than the initial ones, so that no layer is the identity."""
    torch.manual_seed(0)
    network: nn.Module = getattr(cifar_resnet, f"cifar{classes}_resnet{depth}")()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize(("depth", "block", "blocks"), [entry[:3] for entry in DEPTHS])
def test_it_computes_the_same_as_robustbenchs(depth: str, block: str, blocks: tuple[int, ...], classes: int) -> None:
    import_robustbench()
    from robustbench.model_zoo.architectures import resnet

    ours = built(depth, classes)
    theirs = resnet.ResNet(getattr(resnet, block), blocks, num_classes=classes).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(x)
        assert expected.shape == (2, classes)
        assert expected.std() > 0.01
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("depth", "modules", "relus"), [(entry[0], *entry[3:]) for entry in [*DEPTHS, DEEPEST]])
def test_replacing_modules_misses_the_relu_after_each_sum(depth: str, modules: int, relus: int) -> None:
    network = built(depth, 10)
    sites: Sites
    for sites, steered in (("modules", modules), ("all", relus)):
        coverage = steer(network, 0.9, sites=sites, example=torch.rand(1, 3, 32, 32)).coverage
        assert coverage is not None
        assert (coverage.steered, coverage.sites) == (steered, relus)


def test_the_keys_are_those_of_the_authors_checkpoints() -> None:
    """Written by hand from their code: a Sequential for the stem, and one for branch and shortcut of each block."""
    keys = built("50", 100).state_dict().keys()
    assert keys >= {
        "conv1.0.weight", "conv1.1.running_var", "conv2_x.0.residual_function.3.weight",
        "conv2_x.2.residual_function.6.weight", "conv3_x.0.shortcut.0.weight", "conv4_x.5.residual_function.7.bias",
        "conv5_x.0.shortcut.1.weight", "fc.weight", "fc.bias",
    }  # fmt: skip
    assert "conv2_x.0.shortcut.0.weight" in keys  # it widens
    assert "conv2_x.0.shortcut.0.weight" not in built("18", 10).state_dict()
