"""Datasets from files: what is read equals what was stored, and every fault is named with its remedy."""

from __future__ import annotations

import hashlib
import json
import pickle
import tarfile
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from harness.api.dataset import Dataset
from harness.datasets.arrays import Arrays
from harness.datasets.cifar import CIFAR10, CIFAR100
from harness.errors import DataError, DataMissing

RANDOM = np.random.default_rng(0)
X = RANDOM.integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
Y = np.array([3, 0, 9, 9, 1])


def npz(directory: Path, **arrays: Any) -> Arrays:
    np.savez(directory / "images.npz", **arrays)
    return Arrays(path=str(directory / "images.npz"))


@pytest.mark.parametrize(
    "stored",
    [X, X.astype("float32") / 255, X / 255, (X / 255).astype(">f4"), (X / 255).astype("float16")],
    ids=["uint8", "float32", "float64", "big-endian", "float16"],
)
def test_arrays_are_read_as_pixels_in_the_requested_order(tmp_path: Path, stored: Any) -> None:
    source = npz(tmp_path, x=stored, y=Y.astype("uint8")).open(offline=True)
    batch = source.read((4, 0, 2))
    assert len(source) == 5
    assert batch.x.dtype == torch.float32
    assert batch.x.shape == (3, 3, 4, 6)
    tolerance = 1e-3 if stored.dtype == "float16" else 1e-7
    np.testing.assert_allclose(batch.x.numpy(), X[[4, 0, 2]] / 255, rtol=0, atol=tolerance)
    assert batch.y.dtype == torch.int64
    assert batch.y.tolist() == [1, 3, 9]
    assert batch.indices.tolist() == [4, 0, 2]


def test_uint8_stays_uint8_and_black_and_white_are_exact(tmp_path: Path) -> None:
    x = np.array([0, 255], dtype=np.uint8).reshape(2, 1, 1, 1)
    source = npz(tmp_path, x=x, y=np.array([0, 1])).open()
    assert source.x.dtype == np.uint8
    assert source.read((0, 1)).x.flatten().tolist() == [0.0, 1.0]


def test_reading_leaves_the_stored_images_as_they_are(tmp_path: Path) -> None:
    source = npz(tmp_path, x=X.astype("float32") / 255, y=Y).open()
    before = source.read((0,)).x.clone()
    source.read((0,)).x.zero_()
    assert torch.equal(source.read((0,)).x, before)


def test_the_path_of_the_files_is_not_part_of_the_identity() -> None:
    assert Arrays(path="a.npz").identity() == Arrays(path="b.npz").identity()
    assert CIFAR10(root="a", n=5).identity() == CIFAR10(root="b", n=5).identity()
    assert CIFAR10(n=5).identity() != CIFAR10(n=6).identity()


