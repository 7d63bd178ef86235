"""Models of torchvision and timm, and Swin Transformers with ReLUs: the library's network, normalised inside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import models as zoo
from torchvision.transforms import Compose, Normalize

from harness.api.model import Model
from harness.api.records import Preprocessing
from harness.curvature.steering import steer
from harness.datasets.sources.image_files import read_image
from harness.errors import ModelError
from harness.models.architectures.relu_swin import relu_swin_small, relu_swin_tiny
from harness.models.checkpoint import Checkpoint
from harness.models.normalisation import Normalised
from harness.models.timm import Timm, timm_preprocessing
from harness.models.torchvision import TorchVision
from harness.testing import ModelContract

SMALL = "shufflenet_v2_x0_5"
TINY = "test_byobnet"
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and empty caches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))


@pytest.fixture(scope="session")
def shuffle() -> nn.Module:
    """torchvision's smallest network with ReLUs, initialised at random."""
    torch.manual_seed(0)
    network: nn.Module = zoo.get_model(SMALL, weights=None)
    return network.eval()


@pytest.fixture(scope="session")
def byob() -> nn.Module:
    """timm's smallest network with ReLUs, initialised at random."""
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(TINY)
    return network.eval()


def normalised(network: nn.Module, mean: Any, std: Any) -> torch.Tensor:
    """The oracle: logits of the network on images normalised outside."""
    with torch.no_grad():
        logits: torch.Tensor = network(Normalize(mean, std)(IMAGES))
    return logits


def random_image(path: Path, size: tuple[int, int]) -> Path:
    """Write an image of ``size`` (width, height) with random pixels."""
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


# --- torchvision ---


class TestTorchVision(ModelContract):
    shape = (3, 64, 64)

    @pytest.fixture
    def part(self, shuffle: nn.Module, tmp_path: Path) -> Model:
        torch.save(shuffle.state_dict(), tmp_path / "own.pt")
        return TorchVision(name=SMALL, file=str(tmp_path / "own.pt"))


def test_a_checkpoint_in_the_cache_of_torch_hub_is_recorded(shuffle: nn.Module, monkeypatch: Any) -> None:
    entry = zoo.get_model_weights(SMALL).IMAGENET1K_V1
    monkeypatch.setattr(entry.value, "url", "https://example.org/shuffle.pth")  # no hash in its name
    file = Path("torch/hub/checkpoints/shuffle.pth")
    file.parent.mkdir(parents=True)
    torch.save(shuffle.state_dict(), file)
    transforms = entry.transforms()
    with torch.no_grad():
        logits = TorchVision(name=SMALL).load(offline=True).network(IMAGES)
    assert torch.allclose(logits, normalised(shuffle, transforms.mean, transforms.std), atol=1e-5)
    assert list(json.loads(Path("models.lock").read_text())) == ["https://example.org/shuffle.pth"]
    assert "get_state_dict" not in vars(type(entry))


def test_a_network_is_built_as_the_entry_of_its_weights_says(tmp_path: Path) -> None:
    """GoogLeNet with pretrained weights transforms its input: the entry of the weights says so, not the file."""
    torch.manual_seed(0)
    torch.save(zoo.get_model("googlenet", weights=None, init_weights=False).state_dict(), "own.pt")
    network = TorchVision(name="googlenet", file="own.pt").load(offline=True).network
    assert isinstance(network, Normalised)
    assert network.network.transform_input
    assert network.network.aux1 is None


def test_images_are_preprocessed_as_torchvision_does_for_all_its_weights(tmp_path: Path) -> None:
    path = random_image(tmp_path / "odd.png", (331, 257))
    seen = set()
    for name in TorchVision.names()["torchvision"]:
        for entry in zoo.get_model_weights(name):
            ours = TorchVision(name=name, weights=entry.name).preprocessing()
            transforms = entry.transforms()
            if (ours, *transforms.mean) in seen:
                continue
            seen.add((ours, *transforms.mean))
            image = Normalize(transforms.mean, transforms.std)(read_image(path, ours))
            with Image.open(path) as opened:
                assert torch.equal(image, transforms(opened)), (name, entry)
    assert len(seen) > 20


