"""Square as a step machine: the library's trajectories, independence of the company, and closed forms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from helpers.library import configured, perturb
from helpers.networks import Recorded, beside_a_boundary, digits, network_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack import square
from torch import Tensor, nn

from harness.api.attack import Network, Trials
from harness.api.threat import SLACK, SLACK_BOX
from harness.attacks import autoattack, l1_ball
from harness.attacks.autoattack import Custom
from harness.attacks.norms import Norm
from harness.attacks.square import Square
from harness.attacks.square_draws import sizes
from harness.attacks.square_moves import AHEAD
from harness.util import noise

EPS: dict[Norm, float] = {"Linf": 0.1, "L2": 0.6, "L1": 2.0}
ORDER = {"Linf": torch.inf, "L2": 2, "L1": 1}
ROUNDING = {"Linf": 1e-12, "L2": 1e-9, "L1": 1e-9}
"""In float64."""

norms = pytest.mark.parametrize("norm", EPS)


class Colours(nn.Module):
    """A small network of images of three channels that are not square."""

    shape = (3, 11, 9)

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(160, 4))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits

    def images(self, n: int) -> tuple[Tensor, Tensor]:
        """Images, and what the network takes them for; a third of the pixels are black or white."""
        drawn = torch.Generator().manual_seed(0)
        x = (1.5 * torch.rand(n, *self.shape, generator=drawn) - 0.25).clamp(0, 1)
        return x, self(x).argmax(1)


def trials_of(x: Tensor, y: Tensor) -> Trials:
    """A trial for each image, with keys from the image's number."""
    return Trials(x, y, y, torch.tensor([noise.key_of("test", number) for number in range(len(x))]))


def only(trials: Trials, places: Sequence[int]) -> Trials:
    at = torch.tensor(places)
    return Trials(trials.x[at], trials.y[at], trials.targets[at], trials.keys[at])


