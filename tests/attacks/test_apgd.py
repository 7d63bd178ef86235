"""APGD as a step machine: the library's trajectories, independence of the company, and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.library import configured, perturb
from helpers.networks import Recorded, beside_a_boundary, digits, network_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.api.attack import Network, Trials
from harness.api.threat import SLACK, SLACK_BOX
from harness.attacks import apgd_l1, apgd_walks, l1_ball
from harness.attacks.apgd import APGD
from harness.attacks.apgd_losses import CE, DLR, TARGETED_DLR, Losses
from harness.attacks.autoattack import Custom, Name
from harness.attacks.norms import Norm
from harness.util import noise


@dataclass(frozen=True)
class Ball:
    """Where an attack searches; ``order`` is that of the norm."""

    norm: Norm
    order: float
    eps: float
    larger_radii: bool = False

    def machine(self, slots: int, x: Tensor, steps: int, **more: Any) -> APGD:
        shape = tuple(x.shape[1:])
        return APGD(slots, shape, norm=self.norm, eps=self.eps, steps=steps, larger_radii=self.larger_radii, **more)


LINF, L2 = Ball("Linf", torch.inf, 0.1), Ball("L2", 2, 0.5)
L1, L1_SHRINKING = Ball("L1", 1, 2.0), Ball("L1", 1, 2.0, larger_radii=True)
NAMES: dict[int, Name] = {CE: "apgd-ce", DLR: "apgd-dlr", TARGETED_DLR: "apgd-t"}

balls = pytest.mark.parametrize("ball", [LINF, L2, L1, L1_SHRINKING], ids=["Linf", "L2", "L1", "L1 shrinking"])
kinds = pytest.mark.parametrize("kind", NAMES, ids=NAMES.values())


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


def library(network: Network, trial: Trials, ball: Ball, steps: int, gradients: int = 1) -> tuple[Tensor, Tensor]:
    """What the library shows the network in a trial of one image with the trial's noise.

    Returns:
        The points [steps + 1, c, h, w], and whether one would end the trial; with larger radii two points more.
    """
    assert trial.variants is not None
    name = NAMES[int(trial.variants)]
    shown = Recorded(network)
    budget = Custom(stages=(name,), iterations=steps)
    tool = configured(budget, shown, 10, ball.norm, ball.eps, "cpu")  # type: ignore[arg-type]
    attack = tool.apgd_targeted if name == "apgd-t" else tool.apgd
    attack.loss = {CE: "ce", DLR: "dlr", TARGETED_DLR: "dlr-targeted"}[int(trial.variants)]
    attack.eot_iter, attack.y_target = gradients, trial.targets
    attack.init_hyperparam(trial.x)
    draw = noise.uniform if ball.norm == "Linf" else noise.normal
    drawn = draw(trial.keys, torch.zeros_like(trial.keys), tuple(trial.x.shape[1:])).to(trial.x)
    few = math.ceil(0.3 * steps)
    with pytest.MonkeyPatch.context() as patch:
        for function in ("rand", "randn", "randn_like"):
            patch.setattr(torch, function, lambda *_: drawn.clone())
        if trial.x.dtype == torch.float64:
            patch.setattr(Tensor, "float", Tensor.double)  # the library's projection in L1 is made in float32
        if ball.larger_radii:
            radii = [3 * ball.eps, 2 * ball.eps, ball.eps]
            attack.decr_eps_pgd(trial.x.clone(), trial.y.clone(), radii, [few, few, steps - 2 * few])
        else:
            attack.attack_single_run(trial.x.clone(), trial.y.clone())
    points = torch.cat(shown.images)[gradients - 1 :: gradients]
    wrong = torch.cat(shown.answers)[gradients - 1 :: gradients] != trial.y
    wrong[: 2 * (few + 1) * ball.larger_radii] = False
    return points, wrong


def ours(network: Network, trials: Trials, ball: Ball, steps: int, **more: Any) -> tuple[Tensor, APGD]:
    """What our machine shows the network, every trial in a slot: [points, n, c, h, w]; and the machine."""
    machine = ball.machine(len(trials.x), trials.x, steps, **more)
    shown = Recorded(network)
    machine.start(torch.arange(len(trials.x)), trials)
    while not machine.finished.all():
        machine.step(shown)
        assert len(shown.images) <= (steps + 3) * machine.forwards
    return torch.stack(shown.images)[machine.forwards - 1 :: machine.forwards], machine


def ending(wrong: Tensor) -> int:
    """How many points a trial sees that ends at the first of which ``wrong`` is true."""
    return int(wrong.int().argmax()) + 1 if wrong.any() else len(wrong)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64, where rounding does not grow to what is compared."""
    monkeypatch.setattr(l1_ball, "HALVINGS", 60)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def compared(network: Callable[[], Network], trials: Trials, ball: Ball, steps: int, **more: Any) -> list[Tensor]:
    """Walk all trials with our machine, and each alone with the library, and hold the one against the other.

    In L1 the library counts the pixels that have moved. A move that is taken back leaves of a pixel that is grey a rest
    of 1e-17, or none, as chance will have it; and so does, of any pixel, one that is taken back just to its end. Trials
    that part after such a count was another one are few, and forgiven.

    Args:
        network: makes it anew.
        trials: in float64.
        ball: to walk in.
        steps: N_iter.
        more: settings of the machine.

    Returns:
        Where the library was wrong, of each trial, bool [points].
    """
    points, machine = ours(network(), trials, ball, steps, **more)
    wrongs, forgiven = [], 0
    for place, clean in enumerate(trials.x):
        expected, wrong = library(network(), only(trials, [place]), ball, steps, **more)
        wrongs.append(wrong)
        seen = ending(wrong)
        found, expected = points[:seen, place], expected[:seen]
        parted = (found - expected).abs().flatten(1).amax(1) > 1e-9
        moved, moved_there = ((images != clean).flatten(1).sum(1) for images in (found, expected))
        if ball.norm == "L1" and parted.any() and (moved != moved_there)[: int(parted.int().argmax())].any():
            forgiven += 1
            continue
        assert not parted.any(), f"trial {place} parts at point {int(parted.int().argmax())} of {seen}"
        assert bool(machine.fooled[place]) == bool(wrong.any())
        assert len(points) == len(wrong) or wrong.any()
        torch.testing.assert_close(machine.found[place], expected[-1], atol=1e-9, rtol=0)
    assert forgiven <= len(trials.x) / 4
    return wrongs


