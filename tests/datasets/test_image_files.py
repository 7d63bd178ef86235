"""Image files: read bit by bit as RobustBench and torchvision read them, and every bad directory named."""

from __future__ import annotations

import json
import random
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from harness.api.dataset import Dataset
from harness.api.records import AS_STORED, Preprocessing
from harness.api.registry import build
from harness.datasets.image_folder import ImageFolder
from harness.datasets.imagenet import ImageNet
from harness.datasets.sources.image_files import ImageFileSource, decode, read_image, square
from harness.errors import DataError, DataMissing, SpecError
from harness.models.robustbench import RobustBench, import_robustbench
from harness.testing import DatasetContract

HELPERS = Path(str(find_spec("robustbench").origin)).parent / "helper_files"  # type: ignore[union-attr]
IDS = (HELPERS / "imagenet_test_image_ids.txt").read_text().split()
CLASSES: dict[str, int] = json.loads((HELPERS / "imagenet_class_to_id_map.json").read_text())
SIZES = [(331, 257), (300, 443), (500, 375), (224, 224), (190, 601)]
R224 = Preprocessing(256, 224)


def paint(path: Path, size: tuple[int, int], seed: int, mode: str = "RGB", kind: str = "JPEG") -> Path:
    """Write an image with detail at every scale, so that a shift by a pixel or another filter shows."""
    drawn = np.random.default_rng(seed)
    width, height = size
    coarse = Image.fromarray(drawn.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = drawn.integers(-40, 40, (height, width, 3))
    pixels = np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, kind)
    return path


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All class folders, and RobustBench's first 21 images: one grey, one in CMYK, and one a PNG named JPEG."""
    root = tmp_path_factory.mktemp("imagenet")
    for name in CLASSES:
        (root / "val" / name).mkdir(parents=True)
    modes = {1: "L", 2: "CMYK"}
    for i, name in enumerate(IDS[:21]):
        kind = "PNG" if i == 3 else "JPEG"
        paint(root / "val" / name, SIZES[i % len(SIZES)], i, modes.get(i, "RGB"), kind)
    return root


