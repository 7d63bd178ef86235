"""The CIFAR ResNets of the paper: RobustBench's function, the authors' keys, and a ReLU that modules do not reach."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from harness.curvature.steering import steer
from harness.models.architectures import cifar_resnet
from harness.models.robustbench import import_robustbench

DEPTHS = [("18", "BasicBlock", (2, 2, 2, 2), 9, 17), ("50", "Bottleneck", (3, 4, 6, 3), 33, 49)]
DEEPEST = ("152", "Bottleneck", (3, 8, 36, 3), 101, 151)


def built(depth: str, classes: int) -> nn.Module:
    """With statistics and weights that are not those of the start, so that nothing is an identity."""
    torch.manual_seed(0)
    network: nn.Module = getattr(cifar_resnet, f"cifar{classes}_resnet{depth}")()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize(("depth", "block", "blocks"), [entry[:3] for entry in DEPTHS])
def test_it_is_the_function_of_robustbenchs(depth: str, block: str, blocks: tuple[int, ...], classes: int) -> None:
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


@pytest.mark.parametrize(("depth", "modules", "all_"), [(entry[0], *entry[3:]) for entry in [*DEPTHS, DEEPEST]])
def test_replacing_modules_misses_the_relu_after_each_sum(depth: str, modules: int, all_: int) -> None:
    """The counts of the paper's networks."""
    x = torch.rand(1, 3, 32, 32)
    coverage_of = partial(steer, built(depth, 10), 0.9, example=x)
    assert (coverage_of(sites="modules").coverage.steered, coverage_of(sites="modules").coverage.sites) == (
        modules,
        all_,
    )
    assert (coverage_of().coverage.steered, coverage_of().coverage.sites) == (all_, all_)


def test_the_keys_are_those_of_the_authors_checkpoints() -> None:
    """By hand, from their code: a sequence for the stem, and in each block one for the branch, one for the shortcut."""
    keys = built("50", 100).state_dict().keys()
    assert keys >= {
        "conv1.0.weight", "conv1.1.running_var", "conv2_x.0.residual_function.3.weight",
        "conv2_x.2.residual_function.6.weight", "conv3_x.0.shortcut.0.weight", "conv4_x.5.residual_function.7.bias",
        "conv5_x.0.shortcut.1.weight", "fc.weight", "fc.bias",
    }  # fmt: skip
    assert "conv2_x.0.shortcut.0.weight" in keys  # it widens
    assert "conv2_x.0.shortcut.0.weight" not in built("18", 10).state_dict()
