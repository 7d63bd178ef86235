"""FAB as a step machine: the library's trajectories, independence of the company, and closed forms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache
from unittest.mock import patch

import pytest
import torch
from helpers.library import configured, perturb
from helpers.networks import Recorded, beside_a_boundary, digits, network_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn

from harness.api.attack import Network, Trials
from harness.api.threat import SLACK, SLACK_BOX
from harness.attacks import fab
from harness.attacks.autoattack import Custom, Name
from harness.attacks.fab import CLEAN_START, FAB, RANDOM_START
from harness.attacks.norms import Norm
from harness.util import noise

EPS: dict[Norm, float] = {"Linf": 0.1, "L2": 0.5, "L1": 2.0}
NOISE = {"Linf": ("rand", noise.uniform), "L2": ("randn", noise.normal), "L1": ("randn", noise.normal)}
ORDER = {"Linf": torch.inf, "L2": 2, "L1": 1}

COLOURS_EPS: dict[Norm, float] = {"Linf": 0.03, "L2": 0.18, "L1": 0.6}
ROUNDING = {CLEAN_START: 1e-10, RANDOM_START: 1e-7}
"""In float64, in which the noise is not drawn."""

norms = pytest.mark.parametrize("norm", EPS)
aims = pytest.mark.parametrize("targeted", [True, False], ids=["targeted", "nearest"])


class Colours(nn.Module):
    """A small network of four classes, of images of three channels that are not square: 75 pixels, no whole vectors."""

    shape = (3, 5, 5)

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).float()
        self.requires_grad_(False)
        self.to(torch.get_default_dtype())

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits

    def images(self, n: int) -> tuple[Tensor, Tensor]:
        """Images, a third of their pixels at the walls of the box, and the answers."""
        drawn = torch.rand(n, *self.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float32)
        x = (1.5 * drawn - 0.25).clamp(0, 1).to(torch.get_default_dtype())
        return x, self(x).argmax(1)


def trials_of(network: Network, x: Tensor, y: Tensor, variant: int = CLEAN_START) -> Trials:
    """A trial for each image: targets from near to far, keys from the image's number."""
    logits = network(x)
    ranks = -2 - torch.arange(len(x)) % 3
    targets = logits.argsort(1).gather(1, ranks[:, None] % logits.shape[1])[:, 0]
    keys = torch.tensor([noise.key_of("test", number) for number in range(len(x))])
    return Trials(x, y, targets, keys, torch.full_like(y, variant))


def only(trials: Trials, places: Sequence[int]) -> Trials:
    assert trials.variants is not None
    at = torch.tensor(places).long()
    return Trials(trials.x[at], trials.y[at], trials.targets[at], trials.keys[at], trials.variants[at])


