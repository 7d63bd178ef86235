"""The paper's datasets, and any of the Hugging Face hub: the pixels and labels written are read back, split by split.

Each dataset is written small, in the layout of the library that reads it, and read by that library. Its MD5 checks
(CIFAR, Flowers102, CelebA) are replaced by checks that the file exists. Images are PNG whatever their names, so that
every pixel is known.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from scipy.io import savemat
from torchvision import transforms

from harness.api.dataset import Dataset
from harness.api.records import Preprocessing
from harness.api.registry import build
from harness.datasets import downstream
from harness.datasets.downstream import CATALOGUE, Downstream
from harness.datasets.hugging_face import HuggingFace
from harness.datasets.sources import providers
from harness.datasets.sources.lazy import LazySource, as_labels
from harness.datasets.sources.providers import Split
from harness.errors import DataError, DataMissing, SpecError
from harness.testing import DatasetContract
from harness.util.downloads import MIRROR

BySplit = dict[Split, Any]

SPLITS: tuple[Split, ...] = ("train", "test")
LABELS: BySplit = {"train": [2, 0, 1, 0, 2, 1, 1, 0, 2], "test": [1, 0, 2, 1]}
DRAWN = np.random.default_rng(0)
COLOURS: BySplit = {s: DRAWN.integers(0, 256, (len(LABELS[s]), 32, 32, 3), dtype=np.uint8) for s in SPLITS}
GREYS: BySplit = {s: DRAWN.integers(0, 256, (len(LABELS[s]), 9, 7), dtype=np.uint8) for s in SPLITS}
ATTRIBUTES: BySplit = {s: DRAWN.integers(0, 2, (len(LABELS[s]), 40)) for s in SPLITS}
ROWS: BySplit = {"train": [0, 2, 3, 5, 8, 9, 10, 11, 12], "test": [1, 4, 6, 7]}
"""Rows of the splits in files that list both."""


class Expected:
    """The pixels uint8 [n, h, w, 3] and labels that were written, by split."""

    def __init__(self, pixels: BySplit = COLOURS, labels: BySplit = LABELS) -> None:
        self.pixels = {s: p if p.ndim == 4 else np.stack([p] * 3, axis=3) for s, p in pixels.items()}
        self.labels = {s: np.asarray(y) for s, y in labels.items()}


def paint(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def both(splits: BySplit) -> list[Any]:
    """Merge the splits' entries in the order of `ROWS`."""
    by_row = {row: entry for s in SPLITS for row, entry in zip(ROWS[s], splits[s], strict=True)}
    return [by_row[row] for row in sorted(by_row)]


# --- each library's layout ---