def in_double(name: str, ball: Ball, places: slice, kind: int) -> tuple[nn.Module, Trials]:
    """A demo network, and trials of some digits, in float64; in L1 the digits are black and white: see `compared`."""
    x, y = (values[places] for values in digits(name, 40, black_and_white=ball.norm == "L1"))
    network = deepcopy(network_of(name)).double()
    return network, trials_of(network, x.double(), y, kind)


@balls
@kinds
@pytest.mark.parametrize(
    ("name", "steps"),
    [pytest.param("digits_plain", 100, marks=pytest.mark.slow), ("digits_robust", 43), ("digits_plain", 7)],
)
def test_the_trajectory_is_the_library_s(ball: Ball, kind: int, name: str, steps: int, double: None) -> None:
    if (name, kind, ball) == ("digits_robust", DLR, L1_SHRINKING):
        pytest.skip("in 3 ε these images reach the plateau of DLR, 1, where gradients are 0 but for rounding")
    network, trials = in_double(name, ball, slice(0, 40, 3), kind)
    wrongs = compared(lambda: network, trials, ball, steps)
    fallen = sum(bool(wrong.any()) for wrong in wrongs)
    assert 0 < fallen < len(wrongs) or name == "digits_robust"


@balls
@kinds
@pytest.mark.parametrize("scale", [1.5, 5])
def test_the_trajectory_is_the_library_s_for_images_outside_the_box(
    ball: Ball, kind: int, scale: float, double: None
) -> None:
    """Normalised images are; [−2.5, 2.5]. Later, rounding decides the sign of a gradient, in L∞ a pixel."""
    network, inside = in_double("digits_plain", ball, slice(12), kind)
    x = scale * (inside.x - 0.5)
    compared(lambda: network, trials_of(network, x, network(x).argmax(1), kind), ball, 12)


