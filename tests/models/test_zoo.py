"""Small public networks: the catalogue's facts are those of the networks, and the authors' files load as they are.

The oracle of a file is the network that it was written from, in the nesting of the original.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.api import registry
from harness.api.model import Model
from harness.api.records import Preprocessing
from harness.errors import ModelError, SpecError
from harness.models import zoo
from harness.models.catalogue import Entry, catalogue
from harness.models.deep_compression import SHARED
from harness.models.zoo import Zoo
from harness.testing import ModelContract

SMALL, CASCADE, RESIDUAL, COMPRESSED = (
    "cifar10_oval_base_kw2",
    "cifar10_wk_small_8px",
    "cifar10_resnet20",
    "imagenet_squeezenet1_0",
)
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)


def built(name: str, seed: int = 0) -> nn.Module:
    """Build a network of the catalogue with seeded weights; statistics of batches are those of some images."""
    torch.manual_seed(seed)
    network = catalogue()[name].build()
    with torch.no_grad():
        network.train()(torch.rand(8, 3, 32, 32))
    return network.eval()


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Zoo]:
    """Put a file where that of a network is expected, and its hash into the catalogue."""

    def published(name: str, content: Any) -> Zoo:
        entry = catalogue()[name]
        file = Path("models/zoo") / entry.file
        file.parent.mkdir(parents=True)
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
        own = replace(entry, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
        entries = dict(catalogue()) | {name: own}
        monkeypatch.setattr(zoo, "catalogue", lambda: entries)
        return Zoo(name=name)

    return published


def logits(network: nn.Module, entry: Entry) -> torch.Tensor:
    """The oracle: logits of the network on images normalised outside."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (entry.mean, entry.std))
    with torch.no_grad():
        answer: torch.Tensor = network((IMAGES - mean) / std)
    return answer


class TestZoo(ModelContract):
    @pytest.fixture
    def part(self, publish: Callable[..., Zoo]) -> Model:
        return publish(SMALL, {"state_dict": [built(SMALL).state_dict()], "err": 0.5, "sampler_indices": []})


# --- the catalogue ---


@pytest.mark.parametrize("entry", catalogue().values(), ids=list(catalogue()))
def test_an_entry_has_the_facts_of_its_network(entry: Entry) -> None:
    assert sum(parameter.numel() for parameter in entry.build().parameters()) == entry.parameters
    assert len(bytes.fromhex(entry.sha256)) == 32
    assert len(bytes.fromhex(entry.commit)) == 20
    assert len(entry.mean) == len(entry.std) == 3
    assert (entry.clean is None) == (not entry.source)
    assert all(entry.licence and value not in ("", None) for value in (entry.training, entry.repository))


def test_every_network_is_published_once_and_its_file_has_a_name_of_its_own() -> None:
    entries = catalogue().values()
    for facts in ([entry.sha256 for entry in entries], [entry.file for entry in entries]):
        assert len(set(facts)) == len(entries) >= 12


def test_the_address_of_a_file_is_githubs_at_the_commit() -> None:
    assert catalogue()[RESIDUAL].url == (
        "https://raw.githubusercontent.com/akamaster/pytorch_resnet_cifar10/"
        "d5489e8995e81e91ce6b1d69dcc98ad579b0b153/pretrained_models/resnet20-12fca82f.th"
    )


def test_published_figures_are_told_of_the_data_they_belong_to() -> None:
    figures = Zoo(name=RESIDUAL).published("cifar10", "Linf")
    assert figures is not None
    assert (figures.clean, figures.robust) == (0.9173, None)
    assert Zoo(name=RESIDUAL).published("cifar100", "Linf") is None
    assert Zoo(name=SMALL).published("cifar10", "Linf") is None


def test_pictures_are_prepared_as_squeezenets_authors_did() -> None:
    assert Zoo(name=COMPRESSED).preprocessing() == Preprocessing((256, 256), 227)
    assert Zoo(name=SMALL).preprocessing() == Preprocessing()
    entry = catalogue()[COMPRESSED]
    assert np.allclose([255 * value for value in entry.mean + entry.std], [123, 117, 104, 1, 1, 1])


def test_names_are_listed_by_dataset_and_an_unknown_one_is_refused() -> None:
    assert [name for names in Zoo.names().values() for name in names] == list(catalogue())
    assert Zoo.names()["zoo imagenet"] == [COMPRESSED]
    with pytest.raises(SpecError, match=r"'cifar10_resnet21' in the catalogue.*did you mean 'cifar10_resnet20'"):
        registry.build("models", {"kind": "zoo", "name": "cifar10_resnet21"}, "models.0")


# --- the files ---


def test_a_list_of_one_state_dict_is_loaded(publish: Callable[..., Zoo]) -> None:
    network = built(SMALL)
    model = publish(SMALL, {"state_dict": [network.state_dict()], "epoch": 109})
    assert torch.equal(model.load(offline=True).network(IMAGES), logits(network, model.entry))


def test_of_a_cascade_the_first_stage_is_loaded(publish: Callable[..., Zoo]) -> None:
    stages = [built(CASCADE, seed) for seed in range(3)]
    indices = [torch.arange(4), torch.arange(2)]
    model = publish(CASCADE, {"state_dict": [one.state_dict() for one in stages], "sampler_indices": indices})
    assert torch.equal(model.load(offline=True).network(IMAGES), logits(stages[0], model.entry))