def test_the_label_names_the_weights_if_they_are_not_the_default() -> None:
    assert TorchVision(name="resnet50").label == "resnet50"
    assert TorchVision(name="resnet50", weights="IMAGENET1K_V1").label == "resnet50 IMAGENET1K_V1"
    assert TorchVision(name="resnet50").preprocessing() == Preprocessing(232, 224, "bilinear")
    assert TorchVision(name="resnet50", weights="IMAGENET1K_V1").preprocessing() == Preprocessing(256, 224, "bilinear")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"name": "resnet81"},
            r"no classifier 'resnet81' \(did you mean 'resnet\d+'\?\); `ct-harness list models`",
        ),
        ({"name": "fcn_resnet50"}, "no classifier 'fcn_resnet50'"),
        (
            {"name": "resnet50", "weights": "IMAGENET1K_V3"},
            r"no weights 'IMAGENET1K_V3' \(did you mean 'IMAGENET1K_V\d'\?\).*resnet50.*"
            "IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT",
        ),
        ({"name": SMALL}, r"/shufflenetv2_x0\.5-f707e7126e\.pth: no such file, .*offline.* open https://do"),
        (
            {"name": SMALL, "file": "gone.pt"},
            rf"^file: no file \S+/gone\.pt; give .*{SMALL}$",
        ),
    ],
)
def test_a_torchvision_model_that_does_not_exist_is_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        TorchVision(**fields).load(offline=True)


@pytest.mark.parametrize(("kind", "name"), [(TorchVision, SMALL), (Timm, TINY)])
def test_a_file_that_is_not_a_checkpoint_of_the_model_is_refused(kind: type[TorchVision | Timm], name: str) -> None:
    Path("page.pt").write_text("<html>")
    torch.save({"fc.weight": torch.ones(1)}, "other.pt")
    with pytest.raises(ModelError, match=r"/page\.pt is a web page .*; get the file again"):
        kind(name=name, file="page.pt").load(offline=True)
    message = rf"/other\.pt is a checkpoint of another architecture .*\d+ missing.*; give a checkpoint of {name}$"
    with pytest.raises(ModelError, match=message):
        kind(name=name, file="other.pt").load(offline=True)


# --- timm ---


class TestTimm(ModelContract):
    shape = (3, 64, 64)

    @pytest.fixture
    def part(self, byob: nn.Module, tmp_path: Path) -> Model:
        save_file(byob.state_dict(), tmp_path / "own.safetensors")
        return Timm(name=f"{TINY}.r160_in1k", file=str(tmp_path / "own.safetensors"))


def cached(repo: str, network: nn.Module, config: dict[str, Any] | None = None) -> Path:
    """Write a repository as huggingface_hub caches it, and return its directory."""
    directory = Path("hf") / f"models--{repo.replace('/', '--')}"
    snapshot = directory / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (directory / "refs").mkdir()
    (directory / "refs" / "main").write_text("0" * 40)
    save_file(network.state_dict(), snapshot / "model.safetensors")
    if config is not None:
        (snapshot / "config.json").write_text(json.dumps(config))
    return snapshot


@pytest.mark.parametrize("name", [TINY, f"{TINY}.r160_in1k"])
def test_a_model_in_the_cache_of_hugging_face(byob: nn.Module, name: str) -> None:
    cached(f"timm/{TINY}.r160_in1k", byob)
    cfg = timm.get_pretrained_cfg(name)
    with torch.no_grad():
        logits = Timm(name=name).load(offline=True).network(IMAGES)
    assert torch.allclose(logits, normalised(byob, cfg.mean, cfg.std), atol=1e-5)
    [url] = json.loads(Path("models.lock").read_text())
    assert url == f"https://huggingface.co/timm/{TINY}.r160_in1k/resolve/main/model.safetensors"


def test_any_repository_of_the_hub_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes, mean, std and size are its own; no request is made, since it is cached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    torch.manual_seed(1)
    network = timm.create_model(TINY, num_classes=7).eval()
    cfg: dict[str, Any] = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "input_size": [3, 96, 96], "crop_pct": 0.9}
    cached("user/net", network, {"architecture": TINY, "num_classes": 7, "pretrained_cfg": cfg | {"tag": "mine"}})
    model = Timm(name="hf_hub:user/net")
    with torch.no_grad():
        logits = model.load(offline=True).network(IMAGES)
    assert torch.allclose(logits, normalised(network, cfg["mean"], cfg["std"]), atol=1e-5)
    assert model.preprocessing() == Preprocessing(106, 96, "bicubic")
    assert [url.rpartition("/")[2] for url in json.loads(Path("models.lock").read_text())] == [
        "config.json",
        "model.safetensors",
    ]