FLOATS = X / 255
NOT_A_NUMBER = FLOATS.copy()
NOT_A_NUMBER[3, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": X, "y": Y}, r"no array x .*only images, y; .*numpy\.savez"),
        ({"labels": Y}, r"no array x and no y .*only labels"),
        ({"x": X.transpose(0, 2, 3, 1), "y": Y}, r"x has shape \(5, 4, 6, 3\).*transpose to n×c×h×w"),
        ({"x": X[0], "y": Y}, r"x has shape \(3, 4, 6\); expected n×c×h×w"),
        ({"x": X[:0], "y": Y[:0]}, "at least one image"),
        ({"x": X.astype("int64"), "y": Y}, r"x is int64; .*uint8 in 0 … 255, or float"),
        ({"x": X.astype("float32"), "y": Y}, r"x is float32 from 0 to 255; .*divide by 255"),
        ({"x": FLOATS * 2 - 1, "y": Y}, r"x is float64 from -1 to 1; .*undo the normalisation"),
        ({"x": NOT_A_NUMBER, "y": Y}, r"x holds NaN.*image 3"),
        ({"x": X, "y": Y[:4]}, r"y has shape \(4,\); expected \(5,\)"),
        ({"x": X, "y": np.eye(10)[Y]}, r"y has shape \(5, 10\)"),
        ({"x": X, "y": Y.astype("float32")}, r"y is float32; .*integers"),
        ({"x": X, "y": Y - 1}, r"y has the label -1 at image 1; .*≥ 0"),
        ({"x": X, "y": Y.astype(object)}, "y holds Python objects; save numbers"),
        ({"x": X // 16, "y": Y}, r"x is uint8 and never above 15, where white is 255: .*save x / 15 as float32"),
        ({"x": X // 128, "y": Y}, r"x is uint8 and never above 1, where white is 255: .*save x / 1 as float32"),
        ({"x": FLOATS + 1e-4, "y": Y}, r"x is float64 .*; expected floats in \[0, 1\], found 0\.0001 above 1"),
        ({"x": FLOATS - 2e-6, "y": Y}, r"expected floats in \[0, 1\], found 2e-06 below 0: undo the norm"),
        ({"x": X, "y": Y.astype("uint64") + np.uint64(2**63)}, r"y has the label 922337\d+ at image 1; expected class"),
    ],
)
def test_wrong_arrays_are_named_with_the_remedy(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        npz(tmp_path, **arrays).open()
    assert str(tmp_path / "images.npz") in str(caught.value)


def test_a_missing_a_foreign_and_a_truncated_file_are_refused(tmp_path: Path) -> None:
    arrays = npz(tmp_path, x=X, y=Y)
    file = tmp_path / "images.npz"
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    with pytest.raises(DataError, match=r"images\.npz: not an \.npz file, or cut short"):
        arrays.open()
    middle = bytearray(whole)
    middle[250] ^= 255
    file.write_bytes(middle)
    with pytest.raises(DataError, match=r"images\.npz: x is damaged \(Bad CRC"):
        arrays.open()
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(DataError, match=r"x\.npy: not an \.npz file"):
        Arrays(path=str(tmp_path / "x.npy")).open()
    with pytest.raises(DataError, match=r"dataset\.path: no file .*gone\.npz; .*numpy\.savez"):
        Arrays(path=str(tmp_path / "gone.npz")).open()


@pytest.mark.parametrize("by", [1e-7, -1e-7, 1e-6 - 1e-9])
def test_what_rounding_has_put_outside_of_the_box_is_clipped(tmp_path: Path, by: float) -> None:
    inside, outside = (npz(tmp_path, x=x, y=Y).open().read((0, 1)).x for x in (FLOATS, FLOATS + by))
    assert outside.min() >= 0
    assert outside.max() <= 1
    assert (outside - inside).abs().max() <= 2e-6


def test_the_very_bits_of_pixels_inside_the_box_are_kept(tmp_path: Path) -> None:
    x = FLOATS.astype("float32")
    x[0, 0, 0, :3] = -0.0, 1e-45, 1.0
    read = npz(tmp_path, x=x, y=Y).open().read(tuple(range(5))).x.numpy()
    assert read.tobytes() == x.tobytes()


def with_header(directory: Path, header: bytes, data: bytes = b"", version: bytes = b"\1\0") -> Arrays:
    """Images whose array x begins with this header."""
    path = directory / "images.npz"
    np.savez(path, y=Y)
    with zipfile.ZipFile(path, "a") as archive:
        length = len(header).to_bytes(2, "little")
        archive.writestr("x.npy", b"\x93NUMPY" + version + length + header + data)
    return Arrays(path=str(path))


def described(shape: str, dtype: str = "'|u1'") -> bytes:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}\n".encode()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (described("(1000000, 3, 1000, 1000)"), "its header promises 3,000,000,000,000 bytes, and 0 follow"),
        (described("(4000000000, 4000000000, 4000000000, 3)"), "its header promises"),
        (described(f"({2**70}, 0, 1, 1)"), "x is damaged"),
        (described("(-1, 3, 4, 6)"), "x is damaged"),
        (described("(5, 3, 4, 6"), "x is damaged"),
        (described("((" * 3000), "x is damaged"),
        (described("(5,)", "'|O'"), "x holds Python objects; save numbers"),
        (described("(5,)", "[('a', '|O')]"), "x holds Python objects; save numbers"),
        (described("(5,)", "'nonsense'"), "x is damaged"),
        (described("5"), "x is damaged"),
        (b"\xff" * 90, "x is damaged"),
        (b"[" * 9000, "x is damaged"),
        (b"", "x is damaged"),
    ],
)
def test_a_header_is_held_against_the_file_before_memory_is_taken(tmp_path: Path, header: bytes, message: str) -> None:
    arrays = with_header(tmp_path, header)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message) as caught:
            arrays.open()
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(str(tmp_path / "images.npz"))
    assert "\n" not in str(caught.value)


def test_a_header_that_numpy_cannot_parse_is_told_in_our_words(tmp_path: Path) -> None:
    """Numpy's own would advise to trust the file."""
    with pytest.raises(DataError, match=r"x is damaged \(its header is none that numpy writes\); write or copy"):
        with_header(tmp_path, b"[" * 20_000).open()