def sawtooth(network: Network, period: int) -> Network:
    """The n-th call is at another temperature: the loss of an image that stays where it is falls once a period."""
    calls = iter(range(10_000))
    return lambda x: network(x) * math.exp(-3 * (next(calls) % period) / period)


def terraces(network: Network) -> Network:
    """Logits are rounded to halves, but not their gradients: losses of neighbouring points are equal."""

    def rounded(x: Tensor) -> Tensor:
        logits = network(x)
        return (2 * logits).round().detach() / 2 + (logits - logits.detach())

    return rounded


@pytest.mark.parametrize("ball", [LINF, L2, L1], ids=["Linf", "L2", "L1"])
@pytest.mark.parametrize("period", [1, 5, 12, 19, 23, 60])
def test_the_trajectory_is_the_library_s_whatever_the_loss_does(ball: Ball, period: int, double: None) -> None:
    network, trials = in_double("digits_robust", ball, slice(9), CE)
    ball = replace(ball, eps=ball.eps / 4)  # few fall, and see the end
    compared(lambda: terraces(network) if period == 1 else sawtooth(network, period), trials, ball, 100)


@pytest.mark.parametrize("ball", [LINF, L2], ids=["Linf", "L2"])
@kinds
def test_in_float32_the_same_images_fall_at_the_same_step(ball: Ball, kind: int) -> None:
    """With 16 steps: later, where a gradient is 0 but for rounding, its sign is chance, in L∞ a pixel."""
    network, steps = network_of("digits_plain"), 16
    trials = trials_of(network, *digits("digits_plain", 60), kind)
    points, machine = ours(network, trials, ball, steps)
    fallen, width = 0, len(trials.x)

    def alone(x: Tensor) -> Tensor:
        """The bits of a network may depend on the width of a batch."""
        logits: Tensor = network(torch.cat([x, trials.x[1:]]))[:1]
        return logits

    for place in range(0, width, 3):
        expected, wrong = library(alone, only(trials, [place]), ball, steps)
        assert bool(machine.fooled[place]) == bool(wrong.any())
        seen = ending(wrong)
        torch.testing.assert_close(points[:seen, place], expected[:seen], atol=1e-5, rtol=0)
        if wrong.any():
            fallen += 1
            torch.testing.assert_close(machine.found[place], expected[seen - 1], atol=1e-6, rtol=0)
    assert fallen > 5


