"""Fingerprints: each planted change of a network shows, and what changes nothing does not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.engine.fingerprint import alike, answers, fingerprint, fixed_images


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(0)
        self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 4)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=drawn)
        self.scale, self.settings = 1.0, {"mean": [0.5], "mode": SimpleNamespace(of="pixels")}
        self.constant = torch.ones(4)
        self.hidden = [nn.Linear(2, 2, bias=False)]
        self.hidden[0].weight.data.fill_(1.0)
        self.register_buffer("table", torch.zeros(3), persistent=False)
        self.activation = functools.partial(torch.clamp, min=0.0)
        self.cache = "/somewhere/on/this/machine"

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.last(self.activation(self.first(x.flatten(1)))) * self.scale
        return answers


def scaled_by(factor: float) -> Callable[..., Tensor]:
    return lambda module, inputs, output: output * factor


def changed(change: Callable[[Any], object]) -> Net:
    network = Net()
    change(network)
    return network


CHANGES: dict[str, Callable[[Any], object]] = {
    "a weight": lambda net: net.last.weight.data[0, 0].add_(1e-6),
    "a buffer outside of the state dict": lambda net: net.table.fill_(1),
    "a number": lambda net: setattr(net, "scale", 1.5),
    "a nested setting": lambda net: net.settings["mean"].append(0.1),
    "an object's attribute": lambda net: setattr(net.settings["mode"], "of", "grey levels"),
    "a tensor that is no buffer": lambda net: net.constant[0].fill_(2),
    "a module that is not registered": lambda net: net.hidden[0].weight.data.fill_(2),
    "an argument of a partial": lambda net: setattr(net, "activation", functools.partial(torch.clamp, min=0.1)),
    "a hook": lambda net: net.last.register_forward_hook(scaled_by(2.0)),
    "an attribute of torch's": lambda net: setattr(net.first, "in_features", 17),
    "another class": lambda net: setattr(net, "last", nn.Sequential(net.last)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_change_of_the_state_shows(what: str) -> None:
    assert fingerprint(changed(CHANGES[what])) != fingerprint(Net())


def test_what_a_hook_has_closed_over_shows() -> None:
    def hooked(factor: float) -> str:
        return fingerprint(changed(lambda net: net.last.register_forward_hook(scaled_by(factor))))

    double, treble, again = map(hooked, (2.0, 3.0, 2.0))
    assert double == again != treble


def test_packed_weights_of_quantised_layers_show() -> None:
    def quantised(sign: int) -> nn.Module:
        network = Net().eval()
        network.last.weight.data.mul_(sign)
        made: nn.Module = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            network, {nn.Linear}, dtype=torch.qint8
        )
        return made

    assert fingerprint(quantised(1)) == fingerprint(quantised(1)) != fingerprint(quantised(-1))


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.eval(),
        lambda net: net.requires_grad_(False),
        lambda net: setattr(net, "cache", "/elsewhere"),
    ],
)
def test_what_changes_no_answer_does_not_show(change: Callable[[Any], object]) -> None:
    assert fingerprint(changed(change)) == fingerprint(Net())


def test_a_circle_ends() -> None:
    network = Net()
    network.settings["me"] = network
    assert fingerprint(network) != fingerprint(Net())


def test_code_shows_by_the_names_of_its_modules(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = []
    for text in ("x = 1\n", "x = 2\n"):
        (tmp_path / "a_builder.py").write_text(text)
        seen.append(fingerprint(nn.Identity(), ["a_builder"]))
    assert seen[0] != seen[1]


def test_answers_are_the_sums_by_hand() -> None:
    images = fixed_images((1, 4, 4))
    with torch.no_grad():
        logits = Net()(images).double()
    by_hand = [
        [sum(float(logits[i, k]) * torch.cos(torch.tensor((k + 1.0) * j, dtype=torch.float64)).item() for k in range(4))
         for j in range(1, 17)] for i in range(len(images))
    ]  # fmt: skip
    assert torch.allclose(torch.tensor(answers(Net(), (1, 4, 4))), torch.tensor(by_hand), rtol=1e-5)


def test_answers_differ_by_more_than_rounding_where_the_network_does() -> None:
    first = answers(Net(), (1, 4, 4))
    assert alike(first, answers(changed(lambda net: net.last.bias.data.add_(1e-6)), (1, 4, 4)))
    assert not alike(first, answers(changed(lambda net: net.last.bias.data[2].add_(1.0)), (1, 4, 4)))
    assert not alike(first, ())


FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "brightness": lambda x: x.mean((1, 2, 3)),
    "its darkest pixel": lambda x: x.amin((1, 2, 3)),
    "its brightest pixel": lambda x: x.amax((1, 2, 3)),
    "contrast": lambda x: 2 * x.std((1, 2, 3)),
    "smoothness": lambda x: 1 - 4 * x.diff(dim=-1).abs().mean((1, 2, 3)),
}


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_branch_that_depends_on_how_an_image_looks_is_seen(feature: str, shape: tuple[int, ...], side: int) -> None:
    """Whatever the threshold, and on whichever side of it the network answers otherwise."""

    class Branching(nn.Module):
        def __init__(self, threshold: float | None) -> None:
            super().__init__()
            self.threshold = threshold

        def forward(self, x: Tensor) -> Tensor:
            logits = torch.stack([x.mean((1, 2, 3)), x.flatten(1)[:, 0] - 0.5], 1)
            if self.threshold is None:
                return logits
            turned = side * (FEATURES[feature](x) - self.threshold) > 0
            return torch.where(turned[:, None], -logits - 1, logits)

    plain = answers(Branching(None), shape)
    for threshold in (0.05, 0.2, 0.4, 0.6, 0.8, 0.95):
        assert not alike(plain, answers(Branching(threshold), shape)), threshold


def test_an_image_that_has_no_finite_answer_hides_no_other() -> None:
    class Divided(nn.Module):
        def __init__(self, sign: float) -> None:
            super().__init__()
            self.sign = sign

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            factor = torch.where(flat.amin(1) == flat.amax(1), torch.inf, self.sign)  # as divided by a deviation of 0
            return flat[:, :2] * factor[:, None]

    assert not alike(answers(Divided(1), (1, 4, 4)), answers(Divided(-1), (1, 4, 4)))


def test_a_network_that_answers_by_chance_has_no_answers_to_hold_against_others() -> None:
    drawn = torch.Generator().manual_seed(0)

    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn(x.shape, generator=drawn))

    assert answers(Noisy(), (1, 4, 4)) == ()


def test_dropout_under_torchs_own_generator_is_drawn_alike_each_time() -> None:
    dropping = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 4))
    assert answers(dropping, (1, 4, 4)) == answers(dropping, (1, 4, 4)) != ()