def test_an_array_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    arrays = npz(tmp_path, x=X, y=Y)
    with warnings.catch_warnings(), zipfile.ZipFile(arrays.path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("x.npy", archive.read("x.npy"))
    with pytest.raises(DataError, match="two arrays x in it"):
        arrays.open()


def test_a_large_array_that_is_one_number_throughout_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.datasets.sources.npz.LARGE", 1_000_000)
    large = np.zeros((200, 3, 100, 100), np.uint8)
    np.savez_compressed(tmp_path / "black.npz", x=large, y=np.zeros(200, int))
    with pytest.raises(DataError, match=r"x is damaged \(6,000,128 bytes cannot come of \d,\d{3} compressed ones\)"):
        Arrays(path=str(tmp_path / "black.npz")).open()
    shapes = np.random.default_rng(0).integers(0, 2, (200, 3, 10, 10), np.uint8).repeat(10, 2).repeat(10, 3)
    np.savez_compressed(tmp_path / "shapes.npz", x=shapes * np.uint8(255), y=np.zeros(200, int))
    assert len(Arrays(path=str(tmp_path / "shapes.npz")).open()) == 200


def test_a_file_that_is_shorter_or_longer_than_its_header_says(tmp_path: Path) -> None:
    header = described("(5, 3, 4, 6)")
    for data in (X.tobytes()[:-1], X.tobytes() + b"x"):
        with pytest.raises(DataError, match=r"its header promises 360 bytes, and 3\d\d follow"):
            with_header(tmp_path, header, data).open()
    assert np.array_equal(with_header(tmp_path, header, X.tobytes()).open().x, X)
    with pytest.raises(DataError, match=r"its format is 9\.0, expected 1\.0 or 2\.0"):
        with_header(tmp_path, header, X.tobytes(), version=b"\x09\0").open()


PIXELS = RANDOM.integers(0, 256, (4, 3072), dtype=np.uint8)
"""Four images in CIFAR's layout: the red, the green and the blue plane, row by row."""


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Dataset, Path]:
    """A dataset whose official test batch has four images, and the path of that batch."""
    dataset: Dataset
    if request.param == "cifar10":
        dataset, official, key = CIFAR10(root=str(tmp_path)), datasets.CIFAR10, "labels"
    else:
        dataset, official, key = CIFAR100(root=str(tmp_path)), datasets.CIFAR100, "fine_labels"
    content = pickle.dumps({"data": PIXELS, key: [3, 8, 8, 0]}, protocol=2)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / official.base_folder / official.test_list[0][0]
    file.parent.mkdir()
    file.write_bytes(content)
    monkeypatch.setattr(official, "test_list", [[file.name, hashlib.md5(content).hexdigest()]])
    return dataset, file


def test_the_test_batch_alone_is_enough(cifar: tuple[Dataset, Path]) -> None:
    dataset, _ = cifar
    source = dataset.open(offline=True)
    batch = source.read((2, 0))
    assert len(source) == 4
    assert torch.equal(batch.x, torch.from_numpy(PIXELS[[2, 0]].reshape(2, 3, 32, 32)) / 255)
    assert batch.y.tolist() == [8, 3]
    assert batch.y.dtype == torch.int64


@pytest.mark.parametrize("offline", [True, False])
def test_a_damaged_batch_is_refused_and_kept(cifar: tuple[Dataset, Path], offline: bool) -> None:
    dataset, file = cifar
    damaged = file.read_bytes()[:-1] + b"?"
    file.write_bytes(damaged)
    with pytest.raises(DataError, match=r"damaged, .*MD5.*; delete it and run again, or .*https:"):
        dataset.open(offline=offline)
    assert file.read_bytes() == damaged


def test_offline_a_missing_batch_is_named_with_its_address(cifar: tuple[Dataset, Path]) -> None:
    dataset, file = cifar
    file.unlink()
    message = r"gz: no such file, .*offline.*; .*open https://www\.cs\.toronto\.edu/.* as \S+gz$"
    with pytest.raises(DataMissing, match=message) as caught:
        dataset.open(offline=True)
    assert str(caught.value).startswith(str(file.parent.parent))


def test_offline_the_archive_put_there_by_hand_is_unpacked(
    cifar: tuple[Dataset, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, file = cifar
    official = datasets.CIFAR10 if isinstance(dataset, CIFAR10) else datasets.CIFAR100
    archive = file.parent.parent / official.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(file, f"{official.base_folder}/{file.name}")
    monkeypatch.setattr(official, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    file.unlink()
    assert len(dataset.open(offline=True)) == 4
    assert list(json.loads(Path("models.lock").read_text())) == [official.url]


def test_an_archive_that_is_not_cifars_is_refused(cifar: tuple[Dataset, Path]) -> None:
    dataset, file = cifar
    official = datasets.CIFAR10 if isinstance(dataset, CIFAR10) else datasets.CIFAR100
    file.unlink()
    (file.parent.parent / official.filename).write_bytes(b"half")
    with pytest.raises(DataError, match=rf"gz is damaged, .*{official.tgz_md5}; delete it and run again"):
        dataset.open(offline=True)


def test_a_failed_download_is_named_and_keeps_stdout_clean(
    cifar: tuple[Dataset, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, file = cifar
    file.unlink()

    def blocked(*_: object, **__: object) -> None:
        raise OSError("network unreachable")

    monkeypatch.setattr("harness.util.downloads.urlopen", blocked)
    monkeypatch.setattr("harness.util.downloads.FIRST_WAIT_S", 0.0)
    with pytest.raises(
        DataError, match=r"the download failed .*network unreachable.*; to put it there by hand"
    ) as caught:
        dataset.open()
    assert not isinstance(caught.value, DataMissing)  # for which the nightly job skips a benchmark
    assert capsys.readouterr().out == ""
