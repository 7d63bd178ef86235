"""APGD as a step machine: the library's trajectories, independence of the company, and closed forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.pretend_gpu import PretendGpu
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.api.attack import Network, Trials
from harness.api.threat import SLACK, SLACK_BOX
from harness.attacks import apgd_losses, apgd_walks, autoattack, noise
from harness.attacks.apgd import APGD
from harness.attacks.apgd_losses import CE, DLR, TARGETED_DLR, Losses
from harness.attacks.autoattack import Custom, Name, Norm
from harness.datasets.digits import Digits
from harness.models.demo import Demo

NAMES: dict[int, Name] = {CE: "apgd-ce", DLR: "apgd-dlr", TARGETED_DLR: "apgd-t"}
EPS: dict[Norm, float] = {"Linf": 0.1, "L2": 0.5}
NOISE = {"Linf": noise.uniform, "L2": noise.normal}
ORDER = {"Linf": torch.inf, "L2": 2}

norms = pytest.mark.parametrize("norm", EPS)
kinds = pytest.mark.parametrize("kind", NAMES, ids=NAMES.values())


@cache
def network_of(name: str) -> nn.Module:
    return Demo(name=name).load().network.float().requires_grad_(False)


@cache
def digits(name: str, n: int) -> tuple[Tensor, Tensor]:
    """Of the first n digits those that a demo network classifies correctly."""
    batch = Digits().open().read(tuple(range(n)))
    right = network_of(name)(batch.x).argmax(1) == batch.y
    return batch.x[right], batch.y[right]


def trials_of(network: Network, x: Tensor, y: Tensor, kind: int | Tensor) -> Trials:
    """A trial for each image: targets from near to far, keys from the image's number."""
    ranks = -2 - torch.arange(len(x)) % 3
    targets = network(x).argsort(1).gather(1, ranks[:, None] % 10)[:, 0]
    keys = torch.tensor([noise.key_of("test", number) for number in range(len(x))])
    return Trials(x, y, targets, keys, torch.full_like(y, kind) if isinstance(kind, int) else kind)


def only(trials: Trials, places: Sequence[int]) -> Trials:
    assert trials.variants is not None
    at = torch.tensor(places)
    return Trials(trials.x[at], trials.y[at], trials.targets[at], trials.keys[at], trials.variants[at])


@dataclass
class Recorded:
    """A network that remembers the images it was shown, and whether it was right."""

    network: Network

    def __post_init__(self) -> None:
        self.images: list[Tensor] = []
        self.answers: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        self.images.append(x.detach().clone())
        self.answers.append(logits.detach().argmax(1))
        return logits


def library(
    network: Network, trial: Trials, norm: Norm, steps: int, gradients: int = 1, eps: float | None = None
) -> tuple[Tensor, Tensor]:
    """What the library shows the network in a trial of one image with the trial's noise.

    Returns:
        The points [steps + 1, c, h, w], and whether the network was wrong there.
    """
    assert trial.variants is not None
    name = NAMES[int(trial.variants)]
    shown = Recorded(network)
    budget = Custom(stages=(name,), iterations=steps)
    tool = autoattack.configured(budget, shown, 10, norm, eps or EPS[norm], "cpu")  # type: ignore[arg-type]
    attack = tool.apgd_targeted if name == "apgd-t" else tool.apgd
    attack.loss = {CE: "ce", DLR: "dlr", TARGETED_DLR: "dlr-targeted"}[int(trial.variants)]
    attack.eot_iter, attack.y_target = gradients, trial.targets
    attack.init_hyperparam(trial.x)
    drawn = NOISE[norm](trial.keys, torch.zeros_like(trial.keys), tuple(trial.x.shape[1:])).to(trial.x)
    with pytest.MonkeyPatch.context() as patch:
        for draw in ("rand", "randn"):
            patch.setattr(torch, draw, lambda *_: drawn.clone())
        attack.attack_single_run(trial.x.clone(), trial.y.clone())
    points, answers = torch.cat(shown.images), torch.cat(shown.answers)
    return points[gradients - 1 :: gradients], answers[gradients - 1 :: gradients] != trial.y


