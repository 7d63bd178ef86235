"""Images of a portion: kept as uint8 with the very bits of their source, within their room, read by several threads."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers.scored import bits, compute, results_of, task_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from harness.api.dataset import Dataset, Source
from harness.api.records import BASELINE, Batch, Preprocessing, Steering
from harness.api.threat import Threat
from harness.api.trial import CLEAN, Answer, Attempt, Result, Trial
from harness.api.work import Portion, Task
from harness.datasets.digits import Digits
from harness.datasets.image_folder import ImageFolder
from harness.datasets.sources.in_memory import ArraySource
from harness.datasets.sources.lazy import LazySource, image_opener
from harness.engine import images as module
from harness.engine import stages
from harness.engine.computation import Computation
from harness.engine.images import PIECE, SLICE, ImageCache, digest, open_data, packed, unpacked
from harness.engine.numerics import reproducible
from harness.engine.verification import verify
from harness.errors import DataError, InvalidAdversary, ModelError
from harness.models.demo import Demo
from harness.threats.lp import Linf
from harness.util.noise import Noise
from harness.util.threads import readers

PATIENCE = 20.0
DENORMAL = 1e-40
R24 = Preprocessing(28, 24)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors agree in every bit, also in a zero's sign."""
    return a.shape == b.shape and a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


