"""Noise: known answers, independence of the company, and the distributions that it is named after."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.util import noise
from harness.util.noise import Noise

KNOWN = [  # kat_vectors of Random123, philox4x32-10
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((noise.WORD,) * 4, (noise.WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    a, b, c, d = (torch.tensor([word]) for word in counter)
    low, high = (torch.tensor([word]) for word in key)
    assert tuple(int(word) for word in noise.philox((a, b, c, d), (low, high))) == expected


def keys(n: int) -> Tensor:
    return torch.tensor([noise.key_of(0, f"image {number}", "apgd-ce") for number in range(n)])


DRAWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "uniform": lambda k, c: noise.uniform(k, c, (3, 5, 7)),
    "signs": lambda k, c: noise.signs(k, c, (3, 5, 7)),
    "normal": lambda k, c: noise.normal(k, c, (3, 5, 7)),
    "integers": lambda k, c: noise.integers(k, c, (3, 5, 7), 11),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_one_image_alone_draws_what_it_draws_among_five_hundred(kind: str) -> None:
    every, counters = keys(500), torch.arange(500) % 3
    together = DRAWS[kind](every, counters)
    for place in (0, 17, 499):
        assert torch.equal(DRAWS[kind](every[place, None], counters[place, None])[0], together[place])
    shuffled = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    assert torch.equal(DRAWS[kind](every[shuffled], counters[shuffled]), together[shuffled])


@given(st.integers(1, 40), st.integers(41, 200))
@settings(max_examples=20)
def test_a_longer_draw_begins_as_a_shorter_one(few: int, many: int) -> None:
    assert torch.equal(
        noise.words(keys(2), torch.tensor([4, 5]), few), noise.words(keys(2), torch.tensor([4, 5]), many)[:, :few]
    )


def test_other_keys_and_other_counters_draw_other_numbers() -> None:
    counters = torch.zeros(2, dtype=torch.int64)
    first = noise.words(keys(2), counters, 64)
    assert not (first[0] == first[1]).any()
    assert not (first == noise.words(keys(2), counters + 1, 64)).any()


def test_the_distributions() -> None:
    counters = torch.zeros(50, dtype=torch.int64)
    uniform = noise.uniform(keys(50), counters, (4000,)).flatten()
    assert scipy.stats.kstest(uniform.double().numpy(), "uniform").pvalue > 1e-3
    assert 0 <= uniform.min() <= uniform.max() < 1
    normal = noise.normal(keys(50), counters, (4001,)).flatten()
    assert scipy.stats.kstest(normal.double().numpy(), "norm").pvalue > 1e-3
    assert normal.isfinite().all()
    signs = noise.signs(keys(50), counters, (4000,))
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert scipy.stats.binomtest(int((signs > 0).sum()), signs.numel()).pvalue > 1e-3
    below = torch.tensor([7, 13])[:, None]
    drawn = noise.integers(keys(2), counters[:2], (40_000,), below)
    for row, top in zip(drawn, (7, 13), strict=True):
        assert scipy.stats.chisquare(torch.bincount(row, minlength=top).numpy()).pvalue > 1e-3


def test_pixels_of_an_image_and_steps_are_not_correlated() -> None:
    steps = torch.stack([noise.uniform(keys(30), torch.full((30,), step), (200,)) for step in range(5)]) - 0.5
    flat = steps.flatten(1).double()
    correlations = torch.corrcoef(flat) - torch.eye(5)
    assert correlations.abs().max() < 5 / flat.shape[1] ** 0.5
    lagged = (flat[:, 1:] * flat[:, :-1]).mean() / flat.var()
    assert abs(lagged) < 5 / flat.numel() ** 0.5


CALLS: dict[str, Callable[[Noise], Tensor]] = {
    "uniform": lambda drawn: drawn.uniform((3, 5, 7)),
    "signs": lambda drawn: drawn.signs((3, 5, 7)),
    "normal": lambda drawn: drawn.normal((3, 5, 7)),
    "integers": lambda drawn: drawn.integers((3, 5, 7), 11),
}


@pytest.mark.parametrize("kind", CALLS)
def test_the_n_th_draw_for_a_batch_is_that_of_the_counter_n(kind: str) -> None:
    drawn = Noise(7, keys(4))
    assert drawn.seed == 7
    for number in range(3):
        assert torch.equal(CALLS[kind](drawn), DRAWS[kind](keys(4), torch.full((4,), number)))


def test_known_answers_of_a_batch() -> None:
    """The first words of the first two blocks for a key of zeros: see `KNOWN`."""
    drawn = Noise(0, torch.tensor([0]))
    first = drawn.integers((2,), 1 << 16)
    assert first.tolist() == [[0x6627, 0xE169]]
    assert drawn.uniform(()).shape == (1,)
    below = torch.tensor([[1, 3]])
    assert drawn.integers((2,), below)[0, 0] == 0


@pytest.mark.parametrize("kind", CALLS)
def test_an_image_alone_draws_what_it_draws_in_a_batch_of_five_hundred(kind: str) -> None:
    together = Noise(0, keys(500))
    first, second = CALLS[kind](together), CALLS[kind](together)
    for place in (0, 17, 499):
        alone = Noise(0, keys(500)[place, None])
        assert torch.equal(CALLS[kind](alone)[0], first[place])
        assert torch.equal(CALLS[kind](alone)[0], second[place])


@pytest.mark.parametrize("mask", [False, True])
def test_a_part_continues_and_the_whole_continues_after_it(mask: bool) -> None:
    whole, places = Noise(3, keys(6)), torch.tensor([1, 4, 5])
    whole.uniform((2,))
    part = whole.part(torch.isin(torch.arange(6), places) if mask else places)
    last = part.part(torch.tensor([2]))  # image 5
    assert (part.seed, last.seed) == (3, 3)

    def expected(images: list[int], draws: list[int]) -> Tensor:
        return noise.uniform(keys(6)[images], torch.tensor(draws), (2,))

    assert torch.equal(part.uniform((2,)), expected([1, 4, 5], [1, 1, 1]))
    assert torch.equal(last.uniform((2,)), expected([5], [2]))
    assert torch.equal(whole.uniform((2,)), expected([0, 1, 2, 3, 4, 5], [1, 2, 1, 1, 2, 3]))


def test_draws_for_a_batch_have_their_distributions() -> None:
    drawn = Noise(0, keys(50))
    uniform = torch.cat([drawn.uniform((500,)) for _ in range(4)]).flatten()
    assert scipy.stats.kstest(uniform.double().numpy(), "uniform").pvalue > 1e-3
    normal = torch.cat([drawn.normal((501,)) for _ in range(4)]).flatten()
    assert scipy.stats.kstest(normal.double().numpy(), "norm").pvalue > 1e-3
    signs = torch.cat([drawn.signs((500,)) for _ in range(4)])
    assert scipy.stats.binomtest(int((signs > 0).sum()), signs.numel()).pvalue > 1e-3
    integers = torch.cat([drawn.integers((500,), 13) for _ in range(4)]).flatten()
    assert scipy.stats.chisquare(torch.bincount(integers, minlength=13).numpy()).pvalue > 1e-3
