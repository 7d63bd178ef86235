"""Models from files and from RobustBench: the right weights, or an error that names the fault."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyautoattack
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from harness.api.model import Model
from harness.api.registry import build
from harness.errors import ModelError, SpecError
from harness.models.checkpoint import Checkpoint
from harness.models.checkpoint_files import mismatch
from harness.models.robustbench import RobustBench, import_robustbench

SHIPPED = Path(pyautoattack.__file__).parent / "examples" / "model_test.pt"
"""A ResNet-18 for CIFAR-10 that pyautoattack ships: a real checkpoint, 44 MB."""
RESNET = "pyautoattack.examples.resnet:ResNet18"
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
WEB_PAGE = b"\n<!DOCTYPE html><html>Google Drive could not scan this file</html>"


class Trap:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return pickle_bait, (str(self.path),)


def pickle_bait(path: str) -> None:
    Path(path).touch()


@pytest.fixture(scope="module")
def shipped_logits() -> torch.Tensor:
    """The oracle: logits of the shipped ResNet-18, built and loaded without the harness."""
    from pyautoattack.examples.resnet import ResNet18

    network: nn.Module = ResNet18()
    network.load_state_dict(torch.load(SHIPPED, map_location="cpu"))
    with torch.no_grad():
        logits: torch.Tensor = network.eval()(IMAGES)
    return logits


# --- any checkpoint ---

NETWORKS = """
import torch
from torch import nn

def tiny():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))

def trained():
    torch.manual_seed(0)
    return tiny()

class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.Linear(12, 2)

def broken():
    raise ValueError("no such depth")

def number():
    return 3