def ours(network: Network, trials: Trials, norm: Norm, steps: int, **more: Any) -> tuple[Tensor, APGD]:
    """What our machine shows the network, every trial in a slot: [steps + 1, n, c, h, w]; and the machine."""
    machine = APGD(len(trials.x), tuple(trials.x.shape[1:]), norm=norm, steps=steps, **{"eps": EPS[norm]} | more)
    shown = Recorded(network)
    machine.start(torch.arange(len(trials.x)), trials)
    for _ in range(steps + 1):
        machine.step(shown)
    assert machine.finished.all()
    return torch.stack(shown.images)[machine.forwards - 1 :: machine.forwards], machine


@pytest.fixture
def double() -> Iterator[None]:
    """Everything in float64, where rounding cannot grow to what is compared."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@norms
@kinds
@pytest.mark.parametrize(("name", "steps"), [("digits_plain", 100), ("digits_robust", 43), ("digits_plain", 7)])
def test_the_trajectory_is_the_library_s(norm: Norm, kind: int, name: str, steps: int, double: None) -> None:
    x, y = digits(name, 40)
    network = deepcopy(network_of(name)).double()
    trials = trials_of(network, x.double(), y, kind)
    points, machine = ours(network, trials, norm, steps)
    survived = 0
    for place in range(0, len(x), 3):
        expected, wrong = library(network, only(trials, [place]), norm, steps)
        assert bool(machine.fooled[place]) == bool(wrong.any())
        seen = int(wrong.int().argmax()) + 1 if wrong.any() else steps + 1
        survived += seen == steps + 1
        torch.testing.assert_close(points[:seen, place], expected[:seen], atol=1e-9, rtol=0)
        torch.testing.assert_close(machine.found[place], expected[seen - 1], atol=1e-9, rtol=0)
    assert survived > 0
    assert survived < len(range(0, len(x), 3)) or name == "digits_robust"


@norms
@kinds
def test_in_float32_the_same_images_fall_at_the_same_step(norm: Norm, kind: int) -> None:
    """With 16 steps: later, where a gradient is 0 but for rounding, its sign is chance, in L∞ a pixel."""
    network, steps = network_of("digits_plain"), 16
    trials = trials_of(network, *digits("digits_plain", 60), kind)
    points, machine = ours(network, trials, norm, steps)
    fallen, width = 0, len(trials.x)

    def alone(x: Tensor) -> Tensor:
        """The bits of a network may depend on the width of a batch."""
        logits: Tensor = network(torch.cat([x, trials.x[1:]]))[:1]
        return logits

    for place in range(0, width, 3):
        expected, wrong = library(alone, only(trials, [place]), norm, steps)
        assert bool(machine.fooled[place]) == bool(wrong.any())
        seen = int(wrong.int().argmax()) + 1 if wrong.any() else steps + 1
        fallen += bool(wrong.any())
        torch.testing.assert_close(points[:seen, place], expected[:seen], atol=1e-5, rtol=0)
        if wrong.any():
            torch.testing.assert_close(machine.found[place], expected[seen - 1], atol=1e-6, rtol=0)
    assert fallen > 5


def waves(network: Network) -> Network:
    """A network that is random in the same way in each run: the n-th call is tilted by the n-th tilt."""
    tilts = torch.randn(10_000, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    calls = iter(tilts)
    return lambda x: network(x) + next(calls).to(x)


@norms
@pytest.mark.parametrize("kind", [CE, DLR])
def test_gradients_of_several_passes_are_averaged_as_in_the_library(norm: Norm, kind: int, double: None) -> None:
    x, y = digits("digits_plain", 12)
    network = deepcopy(network_of("digits_plain")).double()
    trials = trials_of(network, x.double(), y, kind)
    points, machine = ours(waves(network), trials, norm, 10, gradients=5)
    assert (machine.forwards, machine.backwards) == (5, 5)
    for place in range(len(x)):
        expected, wrong = library(waves(network), only(trials, [place]), norm, 10, gradients=5)
        seen = int(wrong.int().argmax()) + 1 if wrong.any() else 11
        torch.testing.assert_close(points[:seen, place], expected[:seen], atol=1e-9, rtol=0)


WIDTH = 7
Plan = dict[int, list[tuple[int, int]]]
"""At which step which trials are put into which slots: step → (trial, slot)."""
COMPANY: Plan = {0: [(trial, trial) for trial in range(WIDTH)]}


def run(plan: Plan, trials: Trials, network: Network, norm: Norm, steps: int = 12) -> dict[int, tuple[int, Tensor]]:
    """Trials put into slots at steps: trial → the number of steps until it was finished, and the image it ended at."""
    machine = APGD(WIDTH, tuple(trials.x.shape[1:]), norm=norm, eps=EPS[norm] / 2, steps=steps)
    held: dict[int, tuple[int, int]] = {}
    ended: dict[int, tuple[int, Tensor]] = {}
    for now in range(max(plan) + steps + 2):
        if now in plan:
            held |= {slot: (trial, now) for trial, slot in plan[now]}
            machine.start(
                torch.tensor([slot for _, slot in plan[now]]), only(trials, [trial for trial, _ in plan[now]])
            )
        machine.step(network)
        for slot, (trial, since) in list(held.items()):
            if machine.finished[slot]:
                ended[trial] = now - since, machine.found[slot].clone()
                del held[slot]
    assert not held
    return ended


@norms
@pytest.mark.parametrize("steps", [12, 60])
@pytest.mark.parametrize(
    "plan",
    [
        {0: [(3, 3)]},
        {0: [(3, 0)]},
        {0: [(3, 6)]},
        {0: [(trial, (trial + 2) % WIDTH) for trial in range(WIDTH)]},
        {0: [(trial, trial) for trial in (0, 1, 2)], 5: [(3, 3), (4, 6)], 6: [(5, 4)]},
        {0: [(0, 3), (1, 5)], 3: [(3, 3)], 4: [(2, 5)], 9: [(5, 5), (4, 0)]},
    ],
    ids=["alone", "first slot", "last slot", "other slots", "later than the others", "into a slot half-way"],
)
def test_a_trial_does_not_depend_on_slot_company_or_time(norm: Norm, plan: Plan, steps: int) -> None:
    """To the last bit, in a batch of one width; 7 images of 64 pixels are no whole number of vectors."""
    network = network_of("digits_plain")
    x, y = digits("digits_plain", 20)
    trials = trials_of(network, x[:WIDTH], y[:WIDTH], torch.arange(WIDTH) % 3)
    expected, found = run(COMPANY, trials, network, norm, steps), run(plan, trials, network, norm, steps)
    assert set(found) >= {trial for trial, _ in plan[max(plan)]}
    for trial in found:
        assert found[trial][0] == expected[trial][0]
        assert torch.equal(found[trial][1], expected[trial][1])


@norms
def test_slots_that_are_finished_stay_as_they_are(norm: Norm) -> None:
    network = network_of("digits_plain")
    trials = trials_of(network, *digits("digits_plain", 30), CE)
    _, machine = ours(network, trials, norm, 9)
    before = machine.found.clone(), machine.fooled.clone(), machine.finished.clone()
    machine.step(network)
    after = machine.found, machine.fooled, machine.finished
    assert all(torch.equal(was, now) for was, now in zip(before, after, strict=True))


def test_an_empty_machine_is_finished_and_fools_nobody() -> None:
    machine = APGD(3, (1, 8, 8), norm="Linf", eps=0.1)
    machine.step(network_of("digits_plain"))
    assert machine.finished.all()
    assert not machine.fooled.any()


@norms
def test_a_step_never_waits_for_a_gpu(norm: Norm) -> None:
    plain = trials_of(network_of("digits_plain"), *digits("digits_plain", 9), CE)
    plain = plain._replace(variants=torch.arange(len(plain.x)) % 3)
    _, expected = ours(network_of("digits_plain"), plain, norm, 8)
    gpu = PretendGpu()
    with gpu:
        network = gpu.module(deepcopy(network_of("digits_plain")))
        machine = APGD(len(plain.x), (1, 8, 8), norm=norm, eps=EPS[norm], steps=8, device="meta")
        machine.start(gpu.tensor(torch.arange(len(plain.x))), Trials(*map(gpu.tensor, plain)))  # type: ignore[arg-type]
        assert not gpu.strays
        gpu.forget()
        for _ in range(9):
            machine.step(network)
        assert not gpu.waits
        assert not gpu.strays
    for name in ("found", "fooled", "finished"):
        assert torch.equal(getattr(machine, name).here, getattr(expected, name))


@norms
@kinds
def test_what_is_found_is_in_the_ball_in_the_box_and_misclassified(norm: Norm, kind: int) -> None:
    network = network_of("digits_plain")
    trials = trials_of(network, *digits("digits_plain", 100), kind)
    _, machine = ours(network, trials, norm, 20)
    found, x, y = (values[machine.fooled] for values in (machine.found, trials.x, trials.y))
    assert 5 < len(found) < len(trials.x) - 5
    assert found.min() >= -SLACK_BOX
    assert found.max() <= 1 + SLACK_BOX
    lengths = torch.linalg.vector_norm((found.double() - x.double()).flatten(1), ORDER[norm], dim=1)
    assert lengths.max() <= EPS[norm] * (1 + SLACK) + SLACK_BOX
    assert (network(found).argmax(1) != y).all()


class Linear(nn.Module):
    """Two classes that an image can have and two that it never has: z, −z, −20, −21 with z = <w, x> − b."""

    def __init__(self, size: int) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(1)
        self.w = torch.randn(size, generator=drawn)
        self.b = self.w.sum() / 2

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.w - self.b
        return torch.stack([z, -z, z.detach() * 0 - 20, z.detach() * 0 - 21], 1)


@norms
@kinds
def test_of_a_linear_network_the_survivors_are_those_of_the_closed_form(norm: Norm, kind: int) -> None:
    """The margin is <w, x> − b, and the least move that closes it is the margin over the dual norm of w."""
    n, eps, linear = 60, {"Linf": 0.02, "L2": 0.15}[norm], Linear(48)
    drawn = torch.Generator().manual_seed(0)
    x = 0.5 + 0.05 * torch.randn(n, 48, generator=drawn)
    dual = torch.linalg.vector_norm(linear.w, {"Linf": 1, "L2": 2}[norm])
    goal = (torch.rand(n, generator=drawn) * 2 - 1) * 2 * eps * dual
    x += ((goal - (x @ linear.w - linear.b)) / linear.w.norm() ** 2)[:, None] * linear.w
    distances = (x @ linear.w - linear.b).abs() / dual
    clear = (distances / eps - 1).abs() > 0.01  # where rounding does not decide
    x, distances = x[clear], distances[clear]
    assert x.min() > eps  # the box does not matter
    assert x.max() < 1 - eps
    y = (x @ linear.w < linear.b).long()
    trials = Trials(x.view(-1, 3, 4, 4), y, 1 - y, torch.arange(len(x)), torch.full_like(y, kind))
    _, machine = ours(linear, trials, norm, 40, eps=eps)
    assert torch.equal(machine.fooled, distances < eps)
    assert 10 < machine.fooled.sum() < len(x) - 10


@kinds
def test_of_the_digits_as_many_are_lost_as_with_the_library(kind: int) -> None:
    network = network_of("digits_plain")
    x, y = digits("digits_plain", 60)
    attack = Custom(stages=(NAMES[kind],), targets=3)
    lost = []
    for seed in (0, 1):
        found = autoattack.perturb(NAMES[kind], attack, network, x, y, norm="Linf", eps=0.1, seed=seed)
        lost.append(int((network(found).argmax(1) != y).sum()))
    fooled = torch.zeros(len(x), dtype=torch.bool)
    for rank in (-2, -3, -4) if kind == TARGETED_DLR else (-2,):
        targets = network(x).argsort(1)[:, rank]
        keys = torch.tensor([noise.key_of("lost", rank, number) for number in range(len(x))])
        _, machine = ours(network, Trials(x, y, targets, keys, torch.full_like(y, kind)), "Linf", 100)
        fooled |= machine.fooled
    assert min(lost) - 2 <= int(fooled.sum()) <= max(lost) + 2
    assert 10 < int(fooled.sum()) < len(x) - 10


def test_checkpoints_are_those_of_the_paper() -> None:
    """p = 0.22, 0.41, 0.57, 0.7, 0.8, 0.87, 0.93, 0.99 (Section 3.1)."""
    assert list(apgd_walks.checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


@given(st.integers(1, 600))
@settings(max_examples=100)
def test_checkpoints_get_closer_and_each_window_reaches_back_to_the_one_before(steps: int) -> None:
    windows = apgd_walks.checkpoints(steps)
    assert all(point <= steps for point in windows)
    assert next(iter(windows.items())) == (max(int(0.22 * steps), 1),) * 2
    for (earlier, longer), (later, window) in pairwise(windows.items()):
        assert later - earlier == window <= longer
    assert steps - max(windows) < max(windows.values())


LOSSES: dict[int, Callable[[Tensor, int, int], Tensor]] = {
    CE: lambda z, y, _: -z.log_softmax(0)[y],
    DLR: lambda z, y, _: (torch.cat([z[:y], z[y + 1 :]]).max() - z[y]) / (z.sort().values[-1] - z.sort().values[-3]),
    TARGETED_DLR: lambda z, y, t: (z[t] - z[y]) / (z.sort().values[-1] - z.sort().values[[-3, -4]].mean()),
}
"""The papers' formulas, for one image."""