def paint(path: Path, size: tuple[int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize(size).save(path, "JPEG")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of pictures: 30 JPEGs of 40×30 pixels."""
    root = tmp_path_factory.mktemp("folder")
    for i in range(30):
        paint(root / "ab"[i % 2] / f"{i:02}.jpg", (40, 30), i)
    return root


def levels(n: int = 40) -> ArraySource:
    """Return colour images of 8 bits in memory, every level among them."""
    x = np.random.default_rng(0).integers(0, 256, (n, 3, 16, 16), np.uint8)
    x[0].flat[:256] = np.arange(256)
    return ArraySource(x, np.arange(n))


class Watched(Source):
    """Another source, which notes what is read of it, and in which threads."""

    def __init__(self, source: Source, concurrent: bool = False, meeting: int = 1) -> None:
        self.source, self.concurrent = source, concurrent
        self.reads: list[tuple[int, ...]] = []
        self.threads: set[int] = set()
        self.meeting = threading.Barrier(meeting)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: tuple[int, ...]) -> Batch:
        self.reads.append(indices)
        self.threads.add(threading.get_ident())
        self.meeting.wait(PATIENCE)
        return self.source.read(indices)

    @property
    def images(self) -> list[int]:
        return [index for read in self.reads for index in read]


def kept_bytes(cache: ImageCache) -> int:
    """Return the memory behind the pixels that are kept; a view counts with all that it is a view of."""
    storages = [image.x.untyped_storage() for image in cache._kept.values()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def running(portion: Portion) -> Generator[list[Result]]:
    """Run the stage of a portion, one list of results after the other."""
    results = stages.run(Computation(portion))
    assert isinstance(results, Generator)
    return results


def assert_no_reader() -> None:
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("ahead", "reader"))]


# --- the same bits ---


def test_images_of_8_bits_are_kept_as_such(folder: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 28, 28), np.uint8)
    sources = [
        levels(),
        ImageFolder(root=str(folder)).open(),
        ImageFolder(root=str(folder)).open().prepared(R24),
        LazySource(image_opener(pixels), np.arange(5), "here"),
    ]
    for source in sources:
        x = source.read((0, 1, 2)).x
        assert [image.dtype for image in packed(x)] == [torch.uint8] * 3
        assert same_bits(unpacked(packed(x)), x)


def test_sixteenths_stay_float32() -> None:
    x = Digits().open().read((0, 1)).x
    assert [image.dtype for image in packed(x)] == [torch.float32] * 2


@pytest.mark.parametrize("value", [-0.0, DENORMAL, 0.5, float("nan"), float("inf"), -1.0, 2.0, 1e9, 256 / 255])
def test_a_single_other_pixel_keeps_its_image_as_it_is(value: float) -> None:
    """Under ``reproducible``, arithmetic takes denormals for 0; they are not."""
    x = levels().read((0, 1, 2)).x
    x[1, 2, 3, 4] = value
    for context in (torch.no_grad(), reproducible()):
        with context:
            few = packed(x)
            assert [image.dtype for image in few] == [torch.uint8, torch.float32, torch.uint8]
            assert same_bits(unpacked(few), x)


@given(st.lists(st.tuples(st.integers(0, 255), st.sampled_from([-1, 0, 0, 0, 1])), min_size=1, max_size=20))
def test_only_the_very_level_is_one(pixels: list[tuple[int, int]]) -> None:
    """The next number above or below a level is no level."""
    level = np.array([number for number, _ in pixels], np.float32) / np.float32(255)
    beside = np.array([step for _, step in pixels])
    moved = np.where(beside == 0, level, np.nextafter(level, np.where(beside > 0, 2, -2).astype(np.float32)))
    x = torch.from_numpy(moved.astype(np.float32)).reshape(1, 1, 1, -1)
    [image] = packed(x)
    assert (image.dtype == torch.uint8) == (not beside.any())
    assert same_bits(unpacked([image]), x)


@pytest.mark.parametrize("threads", [0, 3])
def test_the_cache_gives_the_bits_and_digests_of_direct_reading(folder: Path, threads: int) -> None:
    half = levels()
    mixed = half.x / np.float32(255)
    mixed[::3, 0, 0, 0] = 0.3
    for source in (ImageFolder(root=str(folder)).open(), half, ArraySource(mixed, half.y), Digits().open()):
        cache = ImageCache(source, threads)
        for numbers in ([4, 2, 2, 25, 0], [1, 4, 4], list(range(30)), [29, 0]):
            batch, digests = cache.read(numbers)
            direct = source.read(tuple(numbers))
            assert same_bits(batch.x, direct.x)
            assert torch.equal(batch.y, direct.y)
            assert batch.indices.tolist() == numbers
            assert digests == [digest(x, y) for x, y in zip(direct.x.numpy(), direct.y.tolist(), strict=True)]


# --- room ---


@pytest.mark.parametrize(("dtype", "of_pixel"), [("uint8", 1), ("float32", 4)])
@pytest.mark.parametrize("fit", [0, 5, 39, 60])
def test_as_many_images_are_kept_as_fit(dtype: str, of_pixel: int, fit: int) -> None:
    """In the same room four times as many images of 8 bits as others. A piece may fit in part."""
    source = levels()
    x = source.x if dtype == "uint8" else (source.x / np.float32(256)).astype(np.float32)
    watched = Watched(ArraySource(x, source.y))
    room = fit * 3 * 16 * 16 * of_pixel + 5
    cache = ImageCache(watched, room=room)
    for start in range(0, 40, 10):
        cache.read(range(start, start + 10))
    watched.reads.clear()
    cache.read(range(40))
    assert len(watched.images) == max(40 - fit, 0)
    assert kept_bytes(cache) == (40 - len(watched.images)) * 3 * 16 * 16 * of_pixel <= room


def test_each_missing_image_is_read_once_and_in_bounded_parts() -> None:
    watched = Watched(levels(SLICE + 9))
    cache = ImageCache(watched)
    cache.read([3, 3, 1])
    assert watched.reads == [(3, 1)]
    watched.reads.clear()
    cache.read([1, *range(SLICE + 9), 2])
    assert sorted(watched.images) == [i for i in range(SLICE + 9) if i not in (1, 3)]
    assert max(map(len, watched.reads)) == SLICE


# --- threads ---


def test_a_concurrent_source_is_read_by_several_threads_at_once() -> None:
    watched = Watched(levels(6 * PIECE), concurrent=True, meeting=3)  # none goes on until three read
    ImageCache(watched, threads=3).read(range(6 * PIECE))
    assert len(watched.threads) == 3
    assert sorted(watched.reads) == [tuple(range(start, start + PIECE)) for start in range(0, 6 * PIECE, PIECE)]


@pytest.mark.parametrize(("concurrent", "threads"), [(False, 8), (True, 1), (True, 0)])
def test_any_other_is_read_by_this_one(concurrent: bool, threads: int) -> None:
    watched = Watched(levels(), concurrent)
    ImageCache(watched, threads).read(range(40))
    assert watched.threads == {threading.get_ident()}


def kind_of_thread() -> str:
    """Return the name of this thread without its number."""
    return threading.current_thread().name.partition("_")[0]


class Pictures(Dataset):
    """Digits in 8 bits, some of them damaged, that several threads may read."""

    kind: ClassVar[str] = "pictures"
    size: int = 100
    damaged: tuple[int, ...] = ()
    threads: ClassVar[set[str]] = set()

    def open(self, *, offline: bool = False) -> Source:
        return PictureSource(self)


class PictureSource(Source):
    concurrent = True

    def __init__(self, dataset: Pictures) -> None:
        self.dataset, self.digits = dataset, Digits().open()

    def __len__(self) -> int:
        return self.dataset.size

    def read(self, indices: tuple[int, ...]) -> Batch:
        self.dataset.threads.add(kind_of_thread())
        for index in indices:
            if index in self.dataset.damaged:
                raise DataError(f"image {index} is damaged")
        batch = self.digits.read(indices)
        return Batch((batch.x * 255).round() / 255, batch.y, batch.indices)


@pytest.mark.parametrize("threads", [1, 3])
def test_of_damaged_images_the_first_is_named(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "readers", lambda: threads)
    damaged = Pictures(damaged=(90, 71, 30, 50))
    with pytest.raises(DataError, match=r"^image 30 is damaged$"):
        ImageCache(damaged.open(), threads).read(range(100))
    with pytest.raises(DataError, match=r"^image 30 is damaged$"):
        open_data(damaged, offline=True)


@pytest.mark.parametrize("threads", [1, 3])
def test_images_that_differ_in_size_are_refused_in_whichever_piece(
    tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "readers", lambda: threads)
    for i in range(3 * PIECE):
        paint(tmp_path / "a" / f"{i:02}.jpg", (40, 30) if i < 2 * PIECE else (50, 30), i)
    data = ImageFolder(root=str(tmp_path))
    message = rf"\(a/00\.jpg is 40×30, a/{2 * PIECE}\.jpg is 50×30\).*set dataset\.size: 224"
    with pytest.raises(DataError, match=message):
        open_data(data, offline=True)
    with pytest.raises(DataError, match=message):
        ImageCache(data.open(), threads).read(range(3 * PIECE))


def test_data_are_the_same_whoever_reads_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, labels and pixels by direct reading, image by image; with a subset in an order of its own."""
    data = ImageFolder(root=str(folder), size=24, indices=(29, 3, 12, *range(13, 28), 0))
    direct = data.open()
    for threads in (1, 4):
        monkeypatch.setattr(module, "readers", lambda threads=threads: threads)
        found = open_data(data, offline=True)
        batches = [direct.read((image,)) for image in data.indices or ()]
        assert list(found.digests) == list(data.indices or ())
        assert list(found.digests.values()) == [digest(one.x[0].numpy(), one.y.item()) for one in batches]
        assert found.labels.tolist() == [one.y.item() for one in batches]
        assert found.pixels == {hashlib.sha256(one.x.numpy().tobytes()).hexdigest() for one in batches}


# --- ahead of the network ---


class Paler(Threat):
    """Images with less contrast, made without the network: one stage for each strength."""

    kind: ClassVar[str] = "paler"
    reduction: ClassVar[Any] = "mean"
    concurrent: ClassVar[bool] = True
    stages: ClassVar[tuple[str, ...]] = ("a", "b")
    asks: bool = False
    threads: ClassVar[set[str]] = set()

    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        self.threads.add(kind_of_thread())
        if self.asks:
            network(batch.x)
        drawn = noise.uniform(tuple(batch.x.shape[1:]))
        return batch.x * {"a": 0.4, "b": 0.3}[stage] + 0.6 * drawn


STEERINGS = (BASELINE, Steering(0.9), Steering(0.6))


def trials_of(stage: str, size: int = 96) -> list[Trial]:
    return [Trial(steering, image, Attempt(stage)) for steering in STEERINGS for image in range(size)]


def task_with(threat: Threat, **fields: Any) -> Task:
    return task_of(Demo(name="digits_plain"), Pictures(**fields), threat, batch_size=16)


@pytest.fixture
def with_readers(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how many threads read, as on a GPU; the images of a session are forgotten."""

    def say(number: int) -> None:
        monkeypatch.setattr(Computation, "readers", number)
        Computation(Portion(task_with(Paler()), tuple(trials_of(CLEAN)))).session.images.clear()
        Pictures.threads.clear()
        Paler.threads.clear()

    return say


@pytest.mark.parametrize("stage", [CLEAN, "a", "b"])
def test_results_have_the_same_bits_whoever_reads(
    stage: str, with_readers: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for concurrent, number in product((False, True), (0, 1, 3)):
        monkeypatch.setattr(Paler, "concurrent", concurrent)
        with_readers(number)
        found.append(bits(results_of(compute(task_with(Paler()), trials_of(stage)))))
        by = {0: {"MainThread"}, 1: {"MainThread", "ahead"}, 3: {"MainThread", "reader"}}
        assert Pictures.threads == by[number]  # the example is read by this one
        if stage != CLEAN:
            assert Paler.threads == (by[number] - {"MainThread"} if concurrent and number else {"MainThread"})
    assert all(other == found[0] for other in found[1:])
    assert len(found[0]) == 288
    right = [value[0] for value in found[0].values()].count(repr(Answer(1.0)))
    assert stage == CLEAN or 60 < right < 240  # the noise matters


def test_on_a_cpu_one_thread_does_all() -> None:
    on_cpu = Computation(Portion(task_with(Paler()), tuple(trials_of(CLEAN))))
    assert on_cpu.readers == 0
    on_cpu.__dict__ |= {"device": "cuda:1"}
    del on_cpu.__dict__["readers"]
    assert on_cpu.readers == readers() >= 1


@pytest.mark.parametrize("number", [0, 2])
def test_a_concurrent_threat_may_not_call_the_network(number: int, with_readers: Callable[[int], None]) -> None:
    with_readers(number)
    with pytest.raises(ModelError, match=r"the threat is concurrent, so it may not call a network"):
        compute(task_with(Paler(asks=True)), trials_of("a"))


@pytest.mark.parametrize("stage", [CLEAN, "a"])
@pytest.mark.parametrize("number", [0, 2])
def test_an_unreadable_image_is_reported_after_what_comes_before_it(
    stage: str, number: int, with_readers: Callable[[int], None]
) -> None:
    with_readers(number)
    portion = Portion(task_with(Paler(), damaged=(70,)), tuple(trials_of(stage)))
    found: list[int] = []
    with pytest.raises(DataError, match=r"^image 70 is damaged$"):
        found.extend(result.trial.image for results in running(portion) for result in results)
    assert found == ([] if stage == CLEAN else list(range(64)))
    assert_no_reader()


@pytest.mark.parametrize("stage", [CLEAN, "b"])
def test_a_portion_that_is_given_up_leaves_no_thread(stage: str, with_readers: Callable[[int], None]) -> None:
    with_readers(2)
    results = running(Portion(task_with(Paler()), tuple(trials_of(stage))))
    next(results)
    results.close()
    assert_no_reader()


# --- the box ---


class Shifted(Digits):
    """Digits that someone else's arithmetic has moved."""

    kind: ClassVar[str] = "shifted"
    by: float

    def open(self, *, offline: bool = False) -> Source:
        return ShiftedSource(Digits().open(), self.by)


class ShiftedSource(Source):
    def __init__(self, source: Source, by: float) -> None:
        self.source, self.by = source, by

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: tuple[int, ...]) -> Batch:
        batch = self.source.read(indices)
        return Batch(batch.x + self.by, batch.y, batch.indices)


@pytest.mark.parametrize("by", [1.2e-7, -9e-7])
def test_rounding_is_clipped_wherever_images_are_read(by: float) -> None:
    numbers = tuple(range(20))
    shifted = ShiftedSource(Digits().open(), by)
    assert not 0 <= shifted.read(numbers).x.min() <= shifted.read(numbers).x.max() <= 1
    batch, digests = ImageCache(shifted).read(numbers)
    assert torch.equal(batch.x, shifted.read(numbers).x.clamp(0, 1))
    assert list(open_data(Shifted(by=by, n=20), offline=True).digests.values()) == digests


@pytest.mark.parametrize(
    ("by", "excess"), [(3e-6, "2.98e-06 above 1"), (-2e-6, "2e-06 below 0"), (float("nan"), "NaN among them")]
)
def test_what_is_outside_by_more_is_refused_by_how_much(by: float, excess: str) -> None:
    with pytest.raises(DataError, match=rf"images must lie in \[0, 1\].*, {excess}\. Leave normalisation to the model"):
        open_data(Shifted(by=by, n=20), offline=True)


@pytest.mark.parametrize(
    ("moved", "message"),
    [
        (lambda x: x + 0.05 + 3e-5, r"Linf distance 0\.05003\d* where eps is 0\.05, 3e-05 too far; project it onto"),
        (lambda x: x - 2e-6, r"pixels in \[-2e-06, .*\], not \[0, 1\]: 2e-06 below 0; clip them"),
        (lambda x: x + 0.5 + 3e-6, r"not \[0, 1\]: 2.98e-06 above 1; clip them"),
    ],
)
def test_an_adversary_outside_by_rounding_is_told_by_how_much(moved: Callable[[Tensor], Tensor], message: str) -> None:
    x = torch.tensor([0.0, 0.25, 0.5]).view(1, 1, 1, 3)
    with pytest.raises(InvalidAdversary, match=message):
        verify(Linf(eps=0.05), x, moved(x))