@pytest.fixture
def copy(imagenet: Path, tmp_path: Path) -> Path:
    """A copy of `imagenet` to be damaged."""
    return Path(shutil.copytree(imagenet, tmp_path / "imagenet"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four class folders, created out of order, with images of one size, one of them in a subfolder."""
    root = tmp_path_factory.mktemp("folder")
    names = [
        "owl/2.png",
        "owl/10.png",
        "cat/a.jpg",
        "Dog/b.JPEG",
        "cat/sub/c.png",
        "ant/z.webp",
        "owl/a.png",
        "owl/b.png",
    ]
    for i, name in enumerate(names):
        paint(root / name, (40, 30), i, kind={"png": "PNG", "webp": "WEBP"}.get(name.rpartition(".")[2], "JPEG"))
    (root / "cat" / "notes.txt").write_text("not an image")
    return root


# --- RobustBench's preprocessing ---


def test_images_equal_robustbenchs(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_robustbench()
    from robustbench.data import load_imagenet

    loader: Any = torch.utils.data.DataLoader
    monkeypatch.setattr("torch.utils.data.DataLoader", lambda *a, num_workers, **k: loader(*a, num_workers=0, **k))
    x, y = load_imagenet(21, str(imagenet))
    source = ImageNet(root=str(imagenet), n=21).open(offline=True).prepared(R224)
    batch = source.read(tuple(range(21)))
    assert torch.equal(batch.x, x)
    assert torch.equal(batch.y, y)
    assert batch.names == tuple(IDS[:21])
    assert len(source) == 5000


@pytest.mark.parametrize("name", ["Res256Crop224", "Crop288", None, "Res224", "BicubicRes256Crop224"])
@pytest.mark.parametrize("size", [(331, 257), (190, 601), (500, 375)])
def test_every_entry_of_robustbenchs_table(tmp_path: Path, name: str | None, size: tuple[int, int]) -> None:
    import_robustbench()
    from robustbench.data import PREPROCESSINGS
    from robustbench.loaders import default_loader

    from harness.models.robustbench import _as_preprocessing

    assert len(PREPROCESSINGS) == 5
    path = paint(tmp_path / "odd.JPEG", size, seed=5)
    image = read_image(path, _as_preprocessing(PREPROCESSINGS[name]))
    assert torch.equal(image, PREPROCESSINGS[name](default_loader(str(path))))
    assert image.dtype == torch.float32


HEAVY = {"Debenedetti2022Light_XCiT-M12", "Debenedetti2022Light_XCiT-L12", "Tian2022Deeper_DeiT-B"}


def entries() -> list[Any]:
    boards = RobustBench.names()
    found = [(threat, name) for threat in ("Linf", "corruptions") for name in boards[f"robustbench imagenet/{threat}"]]
    slow = pytest.mark.slow  # RobustBench builds them for their config
    return [pytest.param(*entry, marks=[slow] if entry[1] in HEAVY else []) for entry in found]


@pytest.mark.parametrize(("threat", "name"), entries())
def test_the_preprocessing_of_every_imagenet_model_is_robustbenchs(tmp_path: Path, threat: str, name: str) -> None:
    from robustbench.data import get_preprocessing
    from robustbench.loaders import default_loader
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    path = paint(tmp_path / "odd.JPEG", (290, 310), seed=6)
    expected = get_preprocessing(BenchmarkDataset.imagenet, ThreatModel(threat), name, None)
    ours = RobustBench(name=name, dataset="imagenet", threat=threat).preprocessing()
    assert torch.equal(read_image(path, ours), expected(default_loader(str(path))))


def test_cifar_is_not_preprocessed() -> None:
    assert RobustBench(name="Standard").preprocessing() == AS_STORED


# --- imagenet ---


class TestImageNet(DatasetContract):
    @pytest.fixture
    def part(self, imagenet: Path) -> Dataset:
        return ImageNet(root=str(imagenet), n=20, size=32)


def test_only_the_images_that_are_read_are_opened(copy: Path) -> None:
    source = ImageNet(root=str(copy), indices=(20, 4)).open().prepared(R224)
    (copy / "val" / IDS[0]).unlink()
    (copy / "val" / IDS[7]).write_bytes(b"not an image")
    batch = source.read((20, 4))
    assert batch.y.tolist() == [CLASSES[IDS[20].split("/")[0]], CLASSES[IDS[4].split("/")[0]]]
    with pytest.raises(DataMissing, match=rf"{IDS[0]}: no such image; unpack or copy the dataset again"):
        source.read((4, 0))
    with pytest.raises(DataError, match=rf"{IDS[7]}: not an image, or damaged .*cannot identify.*copy the file"):
        source.read((7,))


def test_class_folders_without_a_chosen_image_need_not_exist(copy: Path) -> None:
    chosen = {IDS[i].split("/")[0] for i in (2, 5)}
    for name in CLASSES.keys() - chosen:
        shutil.rmtree(copy / "val" / name)
    part = ImageNet(root=str(copy), indices=(2, 5))
    assert part.open().prepared(R224).read((5, 2)).y.tolist() == [CLASSES[IDS[i].split("/")[0]] for i in (5, 2)]


def test_a_truncated_image_is_named(copy: Path) -> None:
    path = copy / "val" / IDS[0]
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=rf"{IDS[0]}: not an image, or damaged .*truncated"):
        ImageNet(root=str(copy), n=1).open().prepared(R224).read((0,))


def test_a_model_without_preprocessing_gets_the_size_of_the_dataset(imagenet: Path) -> None:
    """With 224, the images are RobustBench's; the preprocessing of a model takes precedence."""
    part = ImageNet(root=str(imagenet), n=2, size=224)
    expected = ImageNet(root=str(imagenet), n=2).open().prepared(R224).read((0, 1)).x
    assert torch.equal(part.open().prepared(AS_STORED).read((0, 1)).x, expected)
    assert part.open().prepared(Preprocessing(32, 16)).read((0,)).x.shape == (1, 3, 16, 16)
    assert square(32) == Preprocessing(37, 32)


def test_images_of_different_sizes_need_a_size(imagenet: Path) -> None:
    message = (
        rf"val: images of different sizes \({IDS[0]} is 331×257, {IDS[1]} is 300×443\).*"
        r"set dataset\.size: 224, or whatever the model takes"
    )
    with pytest.raises(DataError, match=message):
        ImageNet(root=str(imagenet), n=2).open().read((0, 1))


def test_a_missing_directory_is_named_with_the_way_to_get_imagenet(tmp_path: Path) -> None:
    message = r"^dataset\.root: no directory \S+/gone/val; .*register at https://"
    with pytest.raises(DataMissing, match=message):
        ImageNet(root=str(tmp_path / "gone"), n=1).open()


def test_a_half_unpacked_directory_is_refused_with_the_first_missing_class(copy: Path) -> None:
    for name in sorted(CLASSES)[1::2]:
        shutil.rmtree(copy / "val" / name)
    first = min(name for name in (IDS[i].split("/")[0] for i in range(21)) if not (copy / "val" / name).exists())
    with pytest.raises(DataMissing, match=rf"val: 500 of 1000 class folders, first missing {first}; unpack it again"):
        ImageNet(root=str(copy), n=21).open()
    with pytest.raises(DataMissing, match=r"val: 500 of 1000 class folders, first missing n01443537; "):
        ImageNet(root=str(copy), ids="all").open()


def test_images_that_are_not_sorted_into_class_folders_are_refused(tmp_path: Path) -> None:
    for i in (3, 1):
        paint(tmp_path / "val" / f"ILSVRC2012_val_0000000{i}.JPEG", (40, 30), i)
    message = r"val: 2 images .*such as ILSVRC2012_val_00000001\.JPEG; sort them into a folder for each class"
    with pytest.raises(DataError, match=message):
        ImageNet(root=str(tmp_path), n=1).open()


def test_all_images_are_torchvisions_and_none_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = sorted(CLASSES)
    monkeypatch.setattr("harness.datasets.imagenet.PER_CLASS", 2)
    numbers = list(range(2000))
    random.Random(0).shuffle(numbers)
    for i, name in enumerate(names):
        (tmp_path / "val" / name).mkdir(parents=True)
        for number in numbers[2 * i : 2 * i + 2]:
            (tmp_path / "val" / name / f"ILSVRC2012_val_{number + 1:08}.JPEG").touch()
    source = ImageNet(root=str(tmp_path), ids="all").open()
    expected = datasets.ImageFolder(str(tmp_path / "val")).samples
    assert [(str(source.root / file), y) for file, y in zip(source.files, source.labels(), strict=True)] == expected
    assert len(source) == 2000
    next((tmp_path / "val" / names[7]).iterdir()).unlink()
    with pytest.raises(DataError, match=rf"val/{names[7]}: 1 images, expected 2; unpack it again"):
        ImageNet(root=str(tmp_path), ids="all", n=1).open()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ids": "some"}, r"dataset\.ids: .*'robustbench' or 'all', found 'some'"),
        ({"size": 0}, r"dataset\.size: .*above 0"),
        ({"size": "224"}, r"dataset\.size: .*integer"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build("datasets", {"kind": "imagenet"} | fields, "dataset")


# --- image_folder ---


class TestImageFolder(DatasetContract):
    @pytest.fixture
    def part(self, folder: Path) -> Dataset:
        return ImageFolder(root=str(folder))


def test_the_images_of_a_folder_are_torchvisions(folder: Path) -> None:
    source = ImageFolder(root=str(folder)).open()
    expected = datasets.ImageFolder(str(folder), transform=None)
    batch = source.read(tuple(range(len(source))))
    assert batch.y.tolist() == expected.targets == [0, 1, 2, 2, 3, 3, 3, 3]
    for image, name, (original, _) in zip(batch.x, batch.names, expected, strict=True):
        assert torch.equal(image, torch.from_numpy(np.array(original).transpose(2, 0, 1)) / 255)
        assert (folder / name).is_file()
    assert batch.names[4:] == ("owl/10.png", "owl/2.png", "owl/a.png", "owl/b.png")


def test_the_images_of_a_folder_take_the_preprocessing_of_the_model(folder: Path) -> None:
    source = ImageFolder(root=str(folder), size=16).open()
    assert isinstance(source, ImageFileSource)
    assert source.read((0, 1)).x.shape == (2, 3, 16, 16)
    assert source.prepared(Preprocessing((20, 24), None, "bicubic")).read((0,)).x.shape == (1, 3, 20, 24)


def test_the_root_is_not_part_of_the_identity() -> None:
    assert ImageFolder(root="a", n=3).identity() == ImageFolder(root="b", n=3).identity()
    assert ImageNet(root="a").identity() != ImageNet(root="a", ids="all").identity()


def test_a_directory_without_class_folders_or_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"dataset\.root: no directory \S+/gone; .*folder for each class"):
        ImageFolder(root=str(tmp_path / "gone")).open()
    paint(tmp_path / "flat" / "a.png", (8, 8), 0, kind="PNG")
    with pytest.raises(DataError, match=r"flat: no class folder in it; expected a folder of images for each class"):
        ImageFolder(root=str(tmp_path / "flat")).open()
    (tmp_path / "flat" / "empty").mkdir()
    with pytest.raises(DataError, match=r"flat: no image in empty; .* add them, or delete the folder"):
        ImageFolder(root=str(tmp_path / "flat")).open()


def numbered(root: Path, *names: str) -> Path:
    """Return a folder with an image in each of these folders below it."""
    for seed, name in enumerate(names):
        paint(root / name / "a.png", (8, 8), seed, kind="PNG")
    return root


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", ".thumbnails"])
def test_a_hidden_folder_is_no_class(tmp_path: Path, name: str) -> None:
    numbered(tmp_path, "cat", "dog", name)
    with pytest.raises(DataError, match=rf"{name}: hidden, and it would be a class or an image; delete it"):
        ImageFolder(root=str(tmp_path)).open()
    shutil.rmtree(tmp_path / name)
    assert ImageFolder(root=str(tmp_path)).open().labels() == [0, 1]


@pytest.mark.parametrize("name", ["cat/._a.png", "cat/.ipynb_checkpoints/a-checkpoint.png"])
def test_a_hidden_picture_is_no_image(tmp_path: Path, name: str) -> None:
    numbered(tmp_path, "cat", "dog", "cat/__new")
    assert ImageFolder(root=str(tmp_path)).open().labels() == [0, 0, 1]
    paint(tmp_path / name, (8, 8), 3, kind="PNG")
    with pytest.raises(DataError, match=rf"{re.escape(name)}: hidden, and it would be a class or an image; delete it"):
        ImageFolder(root=str(tmp_path)).open()


def test_numbered_folders_have_an_order_that_is_said_where_there_are_two(tmp_path: Path) -> None:
    numbered(tmp_path, "1", "2", "10")
    with pytest.raises(DataError, match=r"alphabetical order 10 comes before 2; set dataset\.order as in training: "):
        ImageFolder(root=str(tmp_path)).open()
    alphabetical, numerical = (
        ImageFolder(root=str(tmp_path), order=how).open() for how in ("alphabetical", "numerical")
    )
    assert (alphabetical.files, alphabetical.labels()) == (["1/a.png", "10/a.png", "2/a.png"], [0, 1, 2])
    assert (numerical.files, numerical.labels()) == (["1/a.png", "2/a.png", "10/a.png"], [0, 1, 2])


@pytest.mark.parametrize("names", [("01", "02", "10"), ("0", "1", "2"), ("b2", "b10")])
def test_other_folders_have_one_order(tmp_path: Path, names: tuple[str, ...]) -> None:
    source = ImageFolder(root=str(numbered(tmp_path, *names))).open()
    assert source.files == [f"{name}/a.png" for name in sorted(names)]


def test_a_numerical_order_is_of_numbers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.order: numerical goes with folders that are numbers, found 'cat'"):
        ImageFolder(root=str(numbered(tmp_path, "1", "cat")), order="numerical").open()


def test_a_directory_one_level_too_high(tmp_path: Path) -> None:
    numbered(tmp_path, "train/cat", "train/dog", "val/cat", "val/dog")
    expected = rf"one level too high, as its folders \(train, val\) hold .*such as dataset\.root: {tmp_path / 'val'}$"
    with pytest.raises(DataError, match=expected):
        ImageFolder(root=str(tmp_path)).open()
    assert ImageFolder(root=str(tmp_path / "val")).open().labels() == [0, 1]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_images_of_8_bits_are_read_as_pillow_converts_them(tmp_path: Path, mode: str) -> None:
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    path = paint(tmp_path / f"a.{kind.lower()}", (8, 8), 0, mode, kind)
    expected = np.array(Image.open(path).convert("RGB")).transpose(2, 0, 1) / np.float32(255)
    assert np.array_equal(read_image(path, AS_STORED).numpy(), expected)


# --- pictures of more than 8 bits ---


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_of_16_bits_the_upper_8_are_read(tmp_path: Path, suffix: str, order: str) -> None:
    grey = np.random.default_rng(0).integers(0, 65536, (32, 24)).astype(order)
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    x = read_image(tmp_path / f"a.{suffix}", AS_STORED)
    expected = np.broadcast_to((grey // 256).astype(np.float32) / 255, (3, 32, 24))
    assert np.array_equal(x.numpy(), expected)


@pytest.mark.parametrize(("white", "dark"), [(255, True), (4095, True), (4096, False), (0, False)])
def test_16_bits_that_hold_8_or_12_would_be_black_and_are_refused(tmp_path: Path, white: int, dark: bool) -> None:
    grey = np.zeros((8, 8), np.uint16)
    grey[0] = white
    Image.fromarray(grey).save(tmp_path / "a.png")
    if not dark:
        assert read_image(tmp_path / "a.png", AS_STORED).max() == np.float32(white // 256) / np.float32(255)
        return
    with pytest.raises(DataError, match=rf"a\.png: a 16-bit picture that is never above {white}, where white is 65535"):
        read_image(tmp_path / "a.png", AS_STORED)


def test_a_picture_that_unpacks_to_far_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = paint(tmp_path / "a.png", (40, 30), 0, kind="PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match=r"a\.png: has more than 1,000 pixels; scale it down"):
        read_image(path, AS_STORED)


@pytest.mark.parametrize(("dtype", "what"), [(np.float32, "floats"), (np.int32, "32-bit integers")])
def test_pictures_that_do_not_say_what_is_white_are_refused_by_file_name(
    tmp_path: Path, dtype: type[Any], what: str
) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.full((8, 8), 0.7, dtype)).save(tmp_path / "cat" / "a.tiff")
    with pytest.raises(DataError, match=rf"cat/a\.tiff: its pixels are {what} .*; save it with 8 or 16 bits"):
        ImageFolder(root=str(tmp_path)).open().read((0,))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_other_modes_are_read_as_before(tmp_path: Path, mode: str) -> None:
    path = paint(tmp_path / "a.png", (24, 16), 0, mode, "PNG")
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal((read_image(path, AS_STORED) * 255).round().numpy(), expected)


def test_what_the_system_says_of_a_file_is_no_damage(tmp_path: Path) -> None:
    def refused() -> Image.Image:
        raise PermissionError(13, "Permission denied", str(tmp_path / "a.png"))

    with pytest.raises(DataError, match=r"^a\.png: cannot be read \(Permission denied\); fix that"):
        decode(refused, "a.png", AS_STORED)