def needs(depth):
    return tiny()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of networks."""
    (tmp_path / "my_networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    return tmp_path


def tiny(width: int = 4) -> nn.Sequential:
    torch.manual_seed(1)
    layers = nn.Linear(12, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2)
    network = nn.Sequential(nn.Flatten(), *layers)
    network(torch.rand(8, 3, 2, 2))  # running statistics other than the initial ones
    return network.eval()


def own_model(**fields: Any) -> Checkpoint:
    return Checkpoint(**({"builder": "my_networks:tiny"} | fields))


def parallel(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"module.{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"state_dict": parallel(state)},
    ],
    ids=["bare", "state_dict", "model", "data-parallel"],
)
def test_a_state_dict_is_found_under_any_usual_key(here: Path, wrap: Callable[[Any], Any]) -> None:
    expected = tiny()
    torch.save(wrap(expected.state_dict()), "weights.pt")
    network = own_model(weights="weights.pt").load(offline=True).network
    x = torch.rand(3, 3, 2, 2)
    assert not any(module.training for module in network.modules())
    assert torch.equal(network(x), expected(x))


def test_safetensors_give_the_same_network_as_torch(here: Path) -> None:
    torch.save(tiny().state_dict(), "weights.pt")
    save_file(tiny().state_dict(), "weights.safetensors")
    assert own_model(weights="weights.pt").load().sha256 == own_model(weights="weights.safetensors").load().sha256


def test_a_network_whose_own_keys_begin_with_module_keeps_them(here: Path) -> None:
    expected = nn.Linear(12, 2)
    torch.save(parallel(expected.state_dict()), "weights.pt")
    network = own_model(builder="my_networks:Parallel", weights="weights.pt").load().network
    assert torch.equal(network.state_dict()["module.weight"], expected.weight)


def test_without_weights_the_builder_returns_the_trained_network(here: Path) -> None:
    model = own_model(builder="my_networks:trained")
    assert model.label == "trained"
    assert model.load().sha256 == model.load().sha256
    assert not model.load().network.training


def test_the_shipped_checkpoint_of_an_installed_package(shipped_logits: torch.Tensor) -> None:
    loaded = Checkpoint(builder=RESNET, weights="pkg:pyautoattack/examples/model_test.pt").load()
    with torch.no_grad():
        assert torch.equal(loaded.network(IMAGES), shipped_logits)


def test_the_normalisation_is_inside_and_hashed(here: Path) -> None:
    expected = tiny()
    torch.save(expected.state_dict(), "weights.pt")
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.1, 0.25)
    loaded = own_model(weights="weights.pt", mean=mean, std=std).load()
    x = torch.rand(3, 3, 2, 2)
    by_hand = torch.stack([(x[:, i] - mean[i]) / std[i] for i in range(3)], dim=1)
    torch.testing.assert_close(loaded.network(x), expected(by_hand))
    assert not any(module.training for module in loaded.network.modules())
    assert torch.equal(pickle.loads(pickle.dumps(loaded.network))(x), loaded.network(x))
    for other in ({"mean": mean, "std": (1, 1, 1)}, {"mean": (0, 0, 0), "std": std}):
        assert own_model(weights="weights.pt", **other).load().sha256 != loaded.sha256


def test_the_path_of_the_weights_and_the_name_are_not_part_of_the_identity() -> None:
    assert own_model(weights="a.pt", name="a").identity() == own_model(weights="b.pt").identity()
    assert own_model(mean=(0,), std=(1,)).identity() != own_model().identity()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"builder": "tiny"}, r"models\[0\]\.builder: .*package\.module:callable, .*found 'tiny'"),
        ({"builder": "a.b:c()"}, r"models\[0\]\.builder: .*package\.module:callable"),
        ({"mean": [0.5]}, r"models\[0\]: mean without std; give both"),
        ({"std": [0.5]}, r"models\[0\]: std without mean"),
        ({"mean": [0.5], "std": [1, 1, 1]}, r"models\[0\]: mean has 1 channels and std 3"),
        ({"mean": [0.5], "std": [0]}, r"models\[0\]\.std\[0\]: .*above 0.*found 0"),
        ({"mean": [float("nan")], "std": [1]}, r"models\[0\]\.mean\[0\]: .*finite"),
    ],
)
def test_a_wrong_field_is_found_before_anything_is_loaded(fields: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build("models", {"kind": "checkpoint", "builder": "a:b"} | fields, "models[0]")


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        ("nowhere_at_all:tiny", r"'nowhere_at_all' cannot be imported .*; install its package"),
        ("my_networks:tine", r"my_networks\.py has no 'tine' \(did you mean 'tiny'\?\)"),
        ("my_networks:broken", r"raised ValueError\('no such depth'\)"),
        ("my_networks:needs", r"raised TypeError.*depth.*without arguments"),
        ("my_networks:number", r"returned a int; .*nn\.Module"),
    ],
)
def test_a_builder_that_fails_is_named(here: Path, builder: str, message: str) -> None:
    before = list(sys.path)
    with pytest.raises(ModelError, match=message) as caught:
        own_model(builder=builder).load()
    assert str(caught.value).startswith(f"builder '{builder}': ")
    assert sys.path == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WEB_PAGE, r"is a web page .*'<!DOCTYPE html>.*; get the file again"),
        (b"", r"is empty; get the file again"),
        (b"hello", r"is cut short or not a torch checkpoint .*5 bytes"),
        (pickle.dumps(Trap(Path("sprung")), protocol=2), "holds Python objects"),
        ([1, 2], r"holds a list.*state dict"),
        ({"acc": np.float64(0.5)}, r"holds Python objects \(numpy\S*scalar\) .*save its state dict alone"),
        ({"trap": Trap(Path("sprung"))}, r"holds Python objects \(\S*test_models\.pickle_bait\)"),
    ],
    ids=["page", "empty", "text", "pickle", "list", "numpy", "trap"],
)
def test_a_file_that_is_not_a_checkpoint_is_refused_and_its_code_never_run(
    here: Path, content: Any, message: str
) -> None:
    if isinstance(content, bytes):
        Path("weights.pt").write_bytes(content)
    else:
        torch.save(content, "weights.pt")
    with pytest.raises(ModelError, match=message) as caught:
        own_model(weights="weights.pt").load()
    assert str(caught.value).startswith(f"weights: {here / 'weights.pt'} ")
    assert not Path("sprung").exists()


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_truncated_file_is_refused(here: Path, name: str, share: float) -> None:
    save: Callable[..., None] = torch.save if name == "weights.pt" else save_file
    save(tiny().state_dict(), name)
    whole = Path(name).read_bytes()
    Path(name).write_bytes(whole[: int(len(whole) * share)])
    kind = "safetensors file" if name.endswith("safetensors") else "checkpoint without its end"
    with pytest.raises(ModelError, match=rf"{name} is cut short.* {kind}.*; get the file again"):
        own_model(weights=name).load()


def test_the_keys_of_another_architecture_are_counted(here: Path) -> None:
    state = tiny(width=5).state_dict()
    del state["4.bias"]
    torch.save(state | {"extra": torch.ones(1)}, "weights.pt")
    message = (
        r"another architecture \(keys: 1 missing, such as '4\.bias'; 1 unexpected, such as 'extra'; "
        r"7 of another shape, such as '1\.weight' \(\[5, 12\] in the file, expected \[4, 12\]\)"
    )
    with pytest.raises(ModelError, match=message):
        own_model(weights="weights.pt").load()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("gone.pt", r"weights: no file .*gone\.pt; give a path"),
        ("pkg:no_such_package/a.pt", "no package 'no_such_package'; install it"),
        ("pkg:pyautoattack/a.pt", r"no file 'a\.pt' in .*pyautoattack; install a version"),
    ],
)
def test_missing_weights_are_named(here: Path, weights: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        own_model(weights=weights).load()


def test_another_error_is_not_a_mismatch() -> None:
    assert mismatch(KeyError("last")) is None


# --- RobustBench's zoo ---

NAME = "Sehwag2021Proxy_R18"


def place(directory: Path, content: bytes, name: str = NAME, dataset: str = "cifar10") -> Path:
    """Write ``content`` where RobustBench looks for the weights of ``name``."""
    file = directory / dataset / "Linf" / f"{name}.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def zoo(directory: Path, name: str = NAME, **fields: Any) -> RobustBench:
    return RobustBench(**({"name": name, "model_dir": str(directory)} | fields))


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, where ``models.lock`` is written."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes | Exception | None], list[str]]:
    """Makes Google Drive answer with ``content``, and returns a list to which the requested ids are added."""

    def answer(content: bytes | Exception | None) -> list[str]:
        requested: list[str] = []

        def download(id: str, output: str) -> None:
            requested.append(id)
            print("gdown prints")
            if isinstance(content, Exception):
                Path(output + "tmp").write_bytes(b"half")  # what gdown leaves of a broken download
                raise content
            if content is not None:
                Path(output).write_bytes(content)

        monkeypatch.setattr(import_robustbench().gdown, "download", download)
        return requested

    return answer


def test_a_model_of_the_zoo_is_robustbenchs_own(
    tmp_path: Path, shipped_logits: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    place(tmp_path, SHIPPED.read_bytes())
    loaded = zoo(tmp_path).load(offline=True)
    with torch.no_grad():
        assert torch.equal(loaded.network(IMAGES), shipped_logits)
    assert not loaded.network.training
    assert capsys.readouterr().out == ""
    assert loaded.sha256 == Checkpoint(builder=RESNET, weights=str(SHIPPED)).load().sha256


def test_a_download_is_checked_and_then_kept(tmp_path: Path, drive: Any, capsys: pytest.CaptureFixture[str]) -> None:
    requested = drive(SHIPPED.read_bytes())
    first = zoo(tmp_path).load()
    assert first.sha256 == zoo(tmp_path).load(offline=True).sha256
    assert requested == ["1-ZgoSlD_AMhtXdnUElilxVXnzK2DcHuu"]
    assert [file.name for file in (tmp_path / "cifar10" / "Linf").iterdir()] == [f"{NAME}.pt"]
    [(url, entry)] = json.loads(Path("models.lock").read_text()).items()
    assert url == "https://drive.google.com/uc?id=1-ZgoSlD_AMhtXdnUElilxVXnzK2DcHuu"
    assert entry == {"size": SHIPPED.stat().st_size, "sha256": hashlib.sha256(SHIPPED.read_bytes()).hexdigest()}
    assert capsys.readouterr().out == ""


def test_another_checkpoint_in_its_place_is_refused(tmp_path: Path) -> None:
    place(tmp_path, SHIPPED.read_bytes())
    zoo(tmp_path).load(offline=True)
    state = torch.load(SHIPPED, map_location="cpu")
    state["linear.bias"] += 1
    torch.save(state, place(tmp_path, b""))
    with pytest.raises(
        ModelError, match=rf"{NAME}\.pt is not what \S+/models\.lock recorded for https://drive.*delete"
    ):
        zoo(tmp_path).load(offline=True)


def test_a_mirror_is_used_in_place_of_google_drive(tmp_path: Path, drive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = drive(RuntimeError("Quota exceeded"))
    mirrored = tmp_path / "mirror" / "drive.google.com" / "1-ZgoSlD_AMhtXdnUElilxVXnzK2DcHuu"
    mirrored.parent.mkdir(parents=True)
    mirrored.write_bytes(SHIPPED.read_bytes())
    monkeypatch.setenv("CT_HARNESS_MIRROR", (tmp_path / "mirror").as_uri())
    assert zoo(tmp_path).load().sha256 == Checkpoint(builder=RESNET, weights=str(SHIPPED)).load().sha256
    assert requested == []


BY_HAND = (
    r"to put it there by hand, open https://drive\.google\.com/uc\?id=1-ZgoSlD_AMhtXdnUElilxVXnzK2DcHuu "
    rf".*save .* as \S*/cifar10/Linf/{NAME}\.pt$"
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WEB_PAGE, "what came from https://drive.* is a web page"),
        (b"PK\3\4 and no end", "what came from https://drive.* is cut short"),
        (None, r"the download failed .*no file"),
        (RuntimeError("Quota\n\texceeded"), r"the download failed .*Quota exceeded"),
    ],
    ids=["page", "cut", "nothing", "raised"],
)
def test_a_bad_download_leaves_nothing_behind(tmp_path: Path, drive: Any, content: Any, message: str) -> None:
    drive(content)
    with pytest.raises(ModelError, match=message + ".*" + BY_HAND) as caught:
        zoo(tmp_path).load()
    assert str(caught.value).startswith(str(tmp_path / "cifar10" / "Linf" / f"{NAME}.pt"))
    assert not any((tmp_path / "cifar10" / "Linf").iterdir())


def test_offline_nothing_is_requested_and_the_path_is_named(tmp_path: Path, drive: Any) -> None:
    requested = drive(SHIPPED.read_bytes())
    with pytest.raises(ModelError, match="no such file.*offline.*" + BY_HAND):
        zoo(tmp_path).load(offline=True)
    assert requested == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(WEB_PAGE, "is a web page"), (SHIPPED.read_bytes()[:100_000], "is cut short or not a torch checkpoint")],
    ids=["page", "cut"],
)
def test_a_bad_file_that_exists_is_named_and_left(tmp_path: Path, drive: Any, content: bytes, message: str) -> None:
    requested = drive(SHIPPED.read_bytes())
    file = place(tmp_path, content)
    with pytest.raises(ModelError, match=message + ".*; delete it and run again, or " + BY_HAND):
        zoo(tmp_path).load()
    assert file.read_bytes() == content
    assert requested == []


def test_a_checkpoint_of_another_architecture_is_counted(tmp_path: Path) -> None:
    state = torch.load(SHIPPED, map_location="cpu")
    state["linear.weight"] = torch.ones(100, 512)
    state["head"] = state.pop("conv1.weight")
    torch.save(state, place(tmp_path, b""))
    message = (
        r"another architecture \(keys: 1 missing, such as 'conv1\.weight'; 1 unexpected, such as 'head'; "
        r"1 of another shape, such as 'linear\.weight' \(\[100, 512\] in the file, expected \[10, 512\]\)"
    )
    with pytest.raises(ModelError, match=message + ".*" + BY_HAND):
        zoo(tmp_path).load(offline=True)


def test_missing_weights_that_robustbench_would_ignore_are_refused(tmp_path: Path) -> None:
    """RobustBench alone silently makes a random network of this."""
    name = "Salman2020Do_R18"
    torch.save({"epoch": torch.ones(1)}, place(tmp_path, b"", name, "imagenet"))
    utils = import_robustbench()
    utils.load_model(name, model_dir=tmp_path, dataset="imagenet")
    with pytest.raises(ModelError, match=r"another architecture \(keys: 62 missing, such as 'model\.conv1"):
        zoo(tmp_path, name, dataset="imagenet").load(offline=True)
    assert utils._safe_load_state_dict.__module__ == "robustbench.utils"


def test_a_checkpoint_without_the_key_that_its_loader_reads_is_refused(tmp_path: Path) -> None:
    torch.save({"best": {}}, place(tmp_path, b"", "Andriushchenko2020Understanding"))
    with pytest.raises(ModelError, match=r"Understanding\.pt: load_model failed \(KeyError\('last'\)\); if"):
        zoo(tmp_path, "Andriushchenko2020Understanding").load(offline=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Sehwag2021Proxy_R81"}, r"board cifar10/Linf \(did you mean 'Sehwag2021Proxy_R\w+'\?\)"),
        (
            {"name": "Hendrycks2020AugMix_WRN"},
            "on cifar10/corruptions and cifar100/corruptions: set",
        ),
        ({"dataset": "cifar100", "threat": "L2"}, "no board cifar100/L2; its boards: cifar10/Linf"),
    ],
)
def test_a_name_that_is_not_on_the_board_is_refused_with_a_hint(
    tmp_path: Path, fields: dict[str, str], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        zoo(tmp_path, **fields).load(offline=True)


@pytest.mark.parametrize(
    ("fields", "file", "url"),
    [
        ({"name": "Chen2020Adversarial"}, r"\S*/cifar10/Linf/Chen2020Adversarial\.pt_m0\.pt", "https://drive"),
        ({"name": "Debenedetti2022Light_XCiT-S12"}, r"\S*/checkpoints/debenedetti2022\S*tar", "https://github"),
        ({"name": "Standard_R50", "dataset": "imagenet"}, r"\S*/checkpoints/resnet50-\w+\.pth", "https://down"),
    ],
    ids=["ensemble", "timm", "torchvision"],
)
def test_offline_names_the_file_whatever_its_source(
    tmp_path: Path, fields: dict[str, str], file: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=rf"^{file}: no such file, .*open {url}\S* .* as {file}$"):
        zoo(tmp_path, **fields).load(offline=True)


def test_names_are_robustbenchs(capsys: pytest.CaptureFixture[str]) -> None:
    names = RobustBench.names()
    assert NAME in names["robustbench cifar10/Linf"]
    assert "Engstrom2019Robustness" in names["robustbench cifar10/L2"]
    assert "robustbench imagenet/L2" not in names
    assert capsys.readouterr().out == ""


def test_a_real_autoattack_is_not_replaced(tmp_path: Path) -> None:
    """Run in a process of its own, since an import cannot be undone."""
    package = tmp_path / "autoattack"
    package.mkdir()
    (package / "__init__.py").write_text("class AutoAttack: pass\n")
    (package / "state.py").write_text("class EvaluationState: pass\n")
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "from harness.models.robustbench import import_robustbench; import_robustbench()\n"
        "import sys; print(sys.modules['autoattack'].__file__)"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == str(package / "__init__.py")


# --- all models ---


@pytest.mark.parametrize("model", [zoo(Path("a")), own_model()], ids=["robustbench", "checkpoint"])
def test_a_model_is_frozen_and_refuses_unknown_keys(model: Model) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        model.name = "b"  # type: ignore[attr-defined]
    with pytest.raises(ValidationError, match=r"Extra inputs"):
        type(model).model_validate(model.model_dump() | {"colour": "red"})


def test_the_directory_of_the_zoo_is_not_part_of_the_identity() -> None:
    assert zoo(Path("a")).identity() == zoo(Path("b")).identity()
    assert zoo(Path("a")).identity() != zoo(Path("a"), threat="L2").identity()
    assert zoo(Path("a")).label == NAME


def test_parsing_a_benchmark_imports_no_torch() -> None:
    parts = ("models.robustbench", "models.checkpoint", "datasets.arrays", "datasets.cifar")
    imports = ", ".join(f"harness.{part}" for part in parts)
    code = f"import sys, {imports}; print(sorted({{'torch', 'numpy', 'robustbench'}} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_an_architecture_of_robustbench_can_be_a_builder() -> None:
    """Run in a process of its own, since a failed import leaves modules behind with which the next one succeeds."""
    code = "from harness.models.checkpoint import _build; _build('robustbench.model_zoo.architectures.resnet:ResNet18')"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