@given(classes=st.integers(4, 12), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_losses_and_gradients_are_those_of_the_formulas(classes: int, seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(12, classes, generator=drawn)
    y = torch.randint(classes, (12,), generator=drawn)
    targets = (y + torch.randint(1, classes, (12,), generator=drawn)) % classes
    chosen = torch.arange(12) % 3
    losses = Losses(12, "cpu")
    losses.start(torch.arange(12), y, targets, chosen)
    found, gradients = losses.ascent(logits)
    for place in range(12):
        z = logits[place].double().requires_grad_()
        expected = LOSSES[int(chosen[place])](z, int(y[place]), int(targets[place]))
        (gradient,) = torch.autograd.grad(expected, z)
        torch.testing.assert_close(found[place].double(), expected.detach(), atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(gradients[place].double(), gradient, atol=1e-4, rtol=1e-3)


def test_a_loss_that_a_slot_does_not_have_leaves_no_nan() -> None:
    losses = Losses(2, "cpu")
    losses.start(torch.arange(2), torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([CE, DLR]))
    huge = torch.full((2, 4), 3e38)
    huge[1] = torch.tensor([3e38, -3e38, 0.0, 0.0])
    found, gradients = losses.ascent(huge)
    assert found[0].item() == pytest.approx(torch.log(torch.tensor(4.0)).item())
    assert gradients[0].tolist() == pytest.approx([-0.75, 0.25, 0.25, 0.25])
    assert apgd_losses.CE == 0  # the variant of trials that name none