def test_images_are_preprocessed_as_timm_does_for_all_its_models(tmp_path: Path) -> None:
    from timm.data import create_transform, resolve_data_config

    path = random_image(tmp_path / "odd.png", (331, 257))
    seen, refused = set(), set()
    for name in timm.list_pretrained():
        cfg = timm.get_pretrained_cfg(name)
        config = resolve_data_config(pretrained_cfg=cfg.to_dict())
        key = (config["input_size"], config["interpolation"], config["crop_pct"], config["crop_mode"])
        if key in seen or config["input_size"][1] > 300:
            continue
        seen.add(key)
        try:
            ours = timm_preprocessing(cfg)
        except ModelError:
            refused.add(config["crop_mode"])
            continue
        *steps, _ = create_transform(**config).transforms  # without its normalisation
        with Image.open(path) as opened:
            assert torch.equal(read_image(path, ours), Compose(steps)(opened)), name
    assert len(seen) > 20
    assert refused <= {"border"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"name": "resnet81"},
            r"no model 'resnet81' \(did you mean 'resnet\w+'\?\); `ct-harness list models`",
        ),
        (
            {"name": f"{TINY}.r161_in1k"},
            rf"no weights '{TINY}\.r161_in1k' \(did you mean '{TINY}\.r160_in1k'",
        ),
        ({"name": "resnet18.nope"}, r"of resnet18 it has: .*resnet18\.a1_in1k"),
        (
            {"name": TINY},
            rf"^https://huggingface\.co/timm/{TINY}\.r160_in1k/resolve/main/model\.safetensors or \S+pytorch_model\.bin"
            rf": not in the cache .*offline.*give it to {TINY}",
        ),
        (
            {"name": "hf_hub:user/gone"},
            r"^https://\S+/user/gone/resolve/main/config\.json: not in the cache .*weights under file",
        ),
        ({"name": TINY, "file": "gone.pt"}, rf"^file: no file \S+/gone\.pt; give .*{TINY}$"),
    ],
)
def test_a_timm_model_that_does_not_exist_is_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Timm(**fields).load(offline=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, r"config\.json: no timm config .*'architecture'.*name a repository of a timm model"),
        (
            {"architecture": "resnet_of_2040"},
            r"config\.json: timm \S+ has no architecture 'resnet_of_2040'; try a newer",
        ),
    ],
)
def test_a_repository_of_another_library_is_refused(byob: nn.Module, config: dict[str, Any], message: str) -> None:
    cached("user/net", byob, config)
    with pytest.raises(ModelError, match=message):
        Timm(name="hf_hub:user/net").load(offline=True)


# --- Swin with ReLUs ---


@pytest.mark.parametrize(("builder", "sites", "size"), [(relu_swin_tiny, 12, "tiny"), (relu_swin_small, 24, "small")])
def test_swin_has_its_relus_and_timms_keys(builder: Any, sites: int, size: str) -> None:
    network = builder().eval()
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(nn.ReLU) == sites
    assert nn.GELU not in kinds
    x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    coverage = steer(network, 0.5, example=x).coverage
    assert coverage is not None
    assert (coverage.sites, coverage.steered, dict(coverage.kinds)) == (sites, sites, {"relu": sites})
    theirs = timm.create_model(f"swin_{size}_patch4_window7_224").state_dict()
    ours = network.state_dict()
    assert list(ours) == list(theirs)
    assert all(ours[key].shape == theirs[key].shape for key in theirs)


def test_a_checkpoint_of_swin(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Checkpoint(builder="harness.models.architectures.relu_swin:relu_swin_tiny", mean=(0.5,) * 3, std=(0.5,) * 3)
    network = model.load(offline=True).network
    assert isinstance(network, Normalised)
    assert network.network.num_classes == 1000


def test_parsing_a_benchmark_imports_no_torch() -> None:
    parts = (
        "models.torchvision",
        "models.timm",
        "datasets.imagenet",
        "datasets.image_folder",
        "datasets.sources.image_files",
    )
    imports = ", ".join(f"harness.{part}" for part in parts)
    code = f"import sys, {imports}; print(sorted({{'torch', 'numpy', 'PIL', 'tenacity'}} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
