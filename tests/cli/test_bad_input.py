"""Bad input: one clear message that names the file and the key, exit code 2, no traceback, and nothing is lost."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import install

from harness.api import registry
from harness.errors import SpecError

Mapping = Callable[..., dict[str, Any]]
Run = Callable[..., Any]
Rows = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def refused(resumed: Path, run: Run, rows: Rows) -> Callable[..., str]:
    """Runs a benchmark beside an earlier good run, which must stay as it is; returns the message."""

    def go(benchmark: dict[str, Any], *arguments: str) -> str:
        before = rows(resumed / "runs")
        ended = run(benchmark, *arguments)
        assert ended.code == 2
        assert ended.out == ""
        assert ended.err.startswith("error: ")
        assert "Traceback" not in ended.err
        assert rows(resumed / "runs") == before
        assert not (resumed / "leaderboards" / "tiny.csv").exists()
        return str(ended.err.removeprefix("error: ").strip())

    return go


IMAGES = {"kind": "arrays", "path": "images.npz"}
QUADRANTS = {"kind": "checkpoint", "builder": "tiny_networks:quadrants"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"treat": {}},
            "tiny.yaml: treat: unknown key (did you mean 'threat'?); known keys: name, models, dataset, threat, "
            "steering, protocol, selection, search, replay_points, seed, batch_size, replay_first, compile, precision, "
                "executor, device",
        ),
        (
            {"dataset": IMAGES | {"pth": "x"}},
            "tiny.yaml: dataset.pth: unknown key (did you mean 'path'?); known keys: n, indices, per_class, path",
        ),
        (
            {"models": [QUADRANTS, {"kind": "demo", "name": "digits_plain", "beta": 1}]},
            "tiny.yaml: models[1].beta: unknown key; known keys: name, normalised",
        ),
        ({"seed": "soon"}, "tiny.yaml: seed: input should be a valid integer, found 'soon'"),
        (
            {"dataset": "digits"},
            "tiny.yaml: dataset: expected a mapping with a kind (one of arrays, cifar10, cifar100, digits, "
            "downstream, hugging_face, image_folder, imagenet, normalised), found 'digits'",
        ),
        ({"steering": {"beta": [0.9, 1.1]}}, "tiny.yaml: steering.beta[1]: input should be less than or equal to 1, "
                                             "found 1.1"),
        ({"steering": {"beta": [0.5, -0.5]}}, "tiny.yaml: steering.beta[1]: input should be greater than or equal to "
                                              "0, found -0.5"),
        ({"steering": {"beta": []}}, "tiny.yaml: steering.beta: tuple should have at least 1 item after validation, "
                                     "not 0, found []"),
        (
            {"steering": {"beta": {"from": 0.9, "to": 0.7, "step": 0.1}}},
            "tiny.yaml: steering.beta: expected 0 ≤ from ≤ to ≤ 1 and step > 0, found "
            "{'from': 0.9, 'step': 0.1, 'to': 0.7}",
        ),
        (
            {"steering": {"beta": {"from": 0.9, "till": 0.7}}},
            "tiny.yaml: steering.beta: expected a list of numbers or {from: …, to: …, step: …}, "
            "found {'from': 0.9, 'till': 0.7}",
        ),
        (
            {"threat": {"kind": "Lfin", "eps": 0.1}},
            "tiny.yaml: threat.kind: unknown kind 'Lfin' (did you mean 'Linf'?); known threats: "
            "L1, L2, Linf, clean, corruptions, corruptions_3d, dim",
        ),
        (
            {"models": [QUADRANTS, {"kind": "robustbenhc", "name": "Standard"}]},
            "tiny.yaml: models[1].kind: unknown kind 'robustbenhc' (did you mean 'robustbench'?); known models: "
            "checkpoint, demo, probe, robustbench, timm, torchvision, training",
        ),
        ({"threat": {"kind": "dim", "eps": 0.1}}, "tiny.yaml: threat.eps: unknown key; known keys: "),
        ({"threat": {"kind": "Linf"}}, "tiny.yaml: threat.eps: missing, and it has no default"),
        (
            {"threat": {"kind": "Linf", "eps": "8/0"}},
            "tiny.yaml: threat.eps: expected a number in pixels such as 0.03 or \"8/255\", found '8/0'",
        ),
        (
            {"threat": {"kind": "Linf", "eps": 8}},
            'tiny.yaml: threat.eps: eps is in pixels of [0, 1], so at most 1: write "8/255" for 8 of 255 grey levels, '
            "found 8",
        ),
        ({"threat": {"kind": "L2", "eps": 0}}, "tiny.yaml: threat.eps: input should be greater than 0, found 0"),
        (
            {"dataset": IMAGES | {"n": 25}},
            "tiny.yaml: dataset.n: arrays has 24 images, but n = 25 were asked for; lower n",
        ),
        (
            {"dataset": IMAGES | {"indices": [3, 24]}},
            "tiny.yaml: dataset.indices: arrays has 24 images (0 … 23), no 24",
        ),
        (
            {"dataset": IMAGES | {"indices": [3, 3]}},
            "tiny.yaml: dataset.indices: an image is named twice; name each once",
        ),
        (
            {"dataset": {"kind": "normalised"}},
            "tiny.yaml: dataset: normalised: images must lie in [0, 1], since eps is in pixels; found -2.876 … 2.877. "
            "Leave normalisation to the model (checkpoint: mean, std)",
        ),
    ],
)  # fmt: skip
def test_the_message_names_the_key_and_what_was_found(
    refused: Callable[..., str], mapping: Mapping, changes: dict[str, Any], message: str
) -> None:
    found = refused(mapping(**changes))
    if "normalised:" in message:
        found, message = found.partition("found")[0], message.partition("found")[0]
    assert found.strip() == message.strip()


def test_a_fault_is_told_once(refused: Callable[..., str], mapping: Mapping) -> None:
    # Once: a β out of range leaves an empty tuple, of which pydantic then says that it "should have at least 1 item".
    found = refused(mapping(steering={"beta": -0.5}))
    assert found == "tiny.yaml: steering.beta[0]: input should be greater than or equal to 0, found -0.5"


def test_every_fault_of_a_file_is_told_at_once(refused: Callable[..., str], mapping: Mapping) -> None:
    found = refused(mapping(seed=-1, batch_size=0, device="gpu"))
    assert [line.split(": ")[:2] for line in found.splitlines()] == [
        ["tiny.yaml", "seed"], ["tiny.yaml", "batch_size"], ["tiny.yaml", "device"],
    ]  # fmt: skip


def test_two_models_of_one_label(refused: Callable[..., str], mapping: Mapping) -> None:
    found = refused(mapping(models=[QUADRANTS, QUADRANTS | {"mean": [0], "std": [1]}]))
    assert found.startswith("tiny.yaml: models: two models are called 'quadrants'; give one of them another name")


@pytest.mark.parametrize(
    "beta",
    [
        {"from": "low", "to": 1, "step": 0.1},
        {"from": 0.5, "to": float("inf"), "step": 0.1},
        {"from": 0.5, "to": float("nan"), "step": 0.1},
        {"from": None, "to": 1, "step": 0.1},
    ],
)
def test_a_spread_of_what_are_no_numbers(refused: Callable[..., str], mapping: Mapping, beta: Any) -> None:
    # Once: decimal.InvalidOperation and OverflowError are no ValueErrors, so they pass pydantic as a traceback.
    assert refused(mapping(steering={"beta": beta})).startswith("tiny.yaml: steering.beta: ")


def test_an_eps_beyond_all_numbers(refused: Callable[..., str], mapping: Mapping) -> None:
    # Once: float(Fraction("1e400")) is an OverflowError, which is no ValueError.
    assert refused(mapping(threat={"kind": "Linf", "eps": "1e400"})).startswith("tiny.yaml: threat.eps: ")


# --- the file ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "tiny.yaml: cannot be read: No such file or directory"),
        (b"models: [", "tiny.yaml: not valid YAML: while parsing"),
        (b"\xff\xfe\x00", "tiny.yaml: not valid YAML: "),
        (b"- a\n", "tiny.yaml: expected a mapping with models, dataset, threat and steering, found ['a']"),
        (b"", "tiny.yaml: expected a mapping with models, dataset, threat and steering, found None"),
    ],
)
def test_a_file_that_is_no_benchmark(here: Path, command: Run, content: bytes | None, message: str) -> None:
    if content is not None:
        (here / "tiny.yaml").write_bytes(content)
    ended = command("run", "tiny.yaml")
    assert ended.code == 2
    assert ended.err.startswith(f"error: {message}")
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.n", "tiny.yaml: --set dataset.n: expected key=value, such as dataset.n=100"),
        ("=3", "tiny.yaml: --set =3: expected key=value, such as dataset.n=100"),
        ("models.7.name=x", "tiny.yaml: --set models.7.name=x: '7' is not one of the entries 0 … 0"),
        ("models.first.name=x", "tiny.yaml: --set models.first.name=x: 'first' is not one of the entries 0 … 0"),
        ("device.x=1", "tiny.yaml: --set device.x=1: there is nothing under 'x'; its parent is 'cpu'"),
        ("dataset.m=3", "tiny.yaml: dataset.m: unknown key (did you mean 'n'?); known keys: n, indices, path"),
    ],
)
def test_an_override_that_cannot_be(refused: Callable[..., str], mapping: Mapping, override: str, message: str) -> None:
    found = refused(mapping(), "--set", override)
    if override == "dataset.m=3":  # whether n is close to m is difflib's to say
        found, message = found.partition(" (")[0].partition(";")[0], message.partition(" (")[0]
    assert found == message


@pytest.mark.parametrize("override", ["batch_size.x.y=1", "device.x.y=1", "dataset.n=[", "models.0=: :"])
def test_an_override_that_goes_nowhere(refused: Callable[..., str], mapping: Mapping, override: str) -> None:
    # Once: a path through a number or a string, and a value that is no YAML, end in a traceback.
    assert refused(mapping(), "--set", override).startswith(f"tiny.yaml: --set {override}")


# --- folders and ledgers ---


def test_a_leaderboard_that_cannot_be_written_is_told_before_the_work(
    refused: Callable[..., str], mapping: Mapping
) -> None:
    found = refused(mapping(seed=5), "--out", "tiny.yaml/board.csv")
    assert found.startswith("tiny.yaml/board.csv: cannot be written: ")
    assert found.endswith("; choose another place with --out")
    assert refused(mapping(seed=5), "--out", "runs") == "runs: cannot be written; choose another place with --out"


def test_a_runs_folder_that_cannot_be_written(refused: Callable[..., str], mapping: Mapping) -> None:
    found = refused(mapping(), "--runs", "tiny.yaml/runs")
    assert found.startswith("tiny.yaml/runs/tiny/ledger.sqlite: cannot be opened or written: ")
    assert found.endswith("; choose another --runs")


def test_a_ledger_of_another_schema(here: Path, run: Run, mapping: Mapping, computed: Path) -> None:
    shutil.copytree(computed / "runs", here / "runs")
    with sqlite3.connect(here / "runs" / "tiny" / "ledger.sqlite") as ledger:
        ledger.execute("PRAGMA user_version = 99")
    ledger.close()
    ended = run(mapping())
    path = Path("runs/tiny/ledger.sqlite")
    assert (ended.code, ended.err.strip()) == (
        2, f"error: {path}: expected a ledger of schema 1, found 99; move it away",
    )  # fmt: skip


# --- images ---


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.full((4, 1, 8, 8), 1.5), np.arange(4), "x is float64 from 1.5 to 1.5; expected floats in [0, 1]"),
        (np.full((4, 1, 8, 8), np.nan), np.arange(4), "x holds NaN, first in image 0"),
        (np.zeros((4, 1, 8, 8)), np.arange(3), "y has shape (3,); expected (4,)"),
    ],
)
def test_arrays_that_are_no_images(
    refused: Callable[..., str], mapping: Mapping, here: Path, x: Any, y: Any, message: str
) -> None:
    np.savez("odd.npz", x=x, y=y)
    found = refused(mapping(dataset={"kind": "arrays", "path": "odd.npz"}))
    assert found.startswith(f"tiny.yaml: {here / 'odd.npz'}: {message}")


def test_images_that_are_not_there(refused: Callable[..., str], mapping: Mapping, here: Path) -> None:
    found = refused(mapping(dataset={"kind": "arrays", "path": "nowhere.npz"}))
    assert found.startswith(f"tiny.yaml: dataset.path: no file {here / 'nowhere.npz'}")


# --- models ---

FAILURES = [
    (
        {"kind": "checkpoint", "builder": "tiny_networks:narrow"},
        "the data have labels up to 3, but the network yields 2 logits; "
        "use a data set and a model with the same classes",
        "",
    ),
    (
        {"kind": "checkpoint", "builder": "tiny_networks:nan"},
        "its logits are NaN or infinite on images in [0, 1]; check the weights and the normalisation",
        "",
    ),
    (
        {"kind": "checkpoint", "builder": "tiny_networks:probabilities"},
        "it yields probabilities, not logits: attacks on them see vanishing gradients; remove its softmax",
        "probabilities",
    ),
    ({"kind": "training"}, "it is in training mode (the network); call network.eval() where it is built", ""),
    (
        {"kind": "checkpoint", "builder": "tiny_networks:smooth"},
        "nothing to steer: Curvature Tuning acts on ReLU, LeakyReLU, PReLU, RReLU, ReLU6 and Hardtanh, and the network "
        "executes none of them; it uses gelu ×1",
        "",
    ),
    ({"kind": "checkpoint", "builder": "tiny_networks:quadrant"}, "has no 'quadrant' (did you mean 'quadrants'?)", ""),
    ({"kind": "checkpoint", "builder": "tiny_networks:mixed", "weights": "w.pt"}, "weights: no file", ""),
]


@pytest.mark.parametrize(("model", "why", "flag"), FAILURES)
def test_a_model_that_fails_alone(
    resumed: Path, run: Run, rows: Rows, mapping: Mapping, model: dict[str, Any], why: str, flag: str
) -> None:
    before = rows(resumed / "runs")
    ended = run(mapping(models=[model]))
    assert ended.code == 2
    assert "Traceback" not in ended.err
    table = pd.read_csv("leaderboards/tiny.csv", keep_default_na=False)
    assert len(table) == 1
    assert table["status"][0].startswith("failed: ")
    assert why in table["status"][0]
    assert why in " ".join(ended.err.split())
    assert (table["flags"][0], table["rank"][0], table["robust"][0]) == (flag, "", "")
    assert rows(resumed / "runs") == before


def test_models_that_fail_leave_the_others_be(
    here: Path, run: Run, mapping: Mapping, computed: Path, untimed: Callable[[str], list[str]]
) -> None:
    good = mapping()["models"]
    ended = run(mapping(models=[FAILURES[0][0], *good, *(model for model, *_ in FAILURES[1:4])]))
    assert ended.code == 1
    csv = (here / "leaderboards" / "tiny.csv").read_text()
    alone = untimed((computed / "first.csv").read_text())[1:]
    assert untimed(csv)[2:-3] == alone
    status = pd.read_csv("leaderboards/tiny.csv")["status"]
    assert status.str.startswith("failed: ").tolist() == [True, *[False] * len(alone), True, True, True]
    assert "failed: the data have labels up to 3" in ended.out


# --- third parties ---


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("import no_such_library", "cannot be imported: ModuleNotFoundError(\"No module named 'no_such_library'\"); "
                                   "repair or uninstall it"),
        ("Part = 3", "broken_KIND:Part is not a part whose kind is 'broken'"),
        ("class Part: kind = 'broken'", "broken_KIND:Part is not a part whose kind is 'broken'"),
    ],
    ids=["import", "no class", "no part"],
)  # fmt: skip
@pytest.mark.parametrize("key", ["models[0]", "dataset", "executor"])
def test_a_broken_plug_in_is_named_with_its_owner(
    here: Path, run: Run, mapping: Mapping, monkeypatch: Any, request: Any, key: str, module: str, message: str
) -> None:
    group = {"models[0]": "models"}.get(key, f"{key}s")
    name = "broken_" + "".join(letter for letter in request.node.name if letter.isalnum())
    install(here / "site", "shoddy-parts", f"[ct_harness.{group}]\nbroken = {name}:Part\n", **{name: module})
    monkeypatch.syspath_prepend(str(here / "site"))
    broken = {"kind": "broken"}
    ended = run(mapping(**{key.removesuffix("[0]"): [broken] if group == "models" else broken}))
    assert ended.code == 2
    assert ended.err.startswith(f"error: tiny.yaml: {key}.kind: kind 'broken' (from shoddy-parts)")
    assert message.replace("broken_KIND", name) in ended.err
    assert "Traceback" not in ended.err


def test_a_broken_threat_is_named_with_its_key(here: Path, run: Run, mapping: Mapping, monkeypatch: Any) -> None:
    # Once: _with_defaults() imports the threat before build() does, outside of what adds `threat.kind: ` to the text.
    install(here / "site", "shoddy-parts", "[ct_harness.threats]\nbroken = shoddy_threat:Part\n", shoddy_threat="1 / 0")
    monkeypatch.syspath_prepend(str(here / "site"))
    ended = run(mapping(threat={"kind": "broken"}))
    assert ended.code == 2
    assert ended.err.startswith("error: tiny.yaml: threat.kind: kind 'broken' (from shoddy-parts) cannot be imported")


def test_a_broken_plug_in_harms_nobody_who_does_not_name_it(
    here: Path, run: Run, command: Run, mapping: Mapping, monkeypatch: Any
) -> None:
    entry_points = "".join(f"[ct_harness.{group}]\nbroken = shoddy_all:Part\n" for group in registry.GROUPS)
    install(here / "site", "shoddy-parts", entry_points, shoddy_all="raise OSError('no licence')")
    monkeypatch.syspath_prepend(str(here / "site"))
    assert run(mapping()).code == 0
    monkeypatch.setenv("COLUMNS", "200")
    listed = command("list")
    assert listed.code == 0
    assert listed.out.count("no licence") == len(registry.GROUPS)


def test_parts_of_third_parties_are_built_as_ours_are(installed: Path) -> None:
    assert installed.is_dir()
    assert registry.build("threats", {"kind": "dim"}, "threat").identity() == {"kind": "dim"}
    with pytest.raises(SpecError, match=r"^threat\.kind: unknown kind 'din' \(did you mean 'dim'\?\)"):
        registry.build("threats", {"kind": "din"}, "threat")


@pytest.mark.parametrize("part", [3, None, [], {"name": "x"}, {"kind": 3}])
def test_a_part_without_a_kind(part: Any) -> None:
    with pytest.raises(SpecError, match=r"^threat: expected a mapping with a kind \(one of L1, L2, Linf.*\), found "):
        registry.build("threats", part, "threat")


def test_a_yaml_of_odd_keys(refused: Callable[..., str], mapping: Mapping) -> None:
    assert refused(yaml.safe_load(yaml.safe_dump(mapping())) | {1: 2}).startswith("tiny.yaml: ")
    assert refused(mapping(dataset=IMAGES | {1: 2})).startswith("tiny.yaml: dataset")