def idx(directory: str) -> Callable[[Path], Expected]:
    def write_dataset(root: Path) -> Expected:
        raw = root / directory / "raw"
        raw.mkdir(parents=True)
        for s, name in zip(SPLITS, ("train", "t10k"), strict=True):
            shape = np.array(GREYS[s].shape, ">i4").tobytes()
            (raw / f"{name}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + shape + GREYS[s].tobytes())
            count = np.array([len(LABELS[s])], ">i4").tobytes()
            (raw / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + count + bytes(LABELS[s]))
        return Expected(GREYS)

    return write_dataset


def cifar(directory: str, key: str, files: dict[str, list[str]], meta: tuple[str, str]) -> Callable[[Path], Expected]:
    def write_dataset(root: Path) -> Expected:
        (root / directory).mkdir(parents=True)
        for s in SPLITS:
            planes = COLOURS[s].transpose(0, 3, 1, 2).reshape(len(COLOURS[s]), -1)
            for name, part in zip(files[s], np.array_split(np.arange(len(planes)), len(files[s])), strict=True):
                batch = {"data": planes[part], key: [LABELS[s][i] for i in part]}
                (root / directory / name).write_bytes(pickle.dumps(batch, protocol=2))
        (root / directory / meta[0]).write_bytes(pickle.dumps({meta[1]: ["a", "b", "c"]}))
        return Expected()

    return write_dataset


def write_dtd(root: Path) -> Expected:
    for s in SPLITS:
        names = [f"texture{y}/{s}_{i}.jpg" for i, y in enumerate(LABELS[s])]
        write(root / "dtd/dtd/labels" / f"{s}1.txt", "".join(f"{name}\n" for name in names))
        for name, pixels in zip(names, COLOURS[s], strict=True):
            paint(root / "dtd/dtd/images" / name, pixels)
    return Expected()


def write_food101(root: Path) -> Expected:
    order = {s: np.argsort(LABELS[s], kind="stable") for s in SPLITS}  # torchvision lists class by class
    for s in SPLITS:
        listed: dict[str, list[str]] = {"apple": [], "bread": [], "cake": []}
        for i in order[s]:
            food = list(listed)[LABELS[s][i]]
            listed[food].append(f"{food}/{s}{i}")
            paint(root / "food-101/images" / food / f"{s}{i}.jpg", COLOURS[s][i])
        write(root / "food-101/meta" / f"{s}.json", json.dumps(listed))
    return Expected({s: COLOURS[s][order[s]] for s in SPLITS}, {s: np.array(LABELS[s])[order[s]] for s in SPLITS})


def write_aircraft(root: Path) -> Expected:
    data = root / "fgvc-aircraft-2013b/data"
    write(data / "variants.txt", "707-320\nA 340\nYak-42\n")
    for s, name in zip(SPLITS, ("trainval", "test"), strict=True):
        lines = [f"{s}{i} {['707-320', 'A 340', 'Yak-42'][y]}\n" for i, y in enumerate(LABELS[s])]
        write(data / f"images_variant_{name}.txt", "".join(lines))
        for i, pixels in enumerate(COLOURS[s]):
            paint(data / "images" / f"{s}{i}.jpg", pixels)
    return Expected()


def write_flowers(root: Path) -> Expected:
    directory = root / "flowers-102"
    for i, pixels in enumerate(both(COLOURS), 1):
        paint(directory / "jpg" / f"image_{i:05}.jpg", pixels)
    savemat(directory / "imagelabels.mat", {"labels": np.array(both(LABELS)) + 1})
    ids = {s: np.array(ROWS[s]) + 1 for s in SPLITS}
    savemat(directory / "setid.mat", {"trnid": ids["train"], "valid": np.array([1]), "tstid": ids["test"]})
    return Expected()


def write_imagenette(root: Path) -> Expected:
    names = ("n01440764", "n02979186", "n03888257")
    order = {s: np.argsort(LABELS[s], kind="stable") for s in SPLITS}
    for s, name in zip(SPLITS, ("train", "val"), strict=True):
        for i in order[s]:
            paint(root / "imagenette2-320" / name / names[LABELS[s][i]] / f"{i}.JPEG", COLOURS[s][i])
    return Expected({s: COLOURS[s][order[s]] for s in SPLITS}, {s: np.array(LABELS[s])[order[s]] for s in SPLITS})


def write_celeba(root: Path) -> Expected:
    names = [f"{i:06}.jpg" for i in range(1, 14)]
    for name, pixels in zip(names, both(COLOURS), strict=True):
        paint(root / "celeba/img_align_celeba" / name, pixels)
    part = [2 if i in ROWS["test"] else 0 for i in range(13)]
    rows = [" ".join(f"{2 * bit - 1:2}" for bit in bits) for bits in both(ATTRIBUTES)]  # -1 and 1
    heading = " ".join(f"Attribute_{i}" for i in range(40))
    tables: dict[str, tuple[str, list[Any]]] = {
        "list_eval_partition": ("", part),
        "identity_CelebA": ("", list(range(13))),
        "list_attr_celeba": (f"13\n{heading}\n", rows),
        "list_bbox_celeba": ("13\nimage_id x_1 y_1 width height\n", ["0 0 32 32"] * 13),
        "list_landmarks_align_celeba": ("13\nlefteye_x lefteye_y\n", ["1 2"] * 13),
    }
    for table, (head, lines) in tables.items():
        body = "".join(f"{name} {line}\n" for name, line in zip(names, lines, strict=True))
        write(root / "celeba" / f"{table}.txt", head + body)
    return Expected(COLOURS, ATTRIBUTES)


def medmnist(name: str, pixels: BySplit) -> Callable[[Path], Expected]:
    def write_dataset(root: Path) -> Expected:
        (root / "medmnist").mkdir(parents=True)
        arrays: dict[str, Any] = {f"{s}_images": pixels[s] for s in SPLITS}
        arrays |= {f"{s}_labels": np.array(LABELS[s], np.uint8)[:, None] for s in SPLITS}
        arrays |= {"val_images": pixels["test"][:1] ^ 255, "val_labels": np.array([[2]], np.uint8)}
        np.savez_compressed(root / "medmnist" / f"{name}.npz", **arrays)
        return Expected(pixels)

    return write_dataset


def write_dsprites(root: Path) -> Expected:
    size = 60_100
    (root / "dsprites").mkdir(parents=True)
    sprites = np.random.default_rng(1).integers(0, 2, (size, 4, 3), dtype=np.uint8)
    latents = np.random.default_rng(2).uniform(0, 2 * np.pi, (size, 6))
    path = root / "dsprites/dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
    np.savez_compressed(path, imgs=sprites, latents_values=latents, metadata=np.array({"title": "x"}, dtype=object))
    order = np.random.default_rng(0).permutation(size)
    chosen = {"test": order[:10_000], "train": order[10_000:60_000]}
    orientation = {s: latents[chosen[s], 3:4].astype("float32") for s in SPLITS}
    return Expected({s: 255 * sprites[chosen[s]] for s in SPLITS}, orientation)


def parquet(directory: Path, split: Split, path: str = "{}.parquet", **columns: Any) -> None:
    """Write a split with Hugging Face's library."""
    images = [Image.fromarray(pixels) for pixels in COLOURS[split]]
    table = datasets.Dataset.from_dict({"image": images} | columns)
    (directory / path.format(split)).parent.mkdir(parents=True, exist_ok=True)
    table.cast_column("image", datasets.Image()).to_parquet(str(directory / path.format(split)))


def hub(name: str, path: str = "{}.parquet", column: str = "label") -> Callable[[Path], Expected]:
    def write_dataset(root: Path) -> Expected:
        for s in SPLITS:
            parquet(root / name, s, path, **{column: LABELS[s]})
        return Expected()

    return write_dataset


CIFAR10_FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
CONVERTED = "default/{}/0000.parquet"
"""Layout of the hub's own conversion, and of the mirror of its main branch."""

WRITERS: dict[str, Callable[[Path], Expected]] = {
    "mnist": idx("MNIST"),
    "fashion_mnist": idx("FashionMNIST"),
    "cifar10": cifar("cifar-10-batches-py", "labels", CIFAR10_FILES, ("batches.meta", "label_names")),
    "cifar100": cifar(
        "cifar-100-python", "fine_labels", {"train": ["train"], "test": ["test"]}, ("meta", "fine_label_names")
    ),
    "arabic_characters": hub("arabic_characters"),
    "arabic_digits": hub("arabic_digits", path=CONVERTED),
    "beans": hub("beans", path="data/{}-00000-of-00001.parquet", column="labels"),
    "cub200": hub("cub200", path=CONVERTED),
    "dtd": write_dtd,
    "food101": write_food101,
    "fgvc_aircraft": write_aircraft,
    "flowers102": write_flowers,
    "pathmnist": medmnist("pathmnist", COLOURS),
    "octmnist": medmnist("octmnist", GREYS),
    "dermamnist": medmnist("dermamnist", COLOURS),
    "imagenette": write_imagenette,
    "celeba": write_celeba,
    "dsprites": write_dsprites,
}
PATHS = {
    "mnist": "MNIST/raw",
    "fashion_mnist": "FashionMNIST/raw",
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "arabic_characters": "arabic_characters/train.parquet",
    "arabic_digits": "arabic_digits/train.parquet",
    "beans": "beans/train.parquet",
    "cub200": "cub200/train.parquet",
    "dtd": "dtd/dtd",
    "food101": "food-101",
    "fgvc_aircraft": "fgvc-aircraft-2013b",
    "flowers102": "flowers-102",
    "pathmnist": "medmnist/pathmnist.npz",
    "octmnist": "medmnist/octmnist.npz",
    "dermamnist": "medmnist/dermamnist.npz",
    "imagenette": "imagenette2-320",
    "celeba": "celeba",
    "dsprites": "dsprites/dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
}


@pytest.fixture(autouse=True)
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty working directory and cache, and no network: the test fails if it leaves requests in this list."""
    attempted: list[Any] = []

    def refuse(*address: Any, **_: Any) -> None:
        attempted.append(address)
        raise OSError("there is no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(MIRROR, raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for module in ("cifar", "flowers102", "celeba"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda path, _=None: os.path.isfile(path))
    yield attempted
    assert not attempted


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The datasets may have fewer images than the originals."""
    monkeypatch.setattr(
        downstream, "CATALOGUE", {name: entry._replace(images=None) for name, entry in CATALOGUE.items()}
    )


def assert_equal(source: LazySource, expected: Expected, split: Split) -> None:
    assert len(source) == len(expected.labels[split])
    some = (2, 0, 3, 1)
    batch = source.read(some)
    x = torch.from_numpy(expected.pixels[split][list(some)].transpose(0, 3, 1, 2)) / 255
    assert torch.equal(batch.x, x)
    assert torch.equal(batch.y, torch.from_numpy(expected.labels[split][list(some)]))
    assert batch.indices.tolist() == list(some)
    assert np.array_equal(source.y, expected.labels[split])


# --- the paper's datasets ---


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", CATALOGUE)
def test_both_splits_are_read_as_written(name: str, tmp_path: Path) -> None:
    expected = WRITERS[name](tmp_path / "data")
    assert not np.array_equal(expected.pixels["train"][:4], expected.pixels["test"][:4])
    kinds = {"celeba": ("attributes", torch.int64, (40,)), "dsprites": ("values", torch.float32, (1,))}
    target, dtype, shape = kinds.get(name, ("class", torch.int64, ()))
    for split in SPLITS:
        part = Downstream(name=name, split=split)
        source = part.open(offline=True)
        assert_equal(source, expected, split)
        y = source.read((0, 1)).y
        assert part.target == target
        assert (y.dtype, tuple(y.shape)) == (dtype, (2, *shape))
        assert part.title == {"test": name, "train": f"{name} train"}[split]


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("split", SPLITS)
def test_offline_a_missing_dataset_is_named_with_the_way_to_get_it(name: str, split: Any, tmp_path: Path) -> None:
    with pytest.raises(DataMissing) as caught:
        Downstream(name=name, split=split, root="elsewhere").open(offline=True)
    message = str(caught.value)
    assert str(tmp_path / "elsewhere" / PATHS[name]) in message
    assert "offline" in message
    assert "to put it there by hand, " in message
    assert not (tmp_path / "elsewhere").exists()


class TestDownstream(DatasetContract):
    @pytest.fixture
    def part(self, small: None, tmp_path: Path) -> Dataset:
        idx("MNIST")(tmp_path)
        return Downstream(name="mnist", split="train", root=str(tmp_path))


def test_the_catalogue_names_all_datasets() -> None:
    assert list(CATALOGUE) == list(WRITERS) == list(Downstream.names()["downstream"])
    assert all(entry.source for entry in CATALOGUE.values())
    assert {name for name, entry in CATALOGUE.items() if entry.target != "class"} == {"celeba", "dsprites"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"name": "flower102", "split": "test"},
            r"dataset\.name: .*did you mean 'flowers102'\?.*mnist",
        ),
        ({"name": "mnist"}, r"dataset\.split: missing"),
        ({"name": "mnist", "split": "val"}, r"dataset\.split: .*'train' or 'test', found 'val'"),
        ({"name": "mnist", "split": "test", "size": 0}, r"dataset\.size: .*above 0"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build("datasets", {"kind": "downstream"} | fields, "dataset")


def test_the_split_is_part_of_the_identity_and_the_root_is_not() -> None:
    test = Downstream(name="mnist", split="test", root="a")
    assert test.identity() == Downstream(name="mnist", split="test", root="b").identity()
    assert test.identity() != Downstream(name="mnist", split="train", root="a").identity()
    assert test.model_copy(update={"n": 5}).label == "mnist[:5]"


@pytest.mark.usefixtures("small")
def test_per_class_needs_classes(tmp_path: Path) -> None:
    idx("MNIST")(tmp_path)
    part = Downstream(name="mnist", split="train", root=str(tmp_path), per_class=1)
    assert part.chosen(part.open(offline=True)) == (0, 1, 2)
    write_celeba(tmp_path)
    part = Downstream(name="celeba", split="train", root=str(tmp_path), per_class=1)
    message = r"^dataset\.per_class: .*celeba train.*attributes, .*n or indices"
    with pytest.raises(DataError, match=message):
        part.chosen(part.open(offline=True))


@pytest.mark.usefixtures("small")
def test_images_take_the_preprocessing_of_the_model(tmp_path: Path) -> None:
    written = idx("MNIST")(tmp_path)
    source = Downstream(name="mnist", split="test", root=str(tmp_path), size=6).open(offline=True)
    assert source.read((0, 1)).x.shape == (2, 3, 6, 6)
    steps = [transforms.Resize(12, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(10)]
    expected = transforms.Compose([*steps, transforms.ToTensor()])(Image.fromarray(written.pixels["test"][3]))
    assert torch.equal(source.prepared(Preprocessing(12, 10, "bicubic")).read((3,)).x[0], expected)
    assert torch.equal(source.prepared(Preprocessing()).read((3,)).x, source.read((3,)).x)


@pytest.mark.usefixtures("small")
def test_images_that_cannot_be_read_are_named_and_labels_need_no_image(tmp_path: Path) -> None:
    write_dtd(tmp_path)
    images = tmp_path / "dtd/dtd/images"
    (images / "texture1/test_0.jpg").unlink()
    (images / "texture0/test_1.jpg").write_bytes(b"not an image")
    paint(images / "texture2/test_2.jpg", COLOURS["test"][2][:20])
    source = Downstream(name="dtd", split="test", root=str(tmp_path)).open(offline=True)
    assert source.labels() == LABELS["test"]
    with pytest.raises(DataMissing, match=r"texture1/test_0\.jpg: no such image; unpack or copy the dataset again"):
        source.read((3, 0))
    with pytest.raises(DataError, match=r"dtd/dtd: image 1: not an image, or damaged .*copy the file"):
        source.read((1,))
    message = r"dtd/dtd: images of different sizes \(image 3 is 32×32, image 2 is 32×20\).*; set dataset\.size: 224"
    with pytest.raises(DataError, match=message):
        source.read((3, 2))


def test_an_incomplete_dataset_is_refused(tmp_path: Path) -> None:
    write_imagenette(tmp_path)
    message = r"imagenette2-320: 9 images of the train split, expected 9,469; .*unpack it again"
    with pytest.raises(DataError, match=message):
        Downstream(name="imagenette", split="train", root=str(tmp_path)).open(offline=True)


def test_incomplete_and_missing_files_of_torchvision_are_told_apart(tmp_path: Path) -> None:
    idx("MNIST")(tmp_path)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"MNIST/raw: incomplete, or damaged .*run without --offline, or"):
        Downstream(name="mnist", split="test", root=str(tmp_path)).open(offline=True)
    write_food101(tmp_path)
    (tmp_path / "food-101/meta/test.json").unlink()
    with pytest.raises(DataMissing, match=r"food-101: no file \S+/meta/test\.json, .*offline.*; to put it there"):
        Downstream(name="food101", split="test", root=str(tmp_path)).open(offline=True)


def test_a_failed_download_is_named_with_the_address(tmp_path: Path, requests: list[Any]) -> None:
    message = r"dtd/dtd: torchvision cannot download or read it .*no network.*get https://www\.robots\.ox\.ac\.uk/"
    with pytest.raises(DataError, match=message):
        Downstream(name="dtd", split="test", root=str(tmp_path)).open()
    assert requests
    requests.clear()


# --- .npz files ---


@pytest.mark.usefixtures("small")
def test_medmnist_comes_from_a_mirror_and_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = medmnist("dermamnist", COLOURS)(tmp_path / "original")
    mirrored = tmp_path / "mirror/zenodo.org/records/10519652/files/dermamnist.npz"
    mirrored.parent.mkdir(parents=True)
    shutil.move(tmp_path / "original/medmnist/dermamnist.npz", mirrored)
    monkeypatch.setenv(MIRROR, f"file://{tmp_path}/mirror")
    part = Downstream(name="dermamnist", split="test", root=str(tmp_path / "data"))
    assert_equal(part.open(), expected, "test")
    url = "https://zenodo.org/records/10519652/files/dermamnist.npz?download=1"
    recorded = json.loads(Path("models.lock").read_text())[url]
    assert recorded["sha256"] == hashlib.sha256(mirrored.read_bytes()).hexdigest()
    file = tmp_path / "data/medmnist/dermamnist.npz"
    other: dict[str, Any] = dict.fromkeys(("test_images", "test_labels"), np.zeros(1))
    np.savez(file, **other)
    with pytest.raises(DataError, match=r"dermamnist\.npz is not what \S+models\.lock recorded for https://zenodo"):
        part.open(offline=True)


def test_a_file_that_is_not_the_npz_is_refused(tmp_path: Path) -> None:
    part = Downstream(name="octmnist", split="test", root=str(tmp_path))
    file = tmp_path / "medmnist/octmnist.npz"
    write(file, "<html>")
    with pytest.raises(DataError, match=r"octmnist\.npz is not an \.npz file.*; delete it and run again, or"):
        part.open(offline=True)
    np.savez(file, train_images=np.zeros(1))
    with pytest.raises(DataError, match=r"octmnist\.npz has no test_images\.npy, no test_labels\.npy"):
        part.open(offline=True)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("name", "key"), [("pathmnist", "test_images"), ("dsprites", "imgs")])
