"""Common corruptions against RobustBench's own loaders, closed forms and scores computed by hand."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import trials
from helpers.packages import install
from helpers.tiny import mapping
from PIL import Image
from torch import nn

import harness
from harness import pipeline
from harness.api import registry
from harness.api.records import Batch
from harness.config.benchmark import parse_benchmark
from harness.errors import DataError, DataMissing, SpecError
from harness.leaderboard import outcomes, ranking
from harness.models.robustbench import import_robustbench
from harness.testing import ThreatContract
from harness.threats.corruptions import (
    CORRUPTIONS,
    CORRUPTIONS_3D,
    Corruptions,
    Corruptions3D,
    CorruptionThreat,
    alexnet,
    mce,
)
from harness.util import downloads
from harness.util.noise import Noise

N = 24
ARCHIVE = "CIFAR-10-C.tar"
UNUSED = nn.Identity()
"""Corruptions are the same for every network, and ask none."""

Planted = tuple[Path, np.ndarray, np.ndarray]
"""The directory of an official dataset, the clean images [n, 32, 32, 3] and their labels [n]."""

NETWORK = """
import torch
from torch import nn


def network():
    drawn = torch.Generator().manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(3072, 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        for weight in layers.parameters():
            weight.copy_(torch.randn(weight.shape, generator=drawn) / weight.shape[-1] ** 0.5)
    return layers
"""

STAND_IN = '''
import numpy as np


def corrupt(image, severity=1, corruption_name=None, **given):
    """Noise from numpy's global generator, or from a seed where the real library wants one."""
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.shape[2] == 3
    seeded = corruption_name in ("impulse_noise", "glass_blur")
    assert set(given) == ({"seed"} if seeded else set())
    drawn = np.random.default_rng(given["seed"]) if seeded else np.random
    noise = drawn.normal(size=image.shape)
    return np.uint8(np.clip(image + 10 * severity * noise, 0, 255))
'''


def plant(
    root: Path,
    corruptions: Sequence[str] = ("fog", "snow"),
    n: int = N,
    labels: Callable[[np.ndarray], np.ndarray] | None = None,
    name: str = "CIFAR-10-C",
) -> tuple[np.ndarray, np.ndarray]:
    """Write an official dataset whose first ``n`` images are filled at each severity, in sparse files."""
    drawn = np.random.default_rng(5)
    clean = drawn.integers(0, 256, (n, 32, 32, 3), np.uint8)
    folder = root / name
    folder.mkdir(parents=True)
    for corruption in corruptions:
        images = np.lib.format.open_memmap(folder / f"{corruption}.npy", "w+", np.uint8, (50_000, 32, 32, 3))
        for severity in range(5):
            noise = drawn.normal(size=clean.shape) * 40 * (severity + 1)
            images[severity * 10_000 : severity * 10_000 + n] = np.clip(clean + noise, 0, 255).astype(np.uint8)
        images.flush()
    known = np.zeros(10_000, np.uint8)
    known[:n] = drawn.integers(0, 10, n) if labels is None else labels(clean)
    np.save(folder / "labels.npy", np.tile(known, 5))
    return clean, known[:n].astype("int64")


def batch_of(clean: np.ndarray, labels: np.ndarray, indices: list[int] | None = None) -> Batch:
    chosen = torch.arange(len(clean)) if indices is None else torch.tensor(indices)
    x = torch.from_numpy(clean).permute(0, 3, 1, 2).float() / 255
    return Batch(x[chosen], torch.from_numpy(labels)[chosen], chosen)


def noise(seed: int) -> Noise:
    """Return the noise of a benchmark with this seed, of which corruptions take the seed alone."""
    return Noise(seed, torch.zeros(0, dtype=torch.int64))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A CIFAR-10-C of fog and snow. Read it, don't touch it."""
    root = tmp_path_factory.mktemp("planted")
    return root, *plant(root)


@pytest.fixture(autouse=True)
def _a_models_lock_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def threat_of(**keys: Any) -> CorruptionThreat:
    threat = registry.build("threats", {"kind": "corruptions"} | keys, "threat")
    assert isinstance(threat, CorruptionThreat)
    return threat


def official(root: Path | str, **keys: Any) -> CorruptionThreat:
    return threat_of(source="CIFAR-10-C", root=str(root), **{"corruptions": ["fog", "snow"]} | keys)


class Colour(ThreatContract):
    @pytest.fixture
    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).eval().requires_grad_(False)


class TestOfficial(Colour):
    @pytest.fixture
    def part(self, planted: Planted) -> CorruptionThreat:
        return official(planted[0], severities=[1, 5])

    @pytest.fixture
    def batch(self, planted: Planted) -> Batch:
        return batch_of(*planted[1:])


class TestThreeD(Colour):
    @pytest.fixture
    def part(self, tmp_path: Path) -> CorruptionThreat:
        return Corruptions3D(root=str(tmp_path), corruptions=("flash",), severities=(3,))

    @pytest.fixture
    def batch(self, tmp_path: Path) -> Batch:
        clean, labels = plant(tmp_path, corruptions=())
        names = tuple(f"n01440764/{index}.JPEG" for index in range(4))
        for name in names:
            path = tmp_path / "ImageNet-3DCC" / "flash" / "3" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(clean[0]).save(path, "JPEG")
        whole = batch_of(clean, labels)
        return Batch(whole.x[:4], whole.y[:4], whole.indices[:4], names)


@pytest.fixture(params=["stand-in", "the library"])
def library(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Something that generates corruptions is installed: a stand-in, or the library itself where it is."""
    if request.param == "stand-in":
        install(tmp_path / "site", "imagecorruptions_imaug", "", imagecorruptions=STAND_IN)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        sys.modules.pop("imagecorruptions", None)
    elif importlib.util.find_spec("imagecorruptions") is None:
        pytest.skip("needs ct-harness[corruptions]")
    yield request.param
    sys.modules.pop("imagecorruptions", None)


@pytest.mark.usefixtures("library")
class TestGenerated(Colour):
    @pytest.fixture
    def part(self) -> CorruptionThreat:
        return Corruptions(severities=(2,))

    @pytest.fixture
    def batch(self, planted: Planted) -> Batch:
        return batch_of(*planted[1:], indices=[4, 2])


# Names and keys


def test_names_are_robustbenchs_in_its_order() -> None:
    import_robustbench()
    data = sys.modules["robustbench.data"]
    assert data.CORRUPTIONS == CORRUPTIONS
    assert data.CORRUPTIONS_3DCC == CORRUPTIONS_3D


def test_every_corruption_at_every_severity_is_a_stage() -> None:
    stages = threat_of(source="CIFAR-10-C").stages
    assert len(stages) == 75
    assert stages[:6] == (
        "shot_noise-1",
        "shot_noise-2",
        "shot_noise-3",
        "shot_noise-4",
        "shot_noise-5",
        "motion_blur-1",
    )
    assert len(Corruptions3D().stages) == 60
    assert threat_of(corruptions=["fog", "snow", "fog"], severities=[5, 2, 5]).stages == (
        "snow-2",
        "snow-5",
        "fog-2",
        "fog-5",
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"corruptions": ["fogg"]}, r"threat\.corruptions: .*'fogg'.*did you mean 'fog'.* known: shot_noise, "),
        ({"corruptions": []}, r"threat\.corruptions: .*at least 1"),
        ({"severities": [0]}, r"threat\.severities\[0\]: .*at least 1, found 0"),
        ({"severities": [6]}, r"threat\.severities\[0\]: .*at most 5, found 6"),
        ({"source": "official"}, r"threat\.source: .*'CIFAR-10-C'.*'generated', found 'official'"),
        ({"kind": "corruptions_3d", "source": "generated"}, r"threat\.source: .*'ImageNet-3DCC', found 'generated'"),
        ({"kind": "corruptions_3d", "corruptions": ["fog"]}, r"threat\.corruptions: .*'fog'.*did you mean 'fog_3d'"),
    ],
)
def test_bad_keys_are_named_with_what_is_allowed(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        threat_of(**keys)


@pytest.mark.parametrize(
    ("dataset", "source"), [("cifar10", "CIFAR-10-C"), ("cifar100", "CIFAR-100-C"), ("digits", "generated")]
)
def test_the_datasets_official_corruptions_are_the_default(dataset: str, source: str) -> None:
    benchmark = mapping(dataset={"kind": dataset}, threat={"kind": "corruptions"}, executor={"kind": "local"}, name="x")
    for keys, expected in ({}, source), ({"source": "generated"}, "generated"):
        threat = parse_benchmark(benchmark | {"threat": {"kind": "corruptions"} | keys}).threat
        assert isinstance(threat, Corruptions)
        assert threat.source == expected


def test_columns_name_the_source_and_the_subset() -> None:
    assert threat_of(source="ImageNet-C").columns() == {"threat": "corruptions", "eps": "", "attack": "ImageNet-C"}
    assert threat_of(source="CIFAR-10-C", severities=[5]).columns()["attack"] == "CIFAR-10-C[at 5]"
    assert official("x", severities=[3, 4]).columns()["attack"] == "CIFAR-10-C[snow+fog at 3+4]"
    assert Corruptions3D().columns() == {"threat": "corruptions_3d", "eps": "", "attack": "ImageNet-3DCC"}


def test_a_subset_is_the_same_threat_as_the_whole() -> None:
    whole = threat_of(source="CIFAR-10-C").identity()
    assert official("elsewhere", severities=[3]).identity() == whole == {"kind": "corruptions", "source": "CIFAR-10-C"}
    assert threat_of(source="CIFAR-100-C").identity() != whole


# Official datasets, beside RobustBench's loaders


@pytest.mark.parametrize(("name", "loader"), [("CIFAR-10-C", "load_cifar10c"), ("CIFAR-100-C", "load_cifar100c")])
def test_images_are_those_that_robustbench_loads(tmp_path: Path, name: str, loader: str) -> None:
    clean, labels = plant(tmp_path, ["frost"], name=name)
    import_robustbench()
    load = getattr(sys.modules["robustbench.data"], loader)
    threat = threat_of(source=name, root=str(tmp_path), corruptions=["frost"])
    threat.prepare(batch_of(clean, labels), offline=True)
    for severity in (1, 5):
        x, y = load(N, severity, str(tmp_path), corruptions=["frost"])
        found = threat.perturb(f"frost-{severity}", UNUSED, batch_of(clean, labels), noise(0))
        assert torch.equal(found, x)
        assert y.tolist() == labels.tolist()
        some = threat.perturb(f"frost-{severity}", UNUSED, batch_of(clean, labels, [7, 3]), noise(1))
        assert torch.equal(some, x[[7, 3]])


def test_image_files_are_those_that_robustbench_loads(tmp_path: Path) -> None:
    import_robustbench()
    data, loaders = sys.modules["robustbench.data"], sys.modules["robustbench.loaders"]
    assert loaders.__file__
    ids = Path(loaders.__file__).parent / "helper_files" / "imagenet_test_image_ids.txt"
    names = ids.read_text().split()
    folder = tmp_path / "ImageNet-C" / "snow" / "4"
    for wnid in {name.partition("/")[0] for name in names}:
        (folder / wnid).mkdir(parents=True)
    drawn = np.random.default_rng(0)
    for name, size in zip(names, [(224, 224), (200, 256), (224, 224)], strict=False):  # one wants resizing
        image = Image.fromarray(drawn.integers(0, 256, (*size, 3), np.uint8))
        image.save(folder / name, "JPEG")
    Image.fromarray(drawn.integers(0, 256, (224, 224), np.uint8)).save(folder / names[2], "JPEG")  # a grey one
    expected = loaders.CustomImageFolder(folder, data.PREPROCESSINGS["Res224"])
    threat = threat_of(source="ImageNet-C", root=str(tmp_path), corruptions=["snow"], severities=[4])
    batch = Batch(torch.zeros(3, 3, 224, 224), torch.zeros(3, dtype=torch.int64), torch.arange(3), tuple(names[:3]))
    threat.prepare(batch, offline=True)
    found = threat.perturb("snow-4", UNUSED, batch, noise(0))
    assert torch.equal(found, torch.stack([expected[index][0] for index in range(3)]))


# Their faults


def faulty(tmp_path: Path, spoil: Callable[[Path], object]) -> tuple[CorruptionThreat, Batch]:
    """A threat whose dataset was spoiled, and its clean images."""
    clean, labels = plant(tmp_path, ["fog"])
    spoil(tmp_path / "CIFAR-10-C")
    return official(tmp_path, corruptions=["fog"]), batch_of(clean, labels)


def cut(folder: Path) -> None:
    with (folder / "fog.npy").open("r+b") as file:
        file.truncate(70_000_000)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "fog.npy").unlink(), r"/fog\.npy: no such file"),
        (lambda folder: (folder / "labels.npy").unlink(), r"/labels\.npy: no such file"),
        (cut, r"/fog\.npy: damaged"),
        (lambda folder: (folder / "fog.npy").write_bytes(b"<html>"), r"/fog\.npy: damaged"),
        (
            lambda folder: np.save(folder / "fog.npy", np.zeros((9, 32, 32, 3), np.uint8)),
            r"/fog\.npy: expected uint8 \[50000, 32, 32, 3\], found uint8 \[9, 32, 32, 3\]",
        ),
        (
            lambda folder: np.save(folder / "labels.npy", np.zeros(50_000)),
            r"/labels\.npy: expected integer \[50000\], found float64 \[50000\]",
        ),
    ],
    ids=["missing", "no labels", "cut", "a web page", "shape", "type"],
)
def test_a_damaged_dataset_is_reported_before_and_while_it_is_used(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    threat, batch = faulty(tmp_path, spoil)
    remedy = r"delete \S+CIFAR-10-C and run again, or unpack https://zenodo\S+\.tar in "
    with pytest.raises(DataError, match=f"{message}.*; {remedy}"):
        threat.prepare(batch, offline=True)
    with pytest.raises(DataError, match=f"{message}.*; {remedy}"):
        threat.perturb("fog-1", UNUSED, batch, noise(0))


def test_a_dataset_that_has_changed_is_refused(tmp_path: Path) -> None:
    clean, labels = plant(tmp_path)
    official(tmp_path).prepare(batch_of(clean, labels), offline=True)
    images = np.load(tmp_path / "CIFAR-10-C" / "fog.npy", mmap_mode="r+")
    images[3, 2, 1, 0] ^= 1
    images.flush()
    with pytest.raises(DataError, match=r"/fog\.npy .*models\.lock recorded .*unpack https://zenodo.*delete the entry"):
        official(tmp_path).prepare(batch_of(clean, labels), offline=True)


def test_a_dataset_of_other_images_is_refused(planted: Planted) -> None:
    root, clean, labels = planted
    other = batch_of(clean, np.where(np.arange(N) == 5, (labels + 1) % 10, labels))
    remedy = "so they do not match; .*set threat.source=generated"
    mismatch = rf"/labels\.npy: image 5 has label {labels[5]} .* {(labels[5] + 1) % 10} in .*{remedy}"
    with pytest.raises(DataError, match=mismatch):
        official(root).prepare(other)
    with pytest.raises(DataError, match=mismatch):
        official(root).perturb("fog-1", UNUSED, other, noise(0))
    beyond = Batch(other.x[:1], other.y[:1], torch.tensor([10_000]))
    found = rf"10,000 images of shape \[3, 32, 32\], .* image 10000 of shape \[3, 32, 32\].*{remedy}"
    with pytest.raises(DataError, match=found):
        official(root).prepare(beyond)
    with pytest.raises(DataError, match=rf"of shape \[3, 8, 8\].*{remedy}"):
        official(root).prepare(Batch(torch.zeros(1, 3, 8, 8), other.y[:1], other.indices[:1]))


def test_missing_images_are_named(tmp_path: Path) -> None:
    threat = threat_of(source="ImageNet-C", root=str(tmp_path), corruptions=["fog", "snow"], severities=[1, 2])
    nameless = Batch(torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64), torch.arange(1))
    with pytest.raises(DataError, match=r"threat\.source: ImageNet-C .*file name.*use dataset: \{kind: imagenet"):
        threat.prepare(nameless)
    batch = Batch(nameless.x, nameless.y, nameless.indices, ("n01440764/a.JPEG",))
    with pytest.raises(DataMissing, match=r"/ImageNet-C: .*snow/1, snow/2, fog/1, fog/2; get ImageNet-C from http"):
        threat.prepare(batch)
    for stage in ("snow/1", "snow/2", "fog/1", "fog/2"):
        (tmp_path / "ImageNet-C" / stage).mkdir(parents=True)
    with pytest.raises(DataMissing, match=r"/snow/1/n01440764/a\.JPEG: no such file; get ImageNet-C from http"):
        threat.prepare(batch)
    (tmp_path / "ImageNet-C/snow/1/n01440764").mkdir()
    (tmp_path / "ImageNet-C/snow/1/n01440764/a.JPEG").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"snow/1/n01440764/a\.JPEG: not an image"):
        threat.perturb("snow-1", UNUSED, batch, noise(0))


# The download


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of the archive in a mirror that is tried before Zenodo; nothing waits, and nothing else answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CT_HARNESS_MIRROR", f"file://{tmp_path / 'mirror'}")
    monkeypatch.setattr("harness.util.downloads.FIRST_WAIT_S", 0.0)
    own = downloads.from_web

    def from_mirror_alone(url: str, path: Path) -> None:
        if not url.startswith("file:"):
            raise OSError("no route")
        own(url, path)

    monkeypatch.setattr("harness.util.downloads.from_web", from_mirror_alone)
    place = tmp_path / "mirror" / "zenodo.org" / "records" / "2535967" / "files"
    place.mkdir(parents=True)
    return place / ARCHIVE


def pack(folder: Path, archive: Path) -> None:
    with tarfile.open(archive, "w") as packed:
        packed.add(folder / "CIFAR-10-C", "CIFAR-10-C")


def test_a_missing_dataset_is_downloaded_once(tmp_path: Path, mirror: Path, planted: Planted) -> None:
    plant(tmp_path / "original")
    pack(tmp_path / "original", mirror)
    official(tmp_path / "new").prepare(batch_of(*planted[1:]))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["CIFAR-10-C"]
    mirror.unlink()
    official(tmp_path / "new").prepare(batch_of(*planted[1:]))
    assert "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar" in (tmp_path / "models.lock").read_text()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no connection", r"/CIFAR-10-C\.tar: .*no route.*by hand, open https://zenodo"),
        ("web page", r"/CIFAR-10-C\.tar: .*file:.*not a tar archive.*by hand, open https://zenodo"),
        ("cut inside", r"/CIFAR-10-C\.tar .*fog\.npy.*; delete it and run again, or unpack https://zenodo"),
    ],
)
def test_half_a_download_is_not_kept(tmp_path: Path, mirror: Path, planted: Planted, fault: str, message: str) -> None:
    if fault == "web page":
        mirror.write_text("<html>")
    if fault == "cut inside":
        plant(tmp_path / "original")
        cut(tmp_path / "original" / "CIFAR-10-C")
        pack(tmp_path / "original", mirror)
    with pytest.raises(DataError, match=message):
        official(tmp_path / "new").prepare(batch_of(*planted[1:]))
    assert not (tmp_path / "new" / "CIFAR-10-C").exists()
    assert {path.name for path in (tmp_path / "new").iterdir()} <= {ARCHIVE}


def test_offline_and_in_a_stage_nothing_is_downloaded(tmp_path: Path, mirror: Path, planted: Planted) -> None:
    plant(tmp_path / "original")
    pack(tmp_path / "original", mirror)
    batch = batch_of(*planted[1:])
    with pytest.raises(DataMissing, match=r"/CIFAR-10-C: .*offline.*; unpack https://zenodo\S+ in \S+ by hand"):
        official(tmp_path).prepare(batch, offline=True)
    with pytest.raises(DataMissing, match=r"labels\.npy: no such file"):
        official(tmp_path).perturb("fog-1", UNUSED, batch, noise(0))


# Generated corruptions


@pytest.mark.usefixtures("library")
def test_an_image_does_not_depend_on_its_companions(planted: Planted) -> None:
    _, clean, labels = planted
    threat = threat_of()
    np.random.seed(1)
    drawn = np.random.rand()
    np.random.seed(1)
    for stage in ("gaussian_noise-3", "impulse_noise-3", "glass_blur-3"):
        together = threat.perturb(stage, UNUSED, batch_of(clean, labels, [4, 2, 9]), noise(7))
        alone = threat.perturb(stage, UNUSED, batch_of(clean, labels, [2]), noise(7))
        assert torch.equal(together[1:2], alone)
        assert not torch.equal(alone, threat.perturb(stage, UNUSED, batch_of(clean, labels, [2]), noise(8)))
        assert not torch.equal(alone, batch_of(clean, labels, [2]).x)
    assert np.random.rand() == drawn  # the caller's random numbers are left alone


def test_corruptions_are_those_of_the_paper(library: str, planted: Planted) -> None:
    if library == "stand-in":
        pytest.skip("of the library alone")
    batch = batch_of(*planted[1:], indices=[0, 1])
    x = batch.x.numpy()
    means = x.mean((2, 3), keepdims=True)
    for severity, share in ((1, 0.4), (5, 0.05)):
        found = threat_of().perturb(f"contrast-{severity}", UNUSED, batch, noise(0)).numpy()
        assert np.abs(found - ((x - means) * share + means)).max() <= 1 / 255 + 1e-6  # cut to 8 bits


def test_the_library_and_its_version_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "imagecorruptions_imaug", "", imagecorruptions=STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert threat_of().columns()["attack"] == "generated:imagecorruptions-imaug-1.0"
    assert threat_of().identity()["source"] == "generated:imagecorruptions-imaug-1.0"


def test_a_missing_library_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch, planted: Planted) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("harness.threats.corruption_sources.generated.metadata.version", missing)
    with pytest.raises(SpecError, match=r"threat\.source: .*pip install 'ct-harness\[corruptions\]'"):
        threat_of().prepare(batch_of(*planted[1:]))


def test_images_too_small_for_the_library_are_refused() -> None:
    digits = Batch(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64), torch.arange(1))
    with pytest.raises(DataError, match=r"threat\.source: .*32×32 .*found 1×8×8; use larger images"):
        threat_of().prepare(digits)


# The mean corruption error


def test_alexnet_has_100() -> None:
    for threat in (threat_of(source="ImageNet-C"), Corruptions3D()):
        accuracy = alexnet()[threat.source]
        assert tuple(sorted(accuracy)) == tuple(sorted(threat.stages))
        assert threat.summary_columns(accuracy) == {"mce": pytest.approx(100, abs=1e-9)}
        perfect, blind = dict.fromkeys(accuracy, 1.0), dict.fromkeys(accuracy, 0.0)
        assert threat.summary_columns(perfect) == {"mce": 0}
        assert threat.summary_columns(blind)["mce"] > 100
        halved = {stage: (1 + value) / 2 for stage, value in accuracy.items()}  # half of its errors
        assert threat.summary_columns(halved) == {"mce": pytest.approx(50, abs=1e-9)}


def test_alexnets_figures_are_those_that_robustbench_publishes() -> None:
    means = {name: round(100 * sum(stages.values()) / len(stages), 2) for name, stages in alexnet().items()}
    assert means == {"ImageNet-C": 21.12, "ImageNet-3DCC": 28.47}


def test_mce_is_a_mean_of_ratios() -> None:
    accuracy = {"a-1": 0.9, "a-2": 0.7, "b-1": 0.5, "b-2": 0.5}
    reference = {"a-1": 0.5, "a-2": 0.5, "b-1": 0.8, "b-2": 0.7}
    assert mce(accuracy, reference) == pytest.approx(100 * (0.4 / 1.0 + 1.0 / 0.5) / 2)


def test_mce_of_a_subset_or_of_another_source_is_left_out() -> None:
    whole = alexnet()["ImageNet-C"]
    assert threat_of(source="ImageNet-C").summary_columns({stage: 0.5 for stage in whole if stage != "fog-3"}) == {}
    assert threat_of(source="CIFAR-10-C").summary_columns(whole) == {}
    assert threat_of(source="generated").summary_columns(whole) == {}


# From the file to the leaderboard

Colourful = tuple[dict[str, Any], nn.Module, np.ndarray]
"""A benchmark, its network, and the labels of its images."""


@pytest.fixture
def benchmark(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Colourful]:
    """A benchmark of 24 colour images, two corruptions at two severities; its network and its labels."""
    (here / "colour.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(here))
    sys.modules.pop("colour", None)
    network = importlib.import_module("colour").network()

    def mostly_right(clean: np.ndarray) -> np.ndarray:
        y: np.ndarray = network(torch.from_numpy(clean).permute(0, 3, 1, 2).float() / 255).argmax(1).numpy()
        return np.where(np.arange(N) % 4 == 0, (y + 1) % 10, y)

    clean, labels = plant(here / "data", labels=mostly_right)
    np.savez(here / "colour.npz", x=clean.transpose(0, 3, 1, 2), y=labels)
    yield (
        mapping(
            name="tiny",
            models=[{"kind": "checkpoint", "builder": "colour:network"}],
            dataset={"kind": "arrays", "path": "colour.npz"},
            threat={
                "kind": "corruptions",
                "source": "CIFAR-10-C",
                "corruptions": ["fog", "snow"],
                "severities": [1, 4],
            },
            steering={"beta": [0.5]},
            search={"kind": "full"},
        ),
        network,
        labels,
    )
    sys.modules.pop("colour", None)


def by_hand(network: nn.Module, labels: np.ndarray) -> np.ndarray:
    """The survivors of each stage, bool [4, n], straight from the planted files."""
    survived = []
    for name in ("snow", "fog"):
        images = np.load(f"data/CIFAR-10-C/{name}.npy", mmap_mode="r")
        for first in (0, 30_000):
            x = torch.from_numpy(images[first : first + N] / np.float32(255)).permute(0, 3, 1, 2)
            with torch.no_grad():
                survived.append(network(x).argmax(1).numpy() == labels)
    return np.array(survived)


def test_a_board_is_the_mean_over_the_stages(benchmark: Colourful) -> None:
    mapping, network, labels = benchmark
    [entry] = pipeline.entries(parse_benchmark(mapping), runs="runs")
    board = ranking.board([entry])
    survived = by_hand(network, labels)
    assert 0 < survived.mean() < 1
    base = board[(board["beta"] == 1) & (board["status"] == "ok")].iloc[0]
    assert base["robust"] == pytest.approx(survived.mean(), abs=1e-6)
    assert base["clean"] == pytest.approx(0.75)
    assert (base["threat"], base["attack"]) == ("corruptions", "CIFAR-10-C[snow+fog at 1+4]")
    assert base["robust_aa"] is None

    first, second = sorted(entry.scores, key=lambda score: -score.steering.beta)
    assert np.allclose(first.robust, survived.mean(0))
    steered = board[board["beta"] == 0.5].iloc[0]
    difference = second.robust - first.robust
    assert set(np.unique(difference * 4)) - {-4, 0, 4}  # graded, not bits
    assert steered["delta_pp"] == pytest.approx(100 * difference.mean(), abs=1e-3)
    assert (steered["gained"], steered["lost"]) == ((difference > 0).sum(), (difference < 0).sum())
    assert steered["delta_low"] <= steered["delta_pp"] <= steered["delta_high"]

    table = outcomes.table([entry])
    of_base = table[table["beta"] == "1"].set_index("stage")["outcomes"]
    assert list(of_base.index) == ["clean", "snow-1", "snow-4", "fog-1", "fog-4"]
    for stage, row in zip(of_base.index[1:], survived, strict=True):
        assert of_base[stage] == "".join("1" if one else "0" for one in row)


def test_a_run_reuses_the_trials_of_other_subsets(benchmark: Colourful) -> None:
    mapping, *_ = benchmark

    def run(runs: str, **keys: Any) -> pd.DataFrame:
        return harness.run(parse_benchmark(mapping | {"threat": mapping["threat"] | keys}), runs=runs)

    run("runs", corruptions=["snow"])
    first = trials(Path("runs"))
    board = run("runs")
    whole = trials(Path("runs"))
    assert {key: whole.get(key) for key in first} == first
    assert len(whole) - len(first) == 2 * 2 * 24  # two more stages, two β
    run("runs", severities=[4])
    assert trials(Path("runs")) == whole
    assert board.drop(columns="seconds").equals(run("elsewhere").drop(columns="seconds"))


def test_a_missing_dataset_stops_the_run_before_a_cell_is_computed(benchmark: Colourful) -> None:
    mapping, *_ = benchmark
    Path("data/CIFAR-10-C/fog.npy").unlink()
    with pytest.raises(DataMissing, match=r"/CIFAR-10-C/fog\.npy: no such file"):
        harness.run(parse_benchmark(mapping), runs="runs", offline=True)
    assert not trials(Path("runs"))
