"""The state dict of a checkpoint is found wherever it lies, and files are called what they are.

The oracle is the network that was saved: the state dict that is found gives back its weights, or the file is refused.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.errors import ModelError
from harness.models.checkpoint import _load_weights
from harness.models.checkpoint_files import BadCheckpoint, read_checkpoint
from harness.models.state_dicts import own_state

State = dict[str, Tensor]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))


def behind(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


SAVED: State = dict(network().state_dict())
OTHER: State = dict(network(1).state_dict())


class Case:
    """A checkpoint, and the place at which its state dict is found."""

    def __init__(self, content: Mapping[str, Any], place: str) -> None:
        self.content, self.place = content, place


CASES = {
    "plain": Case(SAVED, "at the top"),
    "DataParallel": Case(behind("module.", SAVED), "behind the prefix 'module.'"),
    "compiled": Case(behind("_orig_mod.", SAVED), "behind the prefix '_orig_mod.'"),
    "both": Case(behind("module._orig_mod.", SAVED), "behind the prefix 'module._orig_mod.'"),
    "Lightning": Case({"state_dict": behind("model.", SAVED), "epoch": 1}, "under 'state_dict', behind the prefix 'm"),
    "kuangliu": Case({"net": behind("module.", SAVED), "acc": 95.1}, "under 'net', behind the prefix 'module.'"),
    "documentation": Case({"model_state_dict": SAVED, "loss": 0.1}, "under 'model_state_dict'"),
    "BasicSR": Case({"params": SAVED}, "under 'params'"),
    "average": Case({"model_ema": SAVED}, "under 'model_ema'"),
    "model before its average": Case({"state_dict_ema": OTHER, "state_dict": SAVED}, "under 'state_dict'"),
    "average in the same mapping": Case(behind("ema.", OTHER) | SAVED, "at the top"),
    "attacker": Case({"model": behind("module.model.", SAVED) | behind("module.attacker.model.", SAVED)}, "under 'mod"),
    "nested": Case({"checkpoint": {"weights": SAVED}}, "under 'checkpoint/weights'"),
    "list": Case({"state_dict": [SAVED], "epoch": 3}, "under 'state_dict/0'"),
    "thop": Case(SAVED | {"total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)}, "at the top"),
    "before num_batches_tracked": Case({k: v for k, v in SAVED.items() if "num_b" not in k}, "at the top"),
    "beside its optimiser": Case({"net": SAVED, "optimizer": {"state": {0: {"step": 3}}}}, "under 'net'"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_state_dict_is_found_and_its_place_is_told(name: str) -> None:
    found = own_state(CASES[name].content, network(2))
    assert found.place.startswith(CASES[name].place)
    loaded = network(2)
    loaded.load_state_dict(found.state)
    assert all(torch.equal(value, SAVED[key]) for key, value in loaded.state_dict().items() if "num_b" not in key)


def test_two_that_differ_are_not_chosen_between() -> None:
    with pytest.raises(BadCheckpoint, match=r"several state dicts that fit \(under 'teacher'; under 'student'\); save"):
        own_state({"teacher": SAVED, "student": OTHER}, network())


def test_weights_that_are_not_finite_are_one_state_dict_all_the_same() -> None:
    broken = {key: value * float("nan") for key, value in SAVED.items() if "num_b" not in key}
    assert own_state(broken, network()).place == "at the top"


@pytest.mark.parametrize(("dtype", "name"), [(torch.int8, "int8"), (torch.complex64, "complex64")])
def test_numbers_of_another_type_are_not_converted(dtype: torch.dtype, name: str) -> None:
    with pytest.raises(BadCheckpoint, match=rf"holds '0\.weight' as {name}, where the network has float32"):
        own_state({key: value.to(dtype) for key, value in SAVED.items()}, network())


def test_of_two_that_differ_the_one_that_is_named_is_taken() -> None:
    found = own_state({"stages": [SAVED, OTHER]}, network(), "stages/1")
    assert all(torch.equal(found.state[key], value) for key, value in OTHER.items())


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({}, "the file has no keys"),
        ({"model_ema": {"a.weight": torch.ones(1)}, "epoch": 3}, r"the file has 'model_ema', 'epoch'"),
        (
            {"net": {f"l{n}.w": torch.ones(1) for n in range(9)}},
            r"the file has 'net'; 'net' holds 'l0.w', .* and 3 more",
        ),
        (behind("x.", SAVED) | {"x.head.weight": torch.ones(1)}, r"the file has 'x\.0\.weight', .* and \d more"),
        (SAVED | {"4.weight": torch.ones(5, 8)}, r"'4.weight' \(\[5, 8\] in the file, expected \[4, 8\]\)"),
    ],
)
def test_what_does_not_fit_is_told_by_the_keys_of_the_file(
    tmp_path: Path, content: Mapping[str, Any], keys: str
) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=rf"x\.pt is a checkpoint of another architecture .*{keys}"):
        _load_weights(network(), tmp_path / "x.pt")


# --- files that are something else ---


def script(path: Path) -> None:
    torch.jit.script(network()).save(str(path))  # type: ignore[no-untyped-call]


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


def tensors(path: Path) -> None:
    save_file(SAVED, path)


def torches(path: Path) -> None:
    torch.save(SAVED, path)


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("notes.txt", "no weights")


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"w": os.getcwd}))


def exits(path: Path) -> None:
    torch.save({"w": os._exit}, path)


def bomb(path: Path) -> None:
    """A checkpoint with a storage of 100 MB of zeros, compressed."""
    plain = io.BytesIO()
    torch.save({"w": torch.zeros(25_000_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.namelist():
            target.writestr(entry, source.read(entry))


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (script, "x.pt", r"is a TorchScript program, .*save torch\.jit\.load\(path\)\.state_dict\(\)"),
        (pointer, "x.pt", "is a pointer of Git LFS, .*git lfs pull"),
        (pointer, "x.safetensors", "is a pointer of Git LFS, .*git lfs pull"),
        (tensors, "x.pth", r"is a safetensors file; name it x\.safetensors"),
        (torches, "x.safetensors", r"is a torch checkpoint, not a safetensors file; name it x\.pt"),
        (archive, "x.pt", r"is a zip archive of other files than a checkpoint's \(its first is 'notes\.txt'\)"),
        (pickled, "x.pt", "is a Python pickle that torch.save has not written, and reading it could run code"),
        (exits, "x.pt", r"holds Python objects \(posix\._exit\) beside its tensors"),
        (Path.touch, "x.pt", "is empty"),
        (bomb, "x.pt", r"is an archive of [\d,]+ bytes that unpacks to 100,\d{3},\d{3}"),
    ],
)
def test_a_file_is_called_what_it_is(tmp_path: Path, make: Callable[[Path], None], name: str, message: str) -> None:
    make(tmp_path / name)
    with pytest.raises(BadCheckpoint, match=message):
        read_checkpoint(tmp_path / name)