def test_a_damaged_array_is_named(name: str, key: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    file = tmp_path / PATHS[name]
    content = bytearray(file.read_bytes())
    middle = content.index(f"{key}.npy".encode()) + (4000 if name == "pathmnist" else 20_000)
    content[middle] ^= 255
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"{file.name}: {key} is damaged .*delete the file and run again"):
        Downstream(name=name, split="test", root=str(tmp_path)).open(offline=True)


def test_the_sprites_of_a_split_are_always_the_same() -> None:
    """Compare with numpy's permutation when this test was written."""
    test, train = (providers.sprite_indices(737_280, split) for split in SPLITS[::-1])
    assert (len(test), len(train)) == (10_000, 50_000)
    assert not set(test) & set(train)
    assert test[:3].tolist() == [292479, 258584, 212140]
    assert train[:3].tolist() == [4184, 318123, 315672]


# --- the Hugging Face hub ---


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A dataset in parquet files, ``pictures`` below the working directory."""
    for split in SPLITS:
        parquet(tmp_path / "pictures", split, name=[f"{split}{y}" for y in LABELS[split]], label=LABELS[split])
    return tmp_path / "pictures"


class TestHuggingFace(DatasetContract):
    @pytest.fixture
    def part(self, directory: Path) -> Dataset:
        return HuggingFace(path=str(directory), split="train", n=3)


def test_a_directory_is_read_split_by_split(directory: Path) -> None:
    for split in SPLITS:
        part = HuggingFace(path="pictures", split=split)
        assert_equal(part.open(offline=True), Expected(), split)
        assert part.title == f"pictures {split}"
    assert HuggingFace(path=str(directory), split="test", size=16).open(offline=True).read((0,)).x.shape == (
        1,
        3,
        16,
        16,
    )


def test_title_and_label_name_path_configuration_split_and_subset() -> None:
    assert HuggingFace(path="user/name", config="small", split="test").title == "user/name small test"
    assert HuggingFace(path="/a/b/c/name", split="test", n=4).label == "c/name test[:4]"


def test_labels_may_be_attributes_and_values(tmp_path: Path) -> None:
    rows = ATTRIBUTES["test"].tolist()
    parquet(tmp_path / "many", "test", tags=rows, angle=[0.5, 1, -2, 3.25], wide=[[1.0, 2.0]] * 4)
    part = HuggingFace(path="many", split="test", label_column="tags", labels="attributes")
    assert part.target == "attributes"
    y = part.open(offline=True).read((3, 0)).y
    assert y.dtype == torch.int64
    assert y.tolist() == [rows[3], rows[0]]
    part = HuggingFace(path="many", split="test", label_column="angle", labels="values")
    y = part.open(offline=True).read((3, 0)).y
    assert y.dtype == torch.float32
    assert y.tolist() == [[3.25], [0.5]]
    assert HuggingFace(path="many", split="test", label_column="wide", labels="values").open().read((1,)).y.shape == (
        1,
        2,
    )


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"split": "tset"},
            SpecError,
            r"^dataset\.split: pictures has no split 'tset' \(did you mean 'test'\?\)",
        ),
        (
            {"label_column": "lable"},
            SpecError,
            r"^dataset\.label_column: .* no column 'lable' \(did you mean 'label'\?\)",
        ),
        (
            {"image_column": "img"},
            SpecError,
            r"^dataset\.image_column: .* no column 'img'.*; it has image, name, label$",
        ),
        (
            {"image_column": "name"},
            DataError,
            r"^dataset\.image_column: .* 'name' of pictures holds .*; name a column of images",
        ),
        (
            {"label_column": "name"},
            DataError,
            r"^dataset\.label_column: .* 'name' of pictures: expected .* number of its class",
        ),
        (
            {"labels": "attributes"},
            DataError,
            r"expected for each .* a row of 0 and 1.*; found int64 \[4, 1\]: \[\[1\]",
        ),
        (
            {"path": "gone"},
            DataMissing,
            r"^gone: no such directory, not in the cache \S+/cache, .*run once without --offline",
        ),
        (
            {"path": "./gone"},
            DataMissing,
            r"^dataset\.path: no directory \S+/gone; give one, or user/name on the Hugging Face hub",
        ),
    ],
)
def test_a_wrong_path_split_or_column_is_named(
    directory: Path, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    part = HuggingFace.model_validate({"path": "pictures", "split": "test"} | fields)
    with pytest.raises(error, match=message):
        part.open(offline=True)


def test_a_directory_that_the_library_cannot_read_is_named(tmp_path: Path) -> None:
    write(tmp_path / "empty/notes.bin", "")
    with pytest.raises(DataError, match=r"/empty: .*cannot read it .*; fix it or copy it again"):
        HuggingFace(path="empty", split="test").open(offline=True)


def test_without_the_library_the_extra_to_install_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = r"^dataset: pictures test .*; pip install 'ct-harness\[transfer\]'$"
    with pytest.raises(SpecError, match=message):
        HuggingFace(path="pictures", split="test").open()


COMMIT = "0123456789" * 4


@pytest.fixture
def cached(directory: Path, tmp_path: Path) -> None:
    """The library's cache as if someone/pictures had been loaded from the hub at `COMMIT`."""
    from datasets.packaged_modules.parquet.parquet import Parquet

    files = {split: [str(directory / f"{split}.parquet")] for split in SPLITS}
    Parquet(cache_dir=str(tmp_path / "build"), data_files=files, hash=COMMIT).download_and_prepare()
    [config] = (tmp_path / "build/parquet").iterdir()
    shutil.move(config, tmp_path / "cache/someone___pictures/default")
    for table in (tmp_path / "cache/someone___pictures/default").rglob("parquet-*.arrow"):
        table.rename(table.with_name(table.name.replace("parquet-", "pictures-")))
    shutil.rmtree(directory)