def waves(network: Network) -> Network:
    """A network that is random in the same way in each run: the n-th call is tilted by the n-th tilt."""
    tilts = torch.randn(10_000, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    calls = iter(tilts)
    return lambda x: network(x) + next(calls).to(x)


@pytest.mark.parametrize("ball", [LINF, L2, L1], ids=["Linf", "L2", "L1"])
@pytest.mark.parametrize("kind", [CE, DLR])
def test_gradients_of_several_passes_are_averaged_as_in_the_library(ball: Ball, kind: int, double: None) -> None:
    network, trials = in_double("digits_plain", ball, slice(12), kind)
    compared(lambda: waves(network), trials, ball, 10, gradients=5)
    machine = ball.machine(2, trials.x, 10, gradients=5)
    assert (machine.forwards, machine.backwards) == (5, 5)


WIDTH = 7
Plan = dict[int, list[tuple[int, int]]]
"""At which step which trials are put into which slots: step → (trial, slot)."""
COMPANY: Plan = {0: [(trial, trial) for trial in range(WIDTH)]}
PLANS: dict[str, Plan] = {
    "alone": {0: [(3, 3)]},
    "first slot": {0: [(3, 0)]},
    "last slot": {0: [(3, 6)]},
    "other slots": {0: [(trial, (trial + 2) % WIDTH) for trial in range(WIDTH)]},
    "later than the others": {0: [(0, 0), (1, 1), (2, 2)], 5: [(3, 3), (4, 6)], 6: [(5, 4)]},
    "into slots half-way": {0: [(0, 3), (1, 5)], 3: [(3, 3)], 4: [(2, 5)], 9: [(5, 5), (4, 0)]},
    "into slots that are finished": {0: [(trial, trial) for trial in range(WIDTH)], 70: [(2, 3), (3, 5), (5, 2)]},
}


def run(plan: Plan, trials: Trials, network: Network, ball: Ball, steps: int) -> dict[int, tuple[int, bool, Tensor]]:
    """Trials put into slots at steps: trial → steps until it was finished, whether it fooled, and where it ended."""
    machine = ball.machine(WIDTH, trials.x, steps)
    held: dict[int, tuple[int, int]] = {}
    ended: dict[int, tuple[int, bool, Tensor]] = {}
    for now in range(max(plan) + steps + 4):
        if now in plan:
            held |= {slot: (trial, now) for trial, slot in plan[now]}
            slots = torch.tensor([slot for _, slot in plan[now]])
            machine.start(slots, only(trials, [trial for trial, _ in plan[now]]))
        machine.step(network)
        for slot, (trial, since) in list(held.items()):
            if machine.finished[slot]:
                ended[trial] = now - since, bool(machine.fooled[slot]), machine.found[slot].clone()
                del held[slot]
    assert not held
    return ended


@balls
@pytest.mark.parametrize("steps", [12, 60])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_trial_does_not_depend_on_slot_company_or_time(ball: Ball, plan: Plan, steps: int) -> None:
    """To the last bit, in a batch of one width; 7 images of 49 pixels are no whole number of vectors."""
    drawn = torch.Generator().manual_seed(0)
    network = Linear(49, classes=10)
    x = torch.rand(WIDTH, 1, 7, 7, generator=drawn)
    trials = trials_of(network, x, network(x).argmax(1), torch.arange(WIDTH) % 3)
    ball = replace(ball, eps=ball.eps * 0.12)
    expected, found = run(COMPANY, trials, network, ball, steps), run(plan, trials, network, ball, steps)
    assert {fooled for _, fooled, _ in expected.values()} == {True, False}
    assert set(found) >= {trial for trial, _ in plan[max(plan)]}
    for trial, (taken, fooled, image) in found.items():
        assert (taken, fooled) == expected[trial][:2]
        assert torch.equal(image, expected[trial][2])


@balls
def test_slots_that_are_finished_stay_as_they_are(ball: Ball) -> None:
    network = network_of("digits_plain")
    trials = trials_of(network, *digits("digits_plain", 30), CE)
    _, machine = ours(network, trials, ball, 9)
    before = machine.found.clone(), machine.fooled.clone(), machine.finished.clone()
    machine.step(network)
    after = machine.found, machine.fooled, machine.finished
    assert all(torch.equal(was, now) for was, now in zip(before, after, strict=True))


@balls
def test_an_empty_machine_is_finished_and_fools_nobody(ball: Ball) -> None:
    machine = ball.machine(3, torch.zeros(1, 1, 8, 8), 5)
    machine.step(network_of("digits_plain"))
    assert machine.finished.all()
    assert not machine.fooled.any()


@balls
@kinds
def test_what_is_found_is_in_the_ball_in_the_box_and_misclassified(ball: Ball, kind: int) -> None:
    network = network_of("digits_plain")
    trials = trials_of(network, *digits("digits_plain", 100), kind)
    _, machine = ours(network, trials, ball, 20)
    found, x, y = (values[machine.fooled] for values in (machine.found, trials.x, trials.y))
    assert 5 < len(found) < len(trials.x) - 5
    assert found.min() >= -SLACK_BOX
    assert found.max() <= 1 + SLACK_BOX
    lengths = torch.linalg.vector_norm((found.double() - x.double()).flatten(1), ball.order, dim=1)
    assert lengths.max() <= ball.eps * (1 + SLACK) + SLACK_BOX
    assert (network(found).argmax(1) != y).all()


class Linear(nn.Module):
    """Logits z, −z, −20 and −21 with z = <w, x> − b; with ten ``classes`` any."""

    def __init__(self, size: int, classes: int = 4) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(1)
        self.w = torch.randn(size, classes, generator=drawn)
        self.b = self.w.sum(0) / 2
        if classes == 4:
            self.w[:, 1], self.w[:, 2:] = -self.w[:, 0], 0
            self.b = torch.stack([self.b[0], -self.b[0], torch.tensor(20.0), torch.tensor(21.0)])

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1)[:, None, :] * self.w.T).sum(2) - self.b  # a matrix product may depend on the place


