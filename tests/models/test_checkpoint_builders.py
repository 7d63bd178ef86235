"""Builders that have moved: the name under which one was first published still works, and is the same network."""

from __future__ import annotations

import pytest

from harness.models.checkpoint import MOVED, Checkpoint

CALLABLES = {
    "harness.models.cifar_resnet": "cifar10_resnet18",
    "harness.models.swin": "relu_swin_tiny",
    "harness.models.networks": "DigitsNet",
}


def test_every_builder_that_has_moved_is_tested_here() -> None:
    assert MOVED.keys() == CALLABLES.keys()


@pytest.mark.parametrize(("module", "name"), CALLABLES.items())
def test_both_names_have_the_identity_of_the_first(module: str, name: str) -> None:
    first, current = Checkpoint(builder=f"{module}:{name}"), Checkpoint(builder=f"{MOVED[module]}:{name}")
    assert first.identity() == current.identity()
    assert first.identity()["builder"] == f"{module}:{name}"
    assert first.label == current.label == name


@pytest.mark.parametrize(("module", "name"), [("harness.models.networks", "DigitsNet")])
def test_the_first_name_still_builds(module: str, name: str) -> None:
    networks = [Checkpoint(builder=f"{where}:{name}").load().network for where in (module, MOVED[module])]
    assert type(networks[0]) is type(networks[1])
