"""Trials in slots: whatever the number of slots, the order and the refill, each ends once, at its own step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness.api.attack import Attack, Network, Trials
from harness.engine.slots import REFILL, Ended, Packed, advance

SHAPE = (1, 2, 2)


class Clock(Attack):
    """Trials that end when their clock says so: trial k's image is filled with k, and its key is 2·steps + fooled."""

    forwards, backwards = 1, 0

    def __init__(self, slots: int) -> None:
        self.fooled, self.finished = torch.zeros(slots, dtype=torch.bool), torch.ones(slots, dtype=torch.bool)
        self.found = torch.full((slots, *SHAPE), torch.nan)
        self.left, self.x = torch.zeros(slots, dtype=torch.int64), torch.full((slots, *SHAPE), -1.0)
        self.will_fool = torch.zeros(slots, dtype=torch.bool)

    def start(self, slots: Tensor, trials: Trials) -> None:
        assert self.finished[slots].all(), "a slot was filled before its trial ended"
        self.left[slots], self.will_fool[slots] = trials.keys // 2, trials.keys % 2 == 1
        self.x[slots] = trials.x
        self.fooled[slots], self.finished[slots] = False, self.left[slots] == 0
        self.found[slots] = torch.nan

    def step(self, network: Network) -> None:
        answers = network(self.x)
        assert answers.shape == (len(self.x), 1)
        running = ~self.finished
        assert torch.equal(answers[running, 0], self.x[running, 0, 0, 0])
        self.left -= running.long()
        ended = running & (self.left <= 0)
        self.finished |= ended
        self.fooled |= ended & self.will_fool
        self.found[ended] = self.x[ended] + 0.5


class Watched:
    """A network that answers with an image's number, and notes which it was shown."""

    def __init__(self) -> None:
        self.shown: Counter[int] = Counter()
        self.batches: list[int] = []

    def __call__(self, images: Tensor, occupied: Tensor) -> Tensor:
        assert len(images) == len(occupied) == len(set(occupied.tolist()))
        numbers = images[:, 0, 0, 0]
        assert (numbers >= 0).all(), "an empty slot was computed"
        self.shown.update(int(number) for number in numbers)
        self.batches.append(len(images))
        return numbers[:, None]


def packed(network: Watched, slots: int) -> Packed:
    return Packed(network, slots, torch.device("cpu"))


def ended_of(lengths: Sequence[int], fools: Sequence[bool], slots: int) -> tuple[list[Ended], Watched, list[list[int]]]:
    attack, network, filled = Clock(slots), Watched(), list[list[int]]()

    def start(places: Tensor, numbers: list[int]) -> None:
        filled.append(numbers)
        keys = torch.tensor([2 * lengths[number] + fools[number] for number in numbers])
        x = torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, *SHAPE)
        attack.start(places, Trials(x, keys, keys, keys))

    ended = [one for some in advance(attack, slots, len(lengths), start, packed(network, slots)) for one in some]
    return ended, network, filled


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=40), st.integers(1, 20))
def test_every_trial_ends_once_with_its_own_steps_and_image(trials: list[tuple[int, bool]], slots: int) -> None:
    lengths, fools = [length for length, _ in trials], [fooled for _, fooled in trials]
    ended, network, filled = ended_of(lengths, fools, slots)
    assert sorted(one.number for one in ended) == list(range(len(trials)))
    for one in ended:
        assert one.steps == lengths[one.number]
        assert (one.found is not None) == fools[one.number]
        if one.found is not None:
            assert torch.equal(one.found, torch.full(SHAPE, one.number + 0.5))
    assert [number for numbers in filled for number in numbers] == list(range(len(trials)))
    assert network.shown == Counter(dict(enumerate(lengths)))  # at every step of its own and no other
    assert all(size <= slots for size in network.batches)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(1, 20))
def test_slots_are_filled_a_quarter_at_a_time(lengths: list[int], slots: int) -> None:
    _, _, filled = ended_of(lengths, [False] * len(lengths), slots)
    assert len(filled[0]) == min(slots, len(lengths))
    assert all(len(numbers) >= min(slots // REFILL, len(filled[-1])) for numbers in filled[:-1])


def test_a_trial_that_ends_before_its_first_step_costs_nothing() -> None:
    ended, network, _ = ended_of([0, 3, 0], [False] * 3, 2)
    assert {one.number: one.steps for one in ended} == {0: 0, 1: 3, 2: 0}
    assert network.shown == Counter({1: 3})


def test_results_come_as_trials_end() -> None:
    attack = Clock(2)

    def start(places: Tensor, numbers: list[int]) -> None:
        keys = 2 * torch.tensor([[1, 5, 2][number] for number in numbers])
        x = torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, *SHAPE)
        attack.start(places, Trials(x, keys, keys, keys))

    order = [[one.number for one in some] for some in advance(attack, 2, 3, start, packed(Watched(), 2))]
    assert order == [[0], [2], [1]]


def test_images_found_are_not_touched_by_what_takes_the_slot_next() -> None:
    ended, _, _ = ended_of([1] * 6, [True] * 6, 1)
    kept = [one.found for one in ended]
    assert [float(image.mean()) for image in kept if image is not None] == [number + 0.5 for number in range(6)]


@pytest.mark.parametrize("occupied", [[0, 1, 2, 3, 4], [3], [4, 0, 2]])
@pytest.mark.parametrize("rows", [1, 2, 4, 9])
def test_packed_computes_the_occupied_slots_alone_and_puts_their_logits_in_place(
    occupied: list[int], rows: int
) -> None:
    weight = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    seen: list[list[int]] = []

    def network(images: Tensor, places: Tensor) -> Tensor:
        seen.append(places.tolist())
        return torch.sin(images.flatten(1) @ weight)

    packed = Packed(network, 5, torch.device("cpu"), lambda n: max(n, rows))
    packed.occupy([1])
    packed.occupy(occupied)
    x = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1), requires_grad=True)
    direct = torch.sin(x.flatten(1) @ weight)
    logits = packed(x)
    assert logits.shape == (5, 3)
    padded = occupied + occupied[-1:] * (rows - len(occupied))
    assert seen == [padded if len(padded) < 5 else [0, 1, 2, 3, 4]]
    torch.testing.assert_close(logits[occupied], direct[occupied])
    weights = torch.rand(5, 3, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((logits * weights).sum(), x, retain_graph=True)[0]
    expected = torch.autograd.grad((direct * weights)[occupied].sum(), x)[0]
    torch.testing.assert_close(found[occupied], expected[occupied])


def test_what_says_which_slots_stays_at_its_place_in_memory() -> None:
    """Since a CUDA graph reads it there."""
    seen: list[tuple[int, list[int]]] = []

    def network(images: Tensor, places: Tensor) -> Tensor:
        seen.append((places.data_ptr(), places.tolist()))
        return images.flatten(1)

    packed = Packed(network, 6, torch.device("cpu"), lambda n: 4 if n <= 4 else 6)
    for occupied in ([0, 1], [2, 3, 5], [0, 1, 2, 3, 4, 5], [4]):
        packed.occupy(occupied)
        packed(torch.rand(6, *SHAPE))
    assert [which for _, which in seen] == [[0, 1, 1, 1], [2, 3, 5, 5], [0, 1, 2, 3, 4, 5], [4, 4, 4, 4]]
    assert seen[0][0] == seen[1][0] == seen[3][0]