@balls
@kinds
def test_of_a_linear_network_the_survivors_are_those_of_the_closed_form(ball: Ball, kind: int) -> None:
    linear = Linear(48)
    tolerance = 0.2 if ball == L1 else 0.01  # in L1, in one ball, neither our walk nor the library's goes to the end
    ball = replace(ball, eps={"Linf": 0.02, "L2": 0.15, "L1": 0.2}[ball.norm])
    w, b = linear.w[:, 0], linear.b[0]
    x, y, distances = beside_a_boundary(w, b, ball.norm, ball.eps, n=60, spread=0.05, tolerance=tolerance)
    trials = Trials(x.view(-1, 3, 4, 4), y, 1 - y, torch.arange(len(x)), torch.full_like(y, kind))
    _, machine = ours(linear, trials, ball, 100)
    assert torch.equal(machine.fooled, distances < ball.eps)
    assert 10 < machine.fooled.sum() < len(x) - 10


@pytest.mark.parametrize(
    ("ball", "kind"), [(LINF, CE), (LINF, DLR), (LINF, TARGETED_DLR), (L2, CE), (L1_SHRINKING, CE)]
)
def test_of_the_digits_as_many_are_lost_as_with_the_library(ball: Ball, kind: int) -> None:
    network = network_of("digits_plain")
    x, y = digits("digits_plain", 60)
    attack = Custom(stages=(NAMES[kind],), targets=3)
    lost = []
    for seed in (0, 1):
        found = perturb(NAMES[kind], attack, network, x, y, norm=ball.norm, eps=ball.eps, seed=seed)
        lost.append(int((network(found).argmax(1) != y).sum()))
    fooled = torch.zeros(len(x), dtype=torch.bool)
    for rank in (-2, -3, -4) if kind == TARGETED_DLR else (-2,):
        targets = network(x).argsort(1)[:, rank]
        keys = torch.tensor([noise.key_of("lost", rank, number) for number in range(len(x))])
        _, machine = ours(network, Trials(x, y, targets, keys, torch.full_like(y, kind)), ball, 100)
        fooled |= machine.fooled
    assert min(lost) - 2 <= int(fooled.sum()) <= max(lost) + 2
    assert 10 < int(fooled.sum()) < len(x) - 5


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


def test_the_balls_shrink_as_in_autoattack() -> None:
    assert apgd_l1.phases(4.0, 100) == [(12.0, 30), (8.0, 30), (4.0, 40)]
    assert apgd_l1.phases(4.0, 2) == [(12.0, 1), (8.0, 1), (4.0, 0)]


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
    assert found[0].item() == pytest.approx(math.log(4))
    assert gradients[0].tolist() == pytest.approx([-0.75, 0.25, 0.25, 0.25])


def test_trials_that_name_no_variant_ascend_the_cross_entropy() -> None:
    network = network_of("digits_plain")
    trials = trials_of(network, *digits("digits_plain", 12), CE)
    named, unnamed = (ours(network, given_, LINF, 10)[0] for given_ in (trials, trials._replace(variants=None)))
    assert torch.equal(named, unnamed)
