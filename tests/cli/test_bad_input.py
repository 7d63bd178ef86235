"""Bad input: one clear message that names the file and the key, exit code 2, no traceback, and nothing is lost."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.commands import Command, Run, trials, untimed
from helpers.packages import install
from helpers.tiny import mapping

from harness.api import registry
from harness.errors import SpecError

Refused = Callable[..., str]
"""Runs a benchmark that must be refused, with further arguments, and returns the message."""


@pytest.fixture
def refused(resumed: Path, run: Run) -> Refused:
    """Runs a benchmark beside an earlier good run, which must stay as it is; returns the message."""

    def go(benchmark: dict[str, Any], *arguments: str) -> str:
        before = trials(resumed / "runs")
        ended = run(benchmark, *arguments)
        assert ended.code == 2
        assert ended.out == ""
        assert ended.err.startswith("error: ")
        assert "Traceback" not in ended.err
        assert trials(resumed / "runs") == before
        assert not (resumed / "leaderboards" / "tiny.csv").exists()
        return ended.err.removeprefix("error: ").strip()

    return go


IMAGES = {"kind": "arrays", "path": "images.npz"}
QUADRANTS = {"kind": "checkpoint", "builder": "tiny_networks:quadrants"}


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"treat": {}}, "treat", ("unknown key", "did you mean 'threat'?", "name, models, dataset, threat, steering")),
        (
            {"dataset": IMAGES | {"pth": "x"}},
            "dataset.pth",
            ("unknown key", "did you mean 'path'?", "n, indices, per_class, path"),
        ),
        (
            {"models": [QUADRANTS, {"kind": "demo", "name": "digits_plain", "beta": 1}]},
            "models[1].beta",
            ("unknown key", "name, normalised"),
        ),
        ({"seed": "soon"}, "seed", ("an integer", "'soon'")),
        ({"dataset": "digits"}, "dataset", ("a mapping with a kind", "cifar10, cifar100", "'digits'")),
        ({"steering": {"beta": [0.9, 1.1]}}, "steering.beta[1]", ("at most 1", "1.1")),
        ({"steering": {"beta": [0.5, -0.5]}}, "steering.beta[1]", ("at least 0", "-0.5")),
        ({"steering": {"beta": -0.5}}, "steering.beta[0]", ("at least 0", "-0.5")),
        ({"steering": {"beta": []}}, "steering.beta", ("at least 1", "[]")),
        (
            {"steering": {"beta": {"from": 0.9, "to": 0.7, "step": 0.1}}},
            "steering.beta",
            ("0 ≤ from ≤ to ≤ 1", "step > 0", "{'from': 0.9, 'step': 0.1, 'to': 0.7}"),
        ),
        (
            {"steering": {"beta": {"from": 0.9, "till": 0.7}}},
            "steering.beta",
            ("a list of numbers", "{from: …, to: …, step: …}", "{'from': 0.9, 'till': 0.7}"),
        ),
        (
            {"threat": {"kind": "Lfin", "eps": 0.1}},
            "threat.kind",
            ("'Lfin'", "did you mean 'Linf'?", "L1, L2, Linf, clean, corruptions, corruptions_3d, dim"),
        ),
        (
            {"models": [QUADRANTS, {"kind": "robustbenhc", "name": "Standard"}]},
            "models[1].kind",
            ("'robustbenhc'", "did you mean 'robustbench'?", "checkpoint, demo"),
        ),
        ({"threat": {"kind": "dim", "eps": 0.1}}, "threat.eps", ("unknown key",)),
        ({"threat": {"kind": "Linf"}}, "threat.eps", ("missing", "no default")),
        ({"threat": {"kind": "Linf", "eps": "8/0"}}, "threat.eps", ("0.03", '"8/255"', "'8/0'")),
        ({"threat": {"kind": "Linf", "eps": 8}}, "threat.eps", ("pixels", 'write "8/255"', "found 8")),
        ({"threat": {"kind": "L2", "eps": 0}}, "threat.eps", ("above 0", "found 0")),
        ({"dataset": IMAGES | {"n": 25}}, "dataset.n", ("24 images", "n = 25", "lower n")),
        ({"dataset": IMAGES | {"indices": [3, 24]}}, "dataset.indices", ("24 images", "0 … 23", "24")),
        ({"dataset": IMAGES | {"indices": [3, 3]}}, "dataset.indices", ("twice", "once")),
        (
            {"dataset": {"kind": "normalised"}},
            "dataset: normalised",
            ("[0, 1]", "pixels", "found -", "Leave normalisation to the model", "mean, std"),
        ),
    ],
)
def test_the_message_names_the_key_the_value_and_what_to_do(
    refused: Refused, changes: dict[str, Any], key: str, words: tuple[str, ...]
) -> None:
    # Once: a β out of range left an empty tuple, of which pydantic then said that it "should have at least 1".
    (message,) = refused(mapping(**changes)).splitlines()
    assert message.startswith(f"tiny.yaml: {key}: ")
    assert [word for word in words if word not in message] == []


def test_every_fault_of_a_file_is_told_at_once(refused: Refused) -> None:
    found = refused(mapping(seed=-1, batch_size=0, device="gpu"))
    assert [line.split(": ")[:2] for line in found.splitlines()] == [
        ["tiny.yaml", "seed"], ["tiny.yaml", "batch_size"], ["tiny.yaml", "device"],
    ]  # fmt: skip


def test_two_models_of_one_label(refused: Refused) -> None:
    found = refused(mapping(models=[QUADRANTS, QUADRANTS | {"mean": [0], "std": [1]}]))
    assert found.startswith("tiny.yaml: models: ")
    assert "'quadrants'" in found
    assert "give one of them another name" in found


@pytest.mark.parametrize(
    "beta",
    [
        {"from": "low", "to": 1, "step": 0.1},
        {"from": 0.5, "to": float("inf"), "step": 0.1},
        {"from": 0.5, "to": float("nan"), "step": 0.1},
        {"from": None, "to": 1, "step": 0.1},
    ],
)
def test_a_spread_of_what_are_no_numbers(refused: Refused, beta: Any) -> None:
    # Once: decimal.InvalidOperation and OverflowError are no ValueErrors, so they pass pydantic as a traceback.
    assert refused(mapping(steering={"beta": beta})).startswith("tiny.yaml: steering.beta: ")


def test_an_eps_beyond_all_numbers(refused: Refused) -> None:
    # Once: float(Fraction("1e400")) is an OverflowError, which is no ValueError.
    assert refused(mapping(threat={"kind": "Linf", "eps": "1e400"})).startswith("tiny.yaml: threat.eps: ")


# --- the file ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("cannot be read", "No such file or directory")),
        (b"models: [", ("not valid YAML",)),
        (b"\xff\xfe\x00", ("not valid YAML",)),
        (b"- a\n", ("a mapping with models, dataset, threat and steering", "['a']")),
        (b"", ("a mapping with models, dataset, threat and steering", "None")),
    ],
)
def test_a_file_that_is_no_benchmark(
    here: Path, command: Command, content: bytes | None, words: tuple[str, ...]
) -> None:
    if content is not None:
        (here / "tiny.yaml").write_bytes(content)
    ended = command("run", "tiny.yaml")
    assert ended.code == 2
    assert ended.err.startswith("error: tiny.yaml: ")
    assert [word for word in words if word not in ended.err] == []
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("dataset.n", "--set dataset.n", ("key=value", "such as dataset.n=100")),
        ("=3", "--set =3", ("key=value", "such as dataset.n=100")),
        ("models.7.name=x", "--set models.7.name=x", ("'7'", "0 … 0")),
        ("models.first.name=x", "--set models.first.name=x", ("'first'", "0 … 0")),
        ("device.x=1", "--set device.x=1", ("'x'", "'cpu'")),
        ("dataset.m=3", "dataset.m", ("unknown key", "n, indices, per_class, path")),
    ],
)
def test_an_override_that_cannot_be(refused: Refused, override: str, key: str, words: tuple[str, ...]) -> None:
    found = refused(mapping(), "--set", override)
    assert found.startswith(f"tiny.yaml: {key}: ")
    assert [word for word in words if word not in found] == []


@pytest.mark.parametrize("override", ["batch_size.x.y=1", "device.x.y=1", "dataset.n=[", "models.0=: :"])
def test_an_override_that_goes_nowhere(refused: Refused, override: str) -> None:
    # Once: a path through a number or a string, and a value that is no YAML, end in a traceback.
    assert refused(mapping(), "--set", override).startswith(f"tiny.yaml: --set {override}")


# --- folders and ledgers ---


def test_a_leaderboard_that_cannot_be_written_is_told_before_the_work(refused: Refused) -> None:
    found = refused(mapping(seed=5), "--out", "tiny.yaml/board.csv")
    assert found.startswith("tiny.yaml/board.csv: cannot be written: ")
    assert "--out" in found
    found = refused(mapping(seed=5), "--out", "o" * 242 + ".csv")
    assert found.startswith("o" * 242 + ".question.yaml: cannot be written: ")
    found = refused(mapping(seed=5), "--out", "runs")
    assert found.startswith("runs: cannot be written")
    assert "--out" in found


def test_a_ledger_directory_that_cannot_be_written(refused: Refused) -> None:
    found = refused(mapping(), "--runs", "tiny.yaml/runs")
    assert found.startswith("tiny.yaml/runs/tiny/ledger.sqlite: cannot be opened, read or written")
    assert "--runs" in found


def test_a_ledger_of_another_schema(here: Path, run: Run, computed: Path) -> None:
    shutil.copytree(computed / "runs", here / "runs")
    with sqlite3.connect(here / "runs" / "tiny" / "ledger.sqlite") as ledger:
        ledger.execute("PRAGMA user_version = 99")
    ledger.close()
    ended = run(mapping())
    assert ended.code == 2
    assert ended.err.startswith(f"error: {Path('runs/tiny/ledger.sqlite')}: ")
    assert [
        word for word in ("schema 3", "schema 99", "move runs/tiny away", "newer version") if word not in ended.err
    ] == []


# --- images ---


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.full((4, 1, 8, 8), 1.5), np.arange(4), ("x is float64", "1.5", "[0, 1]")),
        (np.full((4, 1, 8, 8), np.nan), np.arange(4), ("x ", "NaN", "image 0")),
        (np.zeros((4, 1, 8, 8)), np.arange(3), ("y has shape (3,)", "expected (4,)")),
    ],
)
def test_arrays_that_are_no_images(
    refused: Refused, here: Path, x: np.ndarray, y: np.ndarray, words: tuple[str, ...]
) -> None:
    np.savez("odd.npz", x=x, y=y)
    found = refused(mapping(dataset={"kind": "arrays", "path": "odd.npz"}))
    assert found.startswith(f"tiny.yaml: {here / 'odd.npz'}: ")
    assert [word for word in words if word not in found] == []


def test_images_that_are_not_there(refused: Refused, here: Path) -> None:
    found = refused(mapping(dataset={"kind": "arrays", "path": "nowhere.npz"}))
    assert found.startswith("tiny.yaml: dataset.path: ")
    assert str(here / "nowhere.npz") in found


# --- models ---

FAILURES: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
    ({"kind": "checkpoint", "builder": "tiny_networks:narrow"}, ("up to 3", "2 logits", "same classes"), ""),
    ({"kind": "checkpoint", "builder": "tiny_networks:nan"}, ("NaN or infinite", "check the weights"), ""),
    (
        {"kind": "checkpoint", "builder": "tiny_networks:probabilities"},
        ("probabilities", "vanishing gradients", "remove its softmax"),
        "probabilities",
    ),
    ({"kind": "training"}, ("training mode", "network.eval()"), ""),
    (
        {"kind": "checkpoint", "builder": "tiny_networks:smooth"},
        ("nothing to steer", "ReLU, LeakyReLU, PReLU, RReLU, ReLU6 and Hardtanh", "gelu ×1"),
        "",
    ),
    ({"kind": "checkpoint", "builder": "tiny_networks:quadrant"}, ("'quadrant'", "did you mean 'quadrants'?"), ""),
    ({"kind": "checkpoint", "builder": "tiny_networks:mixed", "weights": "w.pt"}, ("weights: no file",), ""),
]


@pytest.mark.parametrize(("model", "words", "flag"), FAILURES)
def test_a_model_that_fails_alone(
    resumed: Path, run: Run, model: dict[str, Any], words: tuple[str, ...], flag: str
) -> None:
    before = trials(resumed / "runs")
    ended = run(mapping(models=[model]))
    assert ended.code == 2
    assert "Traceback" not in ended.err
    table = pd.read_csv("leaderboards/tiny.csv", keep_default_na=False)
    assert len(table) == 1
    assert table["status"][0].startswith("failed: ")
    assert [word for word in words if word not in table["status"][0]] == []
    assert [word for word in words if word not in " ".join(ended.err.split())] == []
    assert (table["flags"][0], table["rank"][0], table["robust"][0]) == (flag, "", "")
    assert trials(resumed / "runs") == before


def test_models_that_fail_leave_the_others_be(here: Path, run: Run, computed: Path) -> None:
    good = mapping()["models"]
    ended = run(mapping(models=[FAILURES[0][0], *good, *(model for model, *_ in FAILURES[1:4])]))
    assert ended.code == 1
    csv = (here / "leaderboards" / "tiny.csv").read_text()
    alone = untimed((computed / "first.csv").read_text())[1:]
    assert untimed(csv)[2:-3] == alone
    status = pd.read_csv("leaderboards/tiny.csv")["status"]
    assert status.str.startswith("failed: ").tolist() == [True, *[False] * len(alone), True, True, True]
    assert re.search(r"failed: .*labels up to 3", ended.out)


# --- third parties ---


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("import no_such_library", ("cannot be imported", "'no_such_library'", "repair or uninstall it")),
        ("Part = 3", ("NAME:Part is not a part", "'broken'")),
        ("class Part: kind = 'broken'", ("NAME:Part is not a part", "'broken'")),
    ],
    ids=["import", "no class", "no part"],
)
@pytest.mark.parametrize("key", ["models[0]", "dataset", "executor"])
def test_a_broken_plug_in_is_named_with_its_owner(
    here: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    key: str,
    module: str,
    words: tuple[str, ...],
) -> None:
    group = {"models[0]": "models"}.get(key, f"{key}s")
    name = "broken_" + "".join(letter for letter in request.node.name if letter.isalnum())
    install(here / "site", "shoddy-parts", f"[ct_harness.{group}]\nbroken = {name}:Part\n", **{name: module})
    monkeypatch.syspath_prepend(str(here / "site"))
    broken = {"kind": "broken"}
    ended = run(mapping(**{key.removesuffix("[0]"): [broken] if group == "models" else broken}))
    assert ended.code == 2
    assert ended.err.startswith(f"error: tiny.yaml: {key}.kind: kind 'broken' (from shoddy-parts)")
    assert [word for word in words if word.replace("NAME", name) not in ended.err] == []
    assert "Traceback" not in ended.err


def test_a_broken_threat_is_named_with_its_key(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # Once: _with_defaults() imports the threat before build() does, outside of what adds `threat.kind: ` to the text.
    install(here / "site", "shoddy-parts", "[ct_harness.threats]\nbroken = shoddy_threat:Part\n", shoddy_threat="1 / 0")
    monkeypatch.syspath_prepend(str(here / "site"))
    ended = run(mapping(threat={"kind": "broken"}))
    assert ended.code == 2
    assert ended.err.startswith("error: tiny.yaml: threat.kind: kind 'broken' (from shoddy-parts) cannot be imported")


def test_a_broken_plug_in_harms_nobody_who_does_not_name_it(
    here: Path, run: Run, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_points = "".join(f"[ct_harness.{group}]\nbroken = shoddy_all:Part\n" for group in registry.GROUPS)
    install(here / "site", "shoddy-parts", entry_points, shoddy_all="raise OSError('no licence')")
    monkeypatch.syspath_prepend(str(here / "site"))
    assert run(mapping()).code == 0
    monkeypatch.setenv("COLUMNS", "200")
    listed = command("list")
    assert listed.code == 0
    assert listed.out.count("no licence") == len(registry.GROUPS)


@pytest.mark.parametrize("module", ["import sys; sys.exit(0)", "raise GeneratorExit", "raise OSError('no licence')"])
def test_schema_and_list_go_on_without_a_broken_plug_in_and_name_it(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    sound, kind = command("schema"), f"broken_{len(module)}"
    entry_points = "".join(f"[ct_harness.{group}]\n{kind} = {kind}_all:Part\n" for group in registry.GROUPS)
    install(here / "site", "shoddy-parts", entry_points, **{f"{kind}_all": module})
    monkeypatch.syspath_prepend(str(here / "site"))
    ended = command("schema")
    assert (ended.code, ended.out) == (0, sound.out)
    assert ended.err.count(f"warning: kind '{kind}' (from shoddy-parts) cannot be imported: ") == len(registry.GROUPS)
    monkeypatch.setenv("COLUMNS", "200")
    for group in ("models", "threats"):
        listed = command("list", group)
        assert listed.code == 0
        assert f"kind '{kind}' (from shoddy-parts) cannot be imported" in listed.out


def test_a_kind_that_two_packages_register_is_refused(
    here: Path, run: Run, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(here / "site", "shoddy-parts", "[ct_harness.datasets]\narrays = shoddy:Part\n")
    monkeypatch.syspath_prepend(str(here / "site"))
    ended = run(mapping())
    assert ended.code == 2
    claims = "harness.datasets.arrays:Arrays (from ct-harness), shoddy:Part (from shoddy-parts)"
    assert ended.err == (
        f"error: tiny.yaml: dataset.kind: kind 'arrays' is registered twice: {claims}; uninstall one of them\n"
    )


def test_parts_of_third_parties_are_built_as_ours_are(installed: Path) -> None:
    assert installed.is_dir()
    assert registry.build("threats", {"kind": "dim"}, "threat").identity() == {"kind": "dim"}
    with pytest.raises(SpecError, match=r"^threat\.kind: unknown kind 'din' \(did you mean 'dim'\?\)"):
        registry.build("threats", {"kind": "din"}, "threat")


@pytest.mark.parametrize("part", [3, None, [], {"name": "x"}, {"kind": 3}])
def test_a_part_without_a_kind(part: Any) -> None:
    with pytest.raises(SpecError, match=r"^threat: expected a mapping with a kind \(one of L1, L2, Linf.*\), found "):
        registry.build("threats", part, "threat")


def test_a_yaml_of_odd_keys(refused: Refused) -> None:
    assert refused(yaml.safe_load(yaml.safe_dump(mapping())) | {1: 2}).startswith("tiny.yaml: ")
    assert refused(mapping(dataset=IMAGES | {1: 2})).startswith("tiny.yaml: dataset")