def test_a_state_dict_of_dataparallel_is_loaded_with_its_batch_statistics(publish: Callable[..., Zoo]) -> None:
    network = built(RESIDUAL)
    state = {f"module.{key}": value for key, value in network.state_dict().items() if "num_batches" not in key}
    model = publish(RESIDUAL, {"state_dict": state, "best_prec1": 91.78})
    assert torch.equal(model.load(offline=True).network(IMAGES), logits(network, model.entry))
    assert json.loads(Path("models.lock").read_text())[model.entry.url]["sha256"] == model.entry.sha256


def test_a_file_that_is_not_the_published_one_is_refused(publish: Callable[..., Zoo]) -> None:
    model = publish(SMALL, built(SMALL).state_dict())
    file = Path("models/zoo") / model.entry.file
    torch.save(built(SMALL, 1).state_dict(), file)
    with pytest.raises(ModelError, match=r"is not the published file: expected SHA-256 .*to put it there by hand"):
        model.load(offline=True)


def test_a_missing_file_is_named_with_its_address() -> None:
    entry = catalogue()[SMALL]
    expected = rf"no such file.*open {re.escape(entry.url)} in a browser and save the file as .*models/zoo/{entry.file}"
    with pytest.raises(ModelError, match=expected):
        Zoo(name=SMALL).load(offline=True)


def test_a_missing_file_is_downloaded_and_checked(publish: Callable[..., Zoo], monkeypatch: pytest.MonkeyPatch) -> None:
    network = built(SMALL)
    model = publish(SMALL, network.state_dict())
    mirror = Path("mirror") / model.entry.url.removeprefix("https://")
    mirror.parent.mkdir(parents=True)
    (Path("models/zoo") / model.entry.file).rename(mirror)
    monkeypatch.setenv("CT_HARNESS_MIRROR", Path("mirror").absolute().as_uri())
    assert torch.equal(model.load().network(IMAGES), logits(network, model.entry))


# --- architectures ---


def test_shortcuts_of_he_et_al_have_no_parameters() -> None:
    """At weights of zero a block is its shortcut: every other pixel, the channels between zeros."""
    from harness.models.architectures.he_resnet import Block

    block = Block(16, 32).eval()
    with torch.no_grad():
        block.conv2.weight.zero_()
        features = torch.rand(1, 16, 8, 8)
        out = block(features)
    assert torch.equal(out[:, 8:24], features[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


# --- Deep Compression ---


def compress(network: nn.Module) -> bytes:
    """Write a network as Deep Compression does: every weight is one of 255, or not stored.

    A gap of more than 15 is bridged by storing code 0, as the authors' files do.
    """
    rng = np.random.default_rng(0)
    counts, body = [], b""
    for layer in (module for module in network.modules() if isinstance(module, nn.Conv2d)):
        shared = np.append(0, rng.normal(size=SHARED - 1)).astype("<f4")
        flat = rng.integers(1, SHARED, layer.weight.numel()) * (rng.random(layer.weight.numel()) < 0.1)
        codes, gaps, gap = [], [], 0
        for code in flat:
            if code or gap == 15:
                codes.append(int(code))
                gaps.append(gap)
                gap = 0
            else:
                gap += 1
        halves = gaps + [0] * (len(gaps) % 2)
        pairs = [low | high << 4 for low, high in zip(halves[::2], halves[1::2], strict=True)]
        bias = rng.normal(size=layer.out_channels).astype("<f4")
        body += shared.tobytes() + bias.tobytes() + bytes(codes) + bytes(pairs)
        counts.append(len(codes))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(shared[flat]).view_as(layer.weight))
            assert layer.bias is not None
            layer.bias.copy_(torch.from_numpy(bias))
    return np.array(counts, "<u4").tobytes() + body


def two_convolutions() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.Flatten())


def compressed(publish: Callable[..., Zoo], monkeypatch: pytest.MonkeyPatch, damage: slice, more: bytes) -> Any:
    """Publish two compressed convolutions in the place of SqueezeNet; return the model and the network."""
    monkeypatch.setattr(Entry, "build", lambda _: two_convolutions())
    network = two_convolutions()
    content = compress(network)
    return publish(COMPRESSED, content[damage] + more), network


def test_a_compressed_network_is_decoded_with_its_channels_turned(
    publish: Callable[..., Zoo], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, network = compressed(publish, monkeypatch, slice(None), b"")
    network[0].weight.data = network[0].weight.data.flip(1)  # Caffe's images are BGR
    assert torch.equal(model.load(offline=True).network(IMAGES), logits(network, model.entry))


@pytest.mark.parametrize(
    ("damage", "more", "message"),
    [(slice(-1), b"", "is cut short"), (slice(None), b"12", "has 2 bytes behind its last convolution")],
)
def test_a_compressed_file_that_is_too_short_or_too_long_is_refused(
    publish: Callable[..., Zoo], monkeypatch: pytest.MonkeyPatch, damage: slice, more: bytes, message: str
) -> None:
    model, _ = compressed(publish, monkeypatch, damage, more)
    with pytest.raises(ModelError, match=message):
        model.load(offline=True)


def test_every_network_stands_in_the_reference() -> None:
    """The table of the reference has the catalogue's names, trainings and licences, and the repositories' links."""
    text = (Path(__file__).parents[2] / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for entry in catalogue().values():
        clean = "" if entry.clean is None else f"{100 * entry.clean:.2f}"
        link = f"[{entry.repository}](https://github.com/{entry.repository}/tree/{entry.commit})"
        row = [f"`{entry.name}`", f"{entry.parameters:,}", entry.training, clean, link, entry.licence]
        assert f"| {' | '.join(row)} |".replace("|  |", "| |") in text, asdict(entry)
