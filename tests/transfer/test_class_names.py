"""Training and test images number their classes each by itself: they are matched by name, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.transfer import toy_board
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from harness import pipeline
from harness.checks.doctor import doctor
from harness.config.benchmark import parse_benchmark
from harness.datasets.arrays import Arrays
from harness.datasets.digits import Digits
from harness.datasets.hugging_face import HuggingFace
from harness.datasets.image_folder import ImageFolder
from harness.datasets.sources.in_memory import ArraySource
from harness.engine.class_names import names_to_match, numbered_as
from harness.engine.images import open_data
from harness.errors import DataError
from harness.models.robustbench import RobustBench
from harness.models.timm import Timm
from harness.models.torchvision import TorchVision

OUTCOMES = ["method", "beta", "clean", "robust", "gained", "lost"]


def board(trained: list[int], scored: list[int], **changes: Any) -> dict[str, Any]:
    """A probe of digits: trained and scored ones, each numbered in the order given."""
    probe = {
        "backbone": {"kind": "demo", "name": "digits_plain_0to4"},
        "train": {"kind": "digits", "split": "train", "classes": trained, "per_class": 15},
        "probe": {"C": [0.1], "folds": 3},
    }
    dataset = {"kind": "digits", "classes": scored}
    return toy_board(model=probe, dataset=dataset, steering={"beta": [0.8]}, **changes)


def run(folder: Path, *classes: list[int]) -> pd.DataFrame:
    return pipeline.run(parse_benchmark(board(*classes)), runs=folder)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_another_order_of_the_test_sets_classes_changes_no_outcome(tmp_path: Path) -> None:
    right = run(tmp_path / "a", [5, 6, 7], [5, 6, 7])
    assert right.clean.min() > 0.8
    pd.testing.assert_frame_equal(run(tmp_path / "b", [5, 6, 7], [7, 5, 6])[OUTCOMES], right[OUTCOMES])


def test_a_test_set_without_the_first_class_is_scored_by_name(tmp_path: Path) -> None:
    """By number every image of it would be wrong."""
    assert run(tmp_path, [5, 6, 7], [6, 7]).clean.min() > 0.8


def test_a_class_that_was_not_trained_is_refused_by_name(tmp_path: Path) -> None:
    [status] = run(tmp_path, [5, 6, 7], [6, 4, 3])["status"].tolist()
    assert status.startswith("failed: dataset: it has images of class '")
    assert "Classes of dataset alone: 4, 3; classes of the model: 5, 6, 7" in status


def test_doctor_sees_both_beforehand(tmp_path: Path) -> None:
    def findings(scored: list[int]) -> list[str]:
        benchmark = parse_benchmark(board([5, 6, 7], scored))
        found = doctor(benchmark, runs=tmp_path, out=[tmp_path / "board.csv"])
        return [finding.text for finding in found if finding.level == "problem"]

    assert findings([7, 5, 6]) == []
    assert "no class of that name" in findings([6, 4])[0]


# --- a pretrained model's own classes ---


def of_demo(folder: Path, name: str, *classes: int) -> pd.DataFrame:
    models = [{"kind": "demo", "name": name}]
    dataset = {"kind": "digits", "per_class": 10, "classes": list(classes)}
    return pipeline.run(parse_benchmark(toy_board(models=models, dataset=dataset, steering={"beta": 0.9})), runs=folder)


def test_images_are_numbered_as_the_logits_of_a_pretrained_model(tmp_path: Path) -> None:
    right = of_demo(tmp_path / "a", "digits_plain_0to4", 0, 1, 2, 3, 4)
    assert right.clean.min() > 0.9
    pd.testing.assert_frame_equal(
        of_demo(tmp_path / "b", "digits_plain_0to4", 3, 1, 0, 4, 2)[OUTCOMES], right[OUTCOMES]
    )
    assert of_demo(tmp_path / "c", "digits_plain", 8, 5).clean.min() > 0.8  # of ten logits


def test_images_of_no_class_of_a_pretrained_model_are_refused_by_name(tmp_path: Path) -> None:
    [status] = of_demo(tmp_path, "digits_plain_0to4", 3, 7)["status"].tolist()
    assert "Classes of dataset alone: 7; classes of the model: 0, 1, 2, 3, 4" in status


@pytest.mark.parametrize(
    ("images", "names"),
    [("ba", "ab"), ("b", "ab"), ("ac", "ab"), ("c", "ab"), ("cd", ""), (None, "ab"), ("", "ab")],
)
def test_only_as_many_classes_all_named_otherwise_are_taken_by_number(images: str | None, names: str) -> None:
    assert "".join(names_to_match("ab", images)) == names


def test_imagenet_is_named_alike_by_its_models_and_its_images() -> None:
    names = TorchVision(name="resnet18").class_names()
    assert len(set(names)) == 1000
    assert (names[0], names[-1]) == ("n01440764", "n15075141")
    assert names == RobustBench(name="x", dataset="imagenet").class_names() == Timm(name="resnet18").class_names()
    assert RobustBench(name="x", dataset="cifar10").class_names() == ()


# --- numbers by name ---


@given(own=st.permutations("abcde"), other=st.permutations("abcdefg"), y=st.lists(st.integers(0, 4), min_size=1))
def test_every_image_keeps_the_name_of_its_class(own: list[str], other: list[str], y: list[int]) -> None:
    source = numbered_as(ArraySource(np.zeros((len(y), 1, 2, 2)), np.array(y), own), other)
    found = source.read(tuple(range(len(y)))).y.tolist()
    assert [other[number] for number in found] == [own[number] for number in y]
    assert source.labels() == found


def test_only_images_of_an_unknown_class_are_refused() -> None:
    source = numbered_as(ArraySource(np.zeros((3, 1, 2, 2)), np.array([2, 0, 1]), "xyz"), "zy")
    assert source.read((0, 2)).y.tolist() == [0, 1]
    assert source.labels() == [0, -1, 1]
    with pytest.raises(DataError, match="images of class 'x'"):
        source.read((0, 1, 2))


def test_without_names_on_both_sides_numbers_stay() -> None:
    named, bare = (ArraySource(np.zeros((2, 1, 2, 2)), np.array([0, 1]), names) for names in ("ab", None))
    assert numbered_as(bare, "ba") is bare
    assert numbered_as(named, "") is named
    assert numbered_as(named, ("a", "b")) is named


# --- which data sets name their classes ---


def folders(root: Path, *names: str) -> str:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / name / "0.png")
    return str(root)


def test_a_folder_is_the_name_of_its_class(tmp_path: Path) -> None:
    source = ImageFolder(root=folders(tmp_path / "pictures", "dog", "ant")).open()
    assert source.class_names == ["ant", "dog"]
    data = open_data(ImageFolder(root=str(tmp_path / "pictures")), True, class_names=("dog", "cat", "ant"))
    assert data.labels.tolist() == [2, 0]
    assert data.class_names == ("dog", "cat", "ant")


def test_a_hub_data_sets_class_labels_are_names_and_plain_integers_are_not(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    picture = Image.new("RGB", (4, 4))
    for folder, label in (("named", datasets.ClassLabel(names=["dog", "ant"])), ("bare", datasets.Value("int64"))):
        features = datasets.Features({"image": datasets.Image(), "label": label})
        rows = datasets.Dataset.from_dict({"image": [picture, picture], "label": [1, 0]}, features=features)
        (tmp_path / folder).mkdir()
        rows.to_parquet(str(tmp_path / folder / "test.parquet"))

    def names(folder: str) -> Any:
        return HuggingFace(path=str(tmp_path / folder), split="test").open(offline=True).class_names

    assert names("named") == ["dog", "ant"]
    assert names("bare") is None


def test_digits_are_named_and_arrays_are_not(tmp_path: Path) -> None:
    assert Digits(classes=(7, 3)).open().class_names == ["7", "3"]
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 1, 2, 2), np.uint8), y=np.zeros(1, int))
    assert Arrays(path=str(tmp_path / "a.npz")).open().class_names is None
