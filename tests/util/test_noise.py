"""Noise: known answers, independence of the company, and the distributions that it is named after."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.util import noise

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


DRAWS = {
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
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
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