class Feed:
    """A trial's draws, read from their words as the layout says, in the order in which the library asks for them."""

    def __init__(self, key: Tensor, shape: tuple[int, ...], norm: Norm) -> None:
        self.key, self.norm = key, norm
        self.channels, self.height, self.width = shape
        side = self.height // 5
        tiles = (self.height // side) * (self.width // side)
        needed = self.channels * self.width if norm == "Linf" else tiles * (1 + self.channels)
        self.draw, self.bits = 0, list[int]()
        while len(self.bits) < needed:
            self.bits += self.bits_of(self.words())
        self.place: list[int] = []
        del self.bits[needed:]

    def words(self) -> list[int]:
        drawn = noise.words(self.key, torch.tensor([self.draw]), 4)[0].tolist()
        self.draw += 1
        return drawn

    @staticmethod
    def bits_of(words: list[int]) -> list[int]:
        return [word >> bit & 1 for word in words for bit in range(32)]

    def rand(self, shape: Sequence[int]) -> Tensor:
        """Instead of `torch.rand`: 3/4 for a bit that is 1, 1/4 for one that is 0."""
        count = int(torch.tensor(shape).prod())
        taken, self.bits = self.bits[:count], self.bits[count:]
        assert len(taken) == count
        return torch.tensor(taken).reshape(*shape) / 2 + 0.25

    def random_int(self, low: int, high: int) -> Tensor:
        """Instead of the library's: the top of a window, and then its left."""
        assert low == 0
        if not self.place:
            words = self.words()
            self.bits = self.bits_of(words[2:])[: self.channels + (self.norm != "Linf")]
            rows, columns = max(high, 1), max(high + self.width - self.height, 1)
            for word in words[: 1 if self.norm == "Linf" else 2]:
                self.place += divmod(word * rows * columns // 2**32, columns)
        return torch.tensor([self.place.pop(0)])


def library_of(network: Network, norm: Norm, queries: int, eps: float) -> square.SquareAttack:
    tool = configured(Custom(stages=("square",), queries=queries), network, 10, norm, eps, "cpu")  # type: ignore[arg-type]
    return tool.square


def library(network: Network, trial: Trials, norm: Norm, queries: int, eps: float) -> tuple[Tensor, Tensor]:
    """What the library shows the network in a trial of one image with the trial's draws, and where it ends."""
    shown = Recorded(network)
    attack = library_of(shown, norm, queries, eps)
    attack.init_hyperparam(trial.x)
    feed = Feed(trial.keys, tuple(trial.x.shape[1:]), norm)
    attack.random_int = feed.random_int
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", feed.rand)
        _, end = attack.attack_single_run(trial.x.clone(), trial.y.clone())
    return torch.cat(shown.images), end[0]


def ours(network: Network, trials: Trials, norm: Norm, queries: int, eps: float) -> tuple[Tensor, Square]:
    """What our machine shows the network, every trial in a slot: [queries + 1, n, c, h, w]; and the machine."""
    machine = Square(len(trials.x), tuple(trials.x.shape[1:]), norm=norm, eps=eps, queries=queries)
    shown = Recorded(network)
    machine.start(torch.arange(len(trials.x)), trials)
    for step in range(queries + 1):
        assert step == 0 or machine.finished.equal(machine.fooled)
        machine.prepare()
        machine.step(shown)
    assert machine.finished.all()
    return torch.stack(shown.images), machine


@pytest.fixture
def double() -> Iterator[None]:
    """Everything in float64, where rounding does not decide which of two images is better."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Arrival:
    """Instead of what the projection onto the L1 ball adds to a point: the sum is the projected point, unrounded."""

    def __init__(self, goal: Tensor) -> None:
        self.goal = goal

    @classmethod
    def __torch_function__(cls, add: object, types: object, args: tuple[Any, ...], kwargs: object = None) -> Tensor:
        goal: Tensor = args[1].goal
        return goal


@pytest.fixture
def unrounded(monkeypatch: pytest.MonkeyPatch, double: None) -> None:
    """Both sides project onto the L1 ball by our function, and a coordinate whose move ends is as it was.

    In the library it is not, for (x + δ) − δ has a rounding error, and where a window holds no more than that, the
    error is blown up to the size of a move (so it is here, but with other errors).
    """
    shrunk = l1_ball.shrunk

    def ours(moves: Tensor, clean: Tensor, radius: Tensor) -> Arrival:
        return Arrival(clean + (moves + shrunk(moves, clean, radius)))

    def theirs(clean: Tensor, moves: Tensor, eps: float) -> Arrival:
        flat = moves.flatten(1)
        arrival = ours(flat, clean.flatten(1), torch.full_like(flat[:, :1], eps))
        return Arrival(arrival.goal.view_as(clean))

    monkeypatch.setattr(l1_ball, "shrunk", ours)
    monkeypatch.setattr(square, "L1_projection", theirs)


def compared(network: Network, trials: Trials, norm: Norm, queries: int, eps: float, rounding: float) -> list[int]:
    """Compare each trial with the library's; return how many images each of them showed the network."""
    points, machine = ours(network, trials, norm, queries, eps)
    lengths = []
    for place in range(len(trials.x)):
        expected, end = library(network, only(trials, [place]), norm, queries, eps)
        wrong = network(expected).argmax(1) != trials.y[place]
        assert bool(machine.fooled[place]) == bool(wrong.any())
        assert not wrong[:-1].any()
        torch.testing.assert_close(points[: len(expected), place], expected, atol=rounding, rtol=0)
        torch.testing.assert_close(machine.found[place], end, atol=rounding, rtol=0)
        lengths.append(len(expected))
    return lengths


@norms
@pytest.mark.parametrize(("name", "scale"), [("digits_plain", 1.5), ("digits_robust", 2)])
def test_the_trajectory_is_the_library_s(norm: Norm, name: str, scale: float, unrounded: None) -> None:
    x, y = digits(name, 9)
    network = deepcopy(network_of(name)).double()
    lengths = compared(network, trials_of(x.double(), y), norm, 300, EPS[norm] * scale, ROUNDING[norm])
    assert max(lengths) == 301
    assert any(1 < length < 301 for length in lengths)


@norms
def test_the_trajectory_is_the_library_s_for_colours_and_images_that_are_not_square(
    norm: Norm, unrounded: None
) -> None:
    """In a smaller ball, margins of two proposals in L1 are equal but for rounding, and it decides which is kept."""
    network = Colours()
    lengths = compared(network, trials_of(*network.images(9)), norm, 250, EPS[norm] / 2, ROUNDING[norm])
    assert max(lengths) == 251
    assert any(1 < length < 251 for length in lengths)


@norms
def test_the_trajectory_is_the_library_s_for_images_outside_the_box(norm: Norm, unrounded: None) -> None:
    """Normalised images are; [−2.5, 2.5]."""
    x, _ = digits("digits_plain", 9)
    network = deepcopy(network_of("digits_plain")).double()
    x = 5 * (x.double() - 0.5)
    compared(network, trials_of(x, network(x).argmax(1)), norm, 150, EPS[norm], ROUNDING[norm])


@pytest.mark.slow
@norms
def test_the_trajectory_is_the_library_s_to_the_end(norm: Norm, unrounded: None) -> None:
    x, y = digits("digits_robust", 1)
    network = deepcopy(network_of("digits_robust")).double()
    assert compared(network, trials_of(x.double(), y), norm, 2100, EPS[norm], ROUNDING[norm]) == [2101] * len(x)


@norms
def test_in_float32_the_same_images_fall_at_the_same_step(norm: Norm) -> None:
    x, y = digits("digits_plain", 60)
    lengths = compared(network_of("digits_plain"), trials_of(x, y), norm, 60, EPS[norm] * 1.5, 1e-6)
    assert sum(length < 61 for length in lengths) > 5


WIDTH = 7
Plan = dict[int, list[tuple[int, int]]]
"""At which step which trials are put into which slots: step → (trial, slot)."""
COMPANY: Plan = {0: [(trial, trial) for trial in range(WIDTH)]}


def run(plan: Plan, trials: Trials, network: Network, norm: Norm, queries: int) -> dict[int, tuple[int, Tensor]]:
    """Trials put into slots at steps: trial → the number of steps until it was finished, and the image it ended at."""
    machine = Square(WIDTH, tuple(trials.x.shape[1:]), norm=norm, eps=EPS[norm] * 1.3, queries=queries)
    held: dict[int, tuple[int, int]] = {}
    ended: dict[int, tuple[int, Tensor]] = {}
    for now in range(max(plan) + queries + 2):
        if now in plan:
            held |= {slot: (trial, now) for trial, slot in plan[now]}
            machine.start(
                torch.tensor([slot for _, slot in plan[now]]), only(trials, [trial for trial, _ in plan[now]])
            )
        machine.prepare()
        machine.step(network)
        for slot, (trial, since) in list(held.items()):
            if machine.finished[slot]:
                ended[trial] = now - since, machine.found[slot].clone()
                del held[slot]
    assert not held
    return ended


@norms
@pytest.mark.parametrize("queries", [12, 150])
@pytest.mark.parametrize(
    "plan",
    [
        {0: [(3, 3)]},
        {0: [(3, 0)]},
        {0: [(3, 6)]},
        {0: [(trial, (trial + 2) % WIDTH) for trial in range(WIDTH)]},
        {0: [(trial, trial) for trial in (0, 1, 2)], 5: [(3, 3), (4, 6)], 6: [(5, 4)]},
        {0: [(0, 3), (1, 5)], 3: [(3, 3)], 4: [(2, 5)], 9: [(5, 5), (4, 0)]},
        {AHEAD - 1: [(0, 3)], AHEAD: [(1, 5), (3, 4)], AHEAD + 1: [(2, 0)]},
    ],
    ids=["alone", "first slot", "last slot", "other slots", "later than others", "into a slot half-way", "at a turn"],
)
def test_a_trial_does_not_depend_on_slot_company_or_time(norm: Norm, plan: Plan, queries: int) -> None:
    """To the last bit, in a batch of one width; 7 images of 64 pixels are no whole number of vectors."""
    network = network_of("digits_plain")
    x, y = digits("digits_plain", 20)
    trials = trials_of(x[:WIDTH], y[:WIDTH])
    expected, found = run(COMPANY, trials, network, norm, queries), run(plan, trials, network, norm, queries)
    assert set(found) >= {trial for trial, _ in plan[max(plan)]}
    for trial in found:
        assert found[trial][0] == expected[trial][0]
        assert torch.equal(found[trial][1], expected[trial][1])


@norms
def test_slots_that_are_finished_stay_as_they_are(norm: Norm) -> None:
    network = network_of("digits_plain")
    _, machine = ours(network, trials_of(*digits("digits_plain", 30)), norm, 90, EPS[norm])
    assert 0 < machine.fooled.sum() < len(machine.fooled)
    before = machine.found.clone(), machine.fooled.clone(), machine.finished.clone()
    for _ in range(70):
        machine.prepare()
        machine.step(network)
    after = machine.found, machine.fooled, machine.finished
    assert all(torch.equal(was, now) for was, now in zip(before, after, strict=True))


def test_an_empty_machine_is_finished_and_fools_nobody() -> None:
    machine = Square(3, (1, 8, 8), norm="Linf", eps=0.1)
    machine.prepare()
    machine.step(network_of("digits_plain"))
    assert machine.finished.all()
    assert not machine.fooled.any()


@pytest.mark.parametrize(("label", "fooled"), [(0, False), (1, True)])
def test_where_two_logits_are_the_largest_the_trial_ends_and_the_first_of_them_is_the_answer(
    label: int, fooled: bool
) -> None:
    """As in the library, which stops there, and then looks at what the network answers."""
    tie = torch.tensor([[1.0, 1.0, 0.0]])
    machine = Square(1, (1, 8, 8), norm="Linf", eps=0.1)
    machine.start(torch.tensor([0]), trials_of(torch.rand(1, 1, 8, 8), torch.tensor([label])))
    machine.prepare()
    machine.step(lambda x: tie)
    assert (machine.finished.item(), machine.fooled.item()) == (True, fooled)


@norms
def test_what_is_found_is_in_the_ball_in_the_box_and_misclassified(norm: Norm) -> None:
    network = network_of("digits_plain")
    trials = trials_of(*digits("digits_plain", 100))
    points, machine = ours(network, trials, norm, 200, EPS[norm])
    found, y = machine.found[machine.fooled], trials.y[machine.fooled]
    assert 5 < len(found) < len(trials.x) - 5
    assert (network(found).argmax(1) != y).all()
    assert points.min() >= -SLACK_BOX
    assert points.max() <= 1 + SLACK_BOX
    lengths = torch.linalg.vector_norm((points.double() - trials.x.double()).flatten(2), ORDER[norm], dim=2)
    assert lengths.max() <= EPS[norm] * (1 + SLACK) + SLACK_BOX


@norms
def test_of_the_digits_as_many_are_lost_as_with_the_library(norm: Norm) -> None:
    network = network_of("digits_plain")
    x, y = digits("digits_plain", 60)
    lost = []
    for seed in (0, 1):
        attack = Custom(stages=("square",), queries=1500)
        found = perturb("square", attack, network, x, y, norm=norm, eps=EPS[norm], seed=seed)
        lost.append(int((network(found).argmax(1) != y).sum()))
    _, machine = ours(network, trials_of(x, y), norm, 1500, EPS[norm])
    assert min(lost) - 2 <= int(machine.fooled.sum()) <= max(lost) + 2
    assert 5 < int(machine.fooled.sum()) < len(x) - 5


@given(height=st.integers(1, 300), width=st.integers(1, 300), queries=st.sampled_from([1, 300, 5000, 10_001]))
@settings(max_examples=30, deadline=None)
def test_windows_shrink_as_the_library_s(height: int, width: int, queries: int) -> None:
    attack = library_of(lambda x: x, "Linf", queries, 0.1)
    shares = [attack.p_selection(query) for query in range(queries)]
    sides = [min(max(round((share * height * width) ** 0.5), 1), height, width) for share in shares]
    assert sizes(queries, height, width, smallest=1, odd=False) == [0, *sides]


def test_steps_are_counted_as_the_queries_of_the_library() -> None:
    """One for the start, and one for each query of the budget: what `autoattack.passes` says."""
    x, y = digits("digits_robust", 1)
    points, machine = ours(network_of("digits_robust"), trials_of(x, y), "Linf", 40, 0.01)
    passes = autoattack.passes("square", Custom(stages=("square",), queries=40), "Linf", 10)
    assert (len(points), machine.backwards) == (passes.forwards, 0)
    assert machine.forwards == 1


class Linear(nn.Module):
    """Two classes: z and −z with z = <w, x> − b; the last row and the last column of an image count for nothing.

    No window ever touches them, in the library neither.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.w = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
        self.w[:, -1], self.w[:, :, -1] = 0, 0
        self.w = self.w.flatten()
        self.b = self.w.sum() / 2

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.w - self.b
        return torch.stack([z, -z], 1)


REACH = {"Linf": 1, "L2": 0.5, "L1": 0.2}
"""The share of ε at which an image falls for sure; in L2 and L1, no window is as narrow as the best move is."""


@norms
def test_of_a_linear_network_the_survivors_are_those_of_the_closed_form(norm: Norm) -> None:
    eps, linear = {"Linf": 0.02, "L2": 0.1, "L1": 0.15}[norm], Linear(1, 5, 6)
    x, y, distances = beside_a_boundary(linear.w, linear.b, norm, eps, n=80, spread=0.05)
    _, machine = ours(linear, trials_of(x.view(-1, 1, 5, 6), y), norm, 900, eps)
    assert not machine.fooled[distances > eps].any()
    assert machine.fooled[distances < eps * REACH[norm]].all()
    assert 4 < machine.fooled.sum() < len(x) - 10