def library(
    network: Network, trial: Trials, norm: Norm, eps: float, targeted: bool, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the library's object on a trial of one image, with the trial's noise, and in the precision of the image.

    Returns:
        What it shows the network: iterate, next, iterate, next …, [2 steps, c, h, w]; the answers; what it returns,
        [c, h, w].
    """
    shown = Recorded(network)
    tool: FABAttack_PT = configured("standard", shown, 4, norm, eps, "cpu").fab  # type: ignore[arg-type]
    assert (tool.alpha_max, tool.eta, tool.beta, tool.n_iter) == (fab.ALPHA_MAX, fab.ETA, fab.BETA, 100)
    tool.n_iter = steps
    order = network(trial.x)[0].sort().indices
    tool.target_class = len(order) - int((order == trial.targets[0]).nonzero())  # its rank from above
    name, draw = NOISE[norm]
    drawn = draw(trial.keys, torch.zeros_like(trial.keys), tuple(trial.x.shape[1:])).to(trial.x)
    random = trial.variants is not None and bool(trial.variants[0] == RANDOM_START)
    with pytest.MonkeyPatch.context() as library_s:
        library_s.setattr(torch, name, lambda shape: drawn.clone())
        if trial.x.dtype == torch.float64:
            library_s.setattr(Tensor, "float", Tensor.double)
        found = tool.attack_single_run(trial.x.clone(), trial.y.clone(), use_rand_start=random, is_targeted=targeted)
    first = 2 if targeted else 1  # before, it looks at the clean image
    return torch.cat(shown.images)[first:], torch.cat(shown.answers)[first:], found[0]


def machine_of(network: Network, trials: Trials, norm: Norm, eps: float, targeted: bool, steps: int = 100) -> FAB:
    """A machine with every trial in a slot."""
    width, shape, classes = len(trials.x), tuple(trials.x.shape[1:]), network(trials.x).shape[1]
    machine = FAB(width, shape, norm=norm, eps=eps, classes=classes, targeted=targeted, steps=steps)
    machine.start(torch.arange(width), trials)
    return machine


def ours(
    network: Network, trials: Trials, norm: Norm, eps: float, targeted: bool, steps: int = 100
) -> tuple[Tensor, FAB]:
    """What our machine shows the network: [2 steps, n, c, h, w], iterate, next, iterate, next …; and the machine."""
    machine, shown = machine_of(network, trials, norm, eps, targeted, steps), Recorded(network)
    for _ in range(steps):
        assert machine.finished.equal(machine.fooled)
        machine.step(shown)
    assert machine.finished.all()
    return torch.stack(shown.images), machine


def compared(
    network: Network, trials: Trials, norm: Norm, eps: float, targeted: bool, steps: int, rounding: float
) -> list[int]:
    """Compare each trial with the library's; return its steps until it had fooled the network, or 0."""
    points, machine = ours(network, trials, norm, eps, targeted, steps)

    def alone(x: Tensor) -> Tensor:
        """The bits of a network may depend on the width of a batch."""
        return network(torch.cat([x, trials.x[1:]]))[:1]

    falls = []
    for place in range(len(trials.x)):
        trial = only(trials, [place])
        expected, answers, _ = library(alone, trial, norm, eps, targeted, steps)
        distances = torch.linalg.vector_norm((expected - trial.x).flatten(1), ORDER[norm], dim=1)
        fools = (answers != trial.y) & (distances <= eps)
        fall = int(fools[1::2].int().argmax()) + 1 if fools[1::2].any() else 0
        seen = 2 * (fall or steps)
        torch.testing.assert_close(points[:seen, place], expected[:seen], atol=rounding, rtol=0)
        assert bool(machine.fooled[place]) == bool(fall)
        if fall:
            *_, found = library(alone, trial, norm, eps, targeted, fall)  # it would go on to a nearer one
            torch.testing.assert_close(machine.found[place], found, atol=rounding, rtol=0)
        falls.append(fall)
    return falls


@pytest.fixture
def double() -> Iterator[None]:
    """Everything in float64, where rounding cannot grow to what is compared."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@norms
@aims
@pytest.mark.parametrize(("name", "variant"), [("digits_plain", CLEAN_START), ("digits_robust", RANDOM_START)])
def test_the_trajectory_is_the_library_s(norm: Norm, targeted: bool, name: str, variant: int, double: None) -> None:
    x, y = digits(name, 8)
    network = deepcopy(network_of(name)).double()
    trials = trials_of(network, x.double(), y, variant)
    falls = compared(network, trials, norm, EPS[norm], targeted, 40, ROUNDING[variant])
    assert min(falls) == 0


@norms
@aims
@pytest.mark.parametrize("variant", [CLEAN_START, RANDOM_START])
def test_the_trajectory_is_the_library_s_for_colours(norm: Norm, targeted: bool, variant: int, double: None) -> None:
    """75 pixels, so an L1 ball of another size."""
    network = Colours()
    trials = trials_of(network, *network.images(16), variant)
    falls = compared(network, trials, norm, COLOURS_EPS[norm], targeted, 30, ROUNDING[variant])
    assert min(falls) == 0
    assert max(falls) > (variant == RANDOM_START)


@norms
@aims
@pytest.mark.parametrize(("scale", "variant"), [(1.05, CLEAN_START), (5, CLEAN_START), (5, RANDOM_START)])
def test_the_trajectory_is_the_library_s_for_images_outside_the_box(
    norm: Norm, targeted: bool, scale: float, variant: int, double: None
) -> None:
    """Normalised images are; [−2.5, 2.5]."""
    x, _ = digits("digits_plain", 9)
    network = deepcopy(network_of("digits_plain")).double()
    x = scale * (x.double() - 0.5)
    trials = trials_of(network, x, network(x).argmax(1), variant)
    compared(network, trials, norm, EPS[norm], targeted, 30, ROUNDING[variant])


@pytest.mark.slow
@norms
@aims
def test_in_float32_the_same_images_fall_at_the_same_step_to_the_end(norm: Norm, targeted: bool) -> None:
    network = network_of("digits_plain")
    x, y = digits("digits_plain", 9)
    steps, rounding = 100 if targeted else 30, 5e-6 if norm == "L1" else 1e-6
    falls = compared(network, trials_of(network, x, y), norm, EPS[norm], targeted, steps, rounding)
    assert falls.count(0) > 1
    assert len(x) - falls.count(0) > 1


@pytest.mark.parametrize(
    ("name", "wrong"), [("ALPHA_MAX", 0.11), ("ETA", 1.06), ("BETA", 0.89), ("SHORTEST", 0.5), ("DUAL", fab.LENGTH)]
)
def test_a_fault_would_be_found(name: str, wrong: object, monkeypatch: pytest.MonkeyPatch, double: None) -> None:
    x, y = digits("digits_plain", 3)
    network = deepcopy(network_of("digits_plain")).double()
    trials, targeted = trials_of(network, x.double(), y), name != "DUAL"
    expected = [library(network, only(trials, [place]), "Linf", 1e-3, targeted, 6)[0] for place in range(len(x))]
    torch.testing.assert_close(ours(network, trials, "Linf", 1e-3, targeted, 6)[0], torch.stack(expected, 1))
    monkeypatch.setattr(fab, name, wrong)
    off = (ours(network, trials, "Linf", 1e-3, targeted, 6)[0] - torch.stack(expected, 1)).abs().max()
    assert off > 1e-4


@norms
def test_a_random_start_is_half_the_radius_away_and_differs_from_key_to_key(norm: Norm) -> None:
    x = torch.full((50, 1, 8, 8), 0.5)
    keys = torch.tensor([noise.key_of("start", number) for number in range(50)])
    machine = FAB(50, (1, 8, 8), norm=norm, eps=0.3, classes=10, targeted=False)
    zero = torch.zeros(50, dtype=torch.int64)
    machine.start(torch.arange(50), Trials(x, zero, zero, keys, torch.arange(50) % 2))
    away = (machine.found - x).flatten(1)
    lengths = torch.linalg.vector_norm(away, ORDER[norm], dim=1)
    torch.testing.assert_close(lengths, 0.15 * (torch.arange(50) % 2 == RANDOM_START))
    assert len({tuple(row) for row in away.tolist()}) == 26


def test_passes_in_a_step() -> None:
    """And the network is called as often as they say."""
    for targeted, backwards in ((True, 1), (False, 3)):
        network = Colours()
        machine = machine_of(network, trials_of(network, *network.images(2)), "L2", 0.1, targeted)
        assert (machine.forwards, machine.backwards) == (2, backwards)
        shown = Recorded(network)
        with patch("torch.autograd.grad", wraps=torch.autograd.grad) as grad:
            machine.step(shown)
        assert (len(shown.images), grad.call_count) == (2, backwards)


WIDTH = 7
Plan = dict[int, list[tuple[int, int]]]
"""At which step which trials are put into which slots: step → (trial, slot)."""
COMPANY: Plan = {0: [(trial, trial) for trial in range(WIDTH)]}


def run(
    plan: Plan, trials: Trials, network: Network, norm: Norm, eps: float, targeted: bool, steps: int
) -> dict[int, list[Tensor]]:
    """Trials put into slots at steps: trial → where it stood after its steps, and whether it fooled."""
    shape, classes = tuple(trials.x.shape[1:]), network(trials.x).shape[1]
    machine = FAB(WIDTH, shape, norm=norm, eps=eps, classes=classes, targeted=targeted, steps=steps)
    held: dict[int, int] = {}
    walked: dict[int, list[Tensor]] = {}
    for now in range(max(plan) + steps):
        if now in plan:
            held |= {slot: trial for trial, slot in plan[now]}
            walked |= {trial: [] for trial, _ in plan[now]}
            machine.start(
                torch.tensor([slot for _, slot in plan[now]]), only(trials, [trial for trial, _ in plan[now]])
            )
        machine.step(network)
        for slot, trial in list(held.items()):
            walked[trial].append(machine.found[slot].clone())
            if machine.finished[slot]:
                walked[trial].append(machine.fooled[slot].clone())
                del held[slot]
    assert not held
    return walked


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@norms
@aims
@pytest.mark.parametrize("colours", [False, True], ids=["digits", "colours"])
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
def test_a_trial_does_not_depend_on_slot_company_or_time(norm: Norm, targeted: bool, colours: bool, plan: Plan) -> None:
    """To the last bit, in a batch of one width; 7 images of 75 pixels are no whole number of vectors."""
    network = Colours() if colours else network_of("digits_plain")
    x, y = network.images(WIDTH) if isinstance(network, Colours) else (z[:WIDTH] for z in digits("digits_plain", 20))
    trials = trials_of(network, x, y)._replace(variants=torch.arange(WIDTH) % 2)
    eps = COLOURS_EPS[norm] if colours else EPS[norm] / 2
    given_ = (trials, network, norm, eps, targeted, 12)
    expected, found = run(COMPANY, *given_), run(plan, *given_)
    assert set(found) >= {trial for trial, _ in plan[max(plan)]}
    for trial, walked in found.items():
        assert same(walked, expected[trial][: len(walked)]) or trial not in {each for each, _ in plan[max(plan)]}
        assert same(walked, expected[trial]) or walked[-1].dtype != torch.bool  # it was put out of its slot
    assert any(walked[-1].item() is True for walked in expected.values())
    assert any(walked[-1].item() is False for walked in expected.values())


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_nor_on_any_plan(data: st.DataObject) -> None:
    """Slots are refilled at any time after their trials have ended, in any order."""
    network = network_of("digits_plain")
    trials = trials_of(network, *digits("digits_plain", 24))
    given_: tuple[Norm, float, bool, int] = ("Linf", 0.08, True, 8)
    left = data.draw(st.permutations(range(len(trials.x))))
    machine = FAB(WIDTH, (1, 8, 8), norm=given_[0], eps=given_[1], classes=10, targeted=given_[2], steps=given_[3])
    held: dict[int, int] = {}
    while left or held:
        free = [slot for slot in range(WIDTH) if slot not in held]
        new = data.draw(st.permutations(free))[: data.draw(st.integers(0 if held else 1, len(free)))]
        new = new[: len(left)]
        for slot in new:
            held[slot] = left.pop()
        machine.start(torch.tensor(new).long(), only(trials, [held[slot] for slot in new]))
        machine.step(network)
        for slot in [slot for slot in held if machine.finished[slot]]:
            fooled, found = alone(held.pop(slot))
            assert (bool(machine.fooled[slot]), torch.equal(machine.found[slot], found)) == (fooled, True)


@cache
def alone(trial: int) -> tuple[bool, Tensor]:
    """Of the trials of the test above: whether it fools the network with nobody else in the machine, and with what."""
    network = network_of("digits_plain")
    trials = trials_of(network, *digits("digits_plain", 24))
    walked = run({0: [(trial, 0)]}, trials, network, "Linf", 0.08, True, 8)[trial]
    return bool(walked[-1]), walked[-2]


@norms
@aims
def test_slots_that_are_finished_stay_as_they_are(norm: Norm, targeted: bool) -> None:
    """Also where the network has no number for them."""
    network = network_of("digits_plain")
    trials = trials_of(network, *digits("digits_plain", 20))
    _, machine = ours(network, trials, norm, EPS[norm], targeted, 9)
    assert 0 < machine.fooled.sum() < len(machine.fooled)
    before = machine.found.clone(), machine.fooled.clone(), machine.finished.clone()
    for broken in (network, lambda x: network(x) * torch.nan):
        machine.step(broken)
        after = machine.found, machine.fooled, machine.finished
        assert all(torch.equal(was, now) for was, now in zip(before, after, strict=True))


@norms
@aims
def test_a_gradient_that_is_nan_fools_nobody_and_spreads_to_nobody(norm: Norm, targeted: bool) -> None:
    network = network_of("digits_plain")
    trials, fourth = trials_of(network, *digits("digits_plain", 20)), torch.tensor([4])

    def broken(x: Tensor) -> Tensor:
        """Add 0 to the fourth image's logits, by a way on which the gradient is 0 · ∞."""
        nothing = (0 * x[fourth].sum((1, 2, 3))).sqrt()
        logits: Tensor = network(x).index_add(0, fourth, nothing[:, None] * torch.ones(1, 10))
        return logits

    _, expected = ours(network, trials, norm, EPS[norm], targeted, 9)
    _, machine = ours(broken, trials, norm, EPS[norm], targeted, 9)
    assert expected.fooled[4]
    assert not machine.fooled[4]
    others = torch.arange(len(trials.x)) != 4
    assert torch.equal(machine.found[others], expected.found[others])


def test_an_empty_machine_is_finished_and_fools_nobody() -> None:
    machine = FAB(3, (1, 8, 8), norm="Linf", eps=0.1, classes=10, targeted=True)
    machine.step(network_of("digits_plain"))
    assert machine.finished.all()
    assert not machine.fooled.any()


@norms
@aims
def test_what_is_found_is_in_the_ball_in_the_box_and_misclassified(norm: Norm, targeted: bool) -> None:
    network = network_of("digits_plain")
    trials = trials_of(network, *digits("digits_plain", 100))
    _, machine = ours(network, trials, norm, EPS[norm], targeted, 20 if targeted else 5)
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
        self.w = torch.randn(size, generator=torch.Generator().manual_seed(1))
        self.b = self.w.sum() / 2

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.w - self.b
        return torch.stack([z, -z, z * 0 - 20, z * 0 - 21], 1)


@norms
@aims
@pytest.mark.parametrize("variant", [CLEAN_START, RANDOM_START])
def test_of_a_linear_network_the_survivors_are_those_of_the_closed_form(
    norm: Norm, targeted: bool, variant: int, double: None
) -> None:
    """In float64: a step that rounding leaves on the boundary itself, where f = 0, would be the last that moves."""
    eps, linear = {"Linf": 0.02, "L2": 0.15, "L1": 0.3}[norm], Linear(48)
    x, y, distances = beside_a_boundary(linear.w, linear.b, norm, eps, n=60, spread=0.02)
    trials = Trials(x.view(-1, 3, 4, 4), y, 1 - y, torch.arange(len(x)), torch.full_like(y, variant))
    _, machine = ours(linear, trials, norm, eps, targeted, 100)
    assert torch.equal(machine.fooled, distances < eps)
    assert 10 < machine.fooled.sum() < len(x) - 10


@aims
def test_of_the_digits_as_many_are_lost_as_with_the_library(targeted: bool) -> None:
    network = network_of("digits_plain")
    stage: Name = "fab-t" if targeted else "fab"
    x, y = digits("digits_plain", 60)
    attack = Custom(stages=(stage,), targets=3, iterations=100 if targeted else 20)
    found = perturb(stage, attack, network, x, y, norm="Linf", eps=0.1, seed=0)
    lost = int((network(found).argmax(1) != y).sum())
    fooled = torch.zeros(len(x), dtype=torch.bool)
    for rank in (-2, -3, -4) if targeted else (-2,):
        trials = Trials(x, y, network(x).argsort(1)[:, rank], torch.arange(len(x)))
        fooled |= ours(network, trials, "Linf", 0.1, targeted, attack.iterations)[1].fooled
    assert abs(int(fooled.sum()) - lost) <= 2
    assert 10 < lost < len(x) - 10