@pytest.mark.usefixtures("cached")
def test_offline_the_cache_is_read_without_a_request() -> None:
    part = HuggingFace(path="someone/pictures", split="test")
    assert_equal(part.open(offline=True), Expected(), "test")
    assert_equal(part.model_copy(update={"revision": COMMIT}).open(offline=True), Expected(), "test")
    assert_equal(part.model_copy(update={"revision": "refs/convert/parquet"}).open(offline=True), Expected(), "test")
    with pytest.raises(DataMissing, match=rf"dataset\.revision: .*{COMMIT} of someone/pictures, not f{{40}}"):
        part.model_copy(update={"revision": "f" * 40}).open(offline=True)


def test_the_offline_switches_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(DataMissing):
        HuggingFace(path="someone/gone", split="test").open(offline=True)
    assert not datasets.config.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_a_dataset_that_cannot_be_downloaded_is_named(requests: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the hub's attempts
    message = r"https://huggingface\.co/datasets/randall-lab/cub200: it cannot be downloaded .*put it there by hand"
    with pytest.raises(DataError, match=message):
        Downstream(name="cub200", split="test").open()
    assert requests
    requests.clear()


# --- labels ---


@pytest.mark.parametrize(
    ("labels", "target", "message"),
    [
        (
            [0, -1],
            "class",
            r"here: expected .*number of its class, ≥ 0; found int64 \[2\]: \[0, -1\]",
        ),
        ([0.0, 1.0], "class", "found float64"),
        ([[0], [1]], "class", r"found int64 \[2, 1\]"),
        ([[0, 2]], "attributes", "a row of 0 and 1"),
        (
            [[0, 1], [1]],
            "attributes",
            r"here: rows of different lengths; expected .*a row of 0 and 1",
        ),
        ([1.0, float("nan")], "values", "a row of finite numbers"),
        (["a"], "values", "found <U1"),
    ],
)
def test_labels_of_another_kind_are_refused(labels: Any, target: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_labels(labels, target, "here")
