"""Which cells there are: against a brute force that runs every stage on every image."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from helpers.tasks import Mean, Stages, task
from hypothesis import given
from hypothesis import strategies as st

from harness.api.records import BASELINE, Steering
from harness.scheduling.trials import CLEAN, TrialChain, chains, grid, shards
from harness.util.batching import batched


def walk(chain: TrialChain, outcomes: np.ndarray) -> tuple[list[np.ndarray], list[tuple[str, tuple[int, ...]]]]:
    """Run a chain on a table of outcomes [stages, images], a stage judging only the images that survived so far."""
    done: list[np.ndarray] = []
    ran = []
    images = chain.shard.images
    while cell := chain.next(done):
        ran.append((cell.stage, cell.surviving))
        values = np.where(np.isin(images, cell.surviving), outcomes[chain.stages.index(cell.stage)], 0)
        done.append(values.astype(np.float32))
    return done, ran


tables = st.integers(1, 5).flatmap(
    lambda stages: st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 1), min_size=n, max_size=n), min_size=stages, max_size=stages)
    )
)


@given(tables)
def test_worst_is_the_and_of_all_stages_and_each_sees_only_survivors(table: list[list[int]]) -> None:
    outcomes = np.array(table, np.float32)
    images = tuple(10 + 3 * i for i in reversed(range(outcomes.shape[1])))  # neither sorted nor from nought
    (shard,) = shards(dict.fromkeys(images, "d"), len(images))
    chain = TrialChain(task(Stages(how_many=len(outcomes) - 1)), BASELINE, shard)
    done, ran = walk(chain, outcomes)
    clean, robust = chain.bounds(done)
    np.testing.assert_array_equal(clean, outcomes[0])
    np.testing.assert_array_equal(robust, outcomes.all(axis=0))
    alive = np.logical_and.accumulate(np.vstack([np.ones_like(outcomes[:1]), outcomes]))[:-1]
    expected = [tuple(np.array(images)[row.astype(bool)].tolist()) for row in alive]
    assert ran == [(stage, survivors) for stage, survivors in zip(chain.stages, expected, strict=True) if survivors]


@given(tables)
def test_mean_is_the_share_of_stages_survived_by_all_images(table: list[list[int]]) -> None:
    outcomes = np.array(table, np.float32)
    images = tuple(range(outcomes.shape[1]))
    (shard,) = shards(dict.fromkeys(images, "d"), len(images))
    chain = TrialChain(task(Mean(how_many=len(outcomes) - 1)), BASELINE, shard)
    done, ran = walk(chain, outcomes)
    clean, robust = chain.bounds(done)
    assert ran == [(stage, images) for stage in chain.stages]
    np.testing.assert_array_equal(clean, outcomes[0])
    np.testing.assert_allclose(robust, outcomes[1:].mean(axis=0) if len(outcomes) > 1 else outcomes[0], rtol=1e-6)


def test_a_chain_begins_with_the_clean_images() -> None:
    (shard,) = shards({7: "a", 2: "b"}, 5)
    first = TrialChain(task(Stages(how_many=1)), BASELINE, shard).next([])
    assert first is not None
    assert (first.stage, first.surviving) == (CLEAN, (7, 2))


@given(st.lists(st.integers(0, 10**6), unique=True, min_size=1, max_size=40), st.integers(1, 12))
def test_shards_concatenate_to_the_whole_and_are_full_but_the_last(images: list[int], size: int) -> None:
    cut = shards({image: str(image) for image in images}, size)
    assert [image for shard in cut for image in shard.images] == images
    assert all(len(shard.images) == size for shard in cut[:-1])
    assert 1 <= len(cut[-1].images) <= size
    assert list(batched(images, size)) == [shard.images for shard in cut]


@given(st.lists(st.integers(0, 99), unique=True, min_size=8, max_size=8), st.integers(0, 7))
def test_a_shard_is_named_by_its_own_images_alone(images: list[int], changed: int) -> None:
    digests = {image: f"d{image}" for image in images}
    before, after = shards(digests, 4), shards(digests | {images[changed]: "other"}, 4)
    assert [old == new for old, new in zip(before, after, strict=True)] == [changed >= 4, changed < 4]


units = st.floats(0, 1).map(lambda value: round(value, 3))


@given(st.lists(units, min_size=1, max_size=6), st.lists(units, min_size=1, max_size=3))
def test_the_grid_is_the_baseline_and_every_other_pair_once(betas: list[float], cs: list[float]) -> None:
    points = grid(betas, cs, "all")
    assert points[0] == BASELINE
    assert len(set(points)) == len(points)
    assert set(points[1:]) == {Steering(beta, c, "all") for beta in betas for c in cs if beta != 1}
    assert all(a.beta >= b.beta for a, b in pairwise(points))


def test_chains_are_every_steering_on_every_shard_the_baseline_first() -> None:
    cut = shards(dict.fromkeys(range(5), "d"), 2)
    made = chains(task(Stages(how_many=1)), grid([0.5, 0.9], [0.5], "all"), cut)
    assert [(chain.steering.beta, chain.shard.images[0]) for chain in made] == [
        (beta, first) for beta in (1, 0.9, 0.5) for first in (0, 2, 4)
    ]
