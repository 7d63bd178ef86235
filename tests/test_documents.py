"""What the documents say is so: commands and Python run, links lead somewhere, tables are complete, output is real."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from harness.api import registry
from harness.cli.app import app
from harness.config.benchmark import parse_benchmark
from harness.leaderboard.flags import MEANING
from harness.leaderboard.row import HEADLINES

ROOT = Path(__file__).parents[1]
NAMES = (
    "README.md",
    "benchmarks/README.md",
    "leaderboards/README.md",
    "harness/README.md",
    "harness/analysis/README.md",
    "ci/README.md",
    ".github/CONTRIBUTING.md",
)
TINY = {"stages": ["apgd-ce", "square"], "iterations": 3, "queries": 5}
"""In place of standard AutoAttack."""


# --- what a document consists of ---


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        where: the document and the number of the line on which it begins.
        marker: of the comment on the line before, such as ``needs: a GPU``; empty where there is none.
    """

    where: str
    language: str
    text: str
    marker: str

    @property
    def title(self) -> str:
        """Its first line."""
        return self.text.partition("\n")[0]


@dataclass(frozen=True)
class Document:
    """A Markdown file."""

    name: str
    blocks: tuple[Block, ...]
    prose: str
    """All that is not in a fence."""

    @property
    def anchors(self) -> set[str]:
        """What GitHub calls its headings, in a link."""
        found: list[str] = []
        for title in re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE):
            slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
            found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
        return set(found)

    def section(self, title: str) -> str:
        """The prose below a heading, up to the next one of the same or a higher rank."""
        found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,}} |\Z)", self.prose, re.MULTILINE | re.DOTALL)
        assert found, f"{self.name}: no section {title!r}"
        return found[2]


def document(name: str, text: str | None = None) -> Document:
    """Take a Markdown file apart."""
    lines = ((ROOT / name).read_text(encoding="utf-8") if text is None else text).splitlines()
    blocks, prose, before, number = [], [], "", 0
    while number < len(lines):
        if lines[number].startswith("```"):
            end = lines.index("```", number + 1)
            marker = re.fullmatch(r"<!-- (.+) -->", before)
            language, body = lines[number].removeprefix("```"), "\n".join(lines[number + 1 : end])
            blocks.append(Block(f"{name}:{number + 1}", language, body + "\n", marker[1] if marker else ""))
            number = end
        else:
            prose.append(lines[number])
        before = lines[number]
        number += 1
    return Document(name, tuple(blocks), "\n".join(prose) + "\n")


def tables(text: str) -> list[list[dict[str, str]]]:
    """The tables of some prose, each row by its heading; repeated headings are numbered."""
    found = []
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        head, rule, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()]
        head = [f"{name} {number}" if head.count(name) > 1 else name for number, name in enumerate(head)]
        assert all(set(cell) == {"-"} for cell in rule), table
        assert all(len(row) == len(head) for row in rows), table
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


DOCUMENTS = {name: document(name) for name in NAMES if (ROOT / name).exists()}
README = DOCUMENTS["README.md"]
REFERENCE = DOCUMENTS["benchmarks/README.md"]
BOARDS = DOCUMENTS["leaderboards/README.md"]


# --- how blocks are run ---


def cheap(text: str) -> str:
    """A benchmark that asks the same of few images, few β and a tiny attack, in this process."""
    mapping = yaml.safe_load(text)
    if mapping["dataset"]["kind"] not in ("digits", "arrays"):
        return text
    dataset, threat, steering = mapping["dataset"], mapping["threat"], mapping["steering"]
    dataset |= {"per_class": 2} if "per_class" in dataset else {"n": min(dataset.get("n", 20), 20)}
    if threat.get("attack") == "standard":
        threat["attack"] = TINY
    beta = steering["beta"]
    steering["beta"] = [beta["from"], beta["to"]] if isinstance(beta, dict) else beta[:2]
    for model in mapping["models"]:
        if model["kind"] == "probe":
            model["methods"] = []
            model["train"] |= {"per_class": 4}
    return yaml.safe_dump({"executor": {"kind": "inline"}, "device": "cpu"} | mapping)


@dataclass
class Folder:
    """A working directory like a clone, its benchmarks cheap; runs what is typed in it."""

    path: Path
    namespace: dict[str, Any] = field(default_factory=dict)

    def put(self, name: str, text: str) -> None:
        """Write a file as a reader would, from a block that names it."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(cheap(text) if file.suffix == ".yaml" else text, encoding="utf-8")

    def harness(self, *arguments: str) -> str:
        """What ``ct-harness`` prints; a failure is one of the test."""
        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, f"{' '.join(arguments)} ended with {result.exit_code}\n{result.output}"
        return result.stdout

    def script(self, name: str, *arguments: str) -> None:
        """Run a script of ``ci/`` in this process."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, *arguments])
            code: object = 0
            try:
                runpy.run_path(str(ROOT / name), run_name="__main__")
            except SystemExit as end:
                code = end.code
            assert not code, f"{name} ended with {code}"

    def board(self) -> None:
        """Have the cheap board of ``digits_linf`` where the committed one was; it would not replace that itself."""
        for path in Path("leaderboards").glob("digits_linf.*"):
            path.unlink()
        self.harness("run", "benchmarks/digits_linf.yaml")


SCRIPTS: Mapping[str, Sequence[str]] = {
    "ci/simulate.py": ("--tables", "1"),
    "ci/train_demo.py": ("--steps", "1"),
    "ci/nightly.py": (),
}
"""Those that documents may call, and what makes them quick."""


def run_shell(block: Block, folder: Folder) -> None:
    """Run each line of a block."""
    for line in block.text.splitlines():
        match shlex.split(line, comments=True):
            case []:
                pass
            case ["ct-harness", *arguments]:
                if arguments[0] == "check":
                    folder.board()
                folder.harness(*arguments)
            case ["python", script, *arguments] if script in SCRIPTS:
                if script == "ci/nightly.py":
                    shutil.rmtree("leaderboards")
                    folder.board()
                folder.script(script, *arguments, *SCRIPTS[script])
            case ["pytest", file] if Path(file).exists():
                ended = subprocess.run(
                    [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert ended.returncode == 0, ended.stdout
            case _:
                pytest.fail(f"{block.where}: nothing runs {line!r}; mark the block by what it needs")


def run_python(block: Block, folder: Folder) -> None:
    """Run a block in the document's namespace; the comment behind an expression is what it is."""
    if saved := re.match(r"# (\w+\.py)\n", block.text):
        folder.put(saved[1], block.text)
        return
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(StringIO(block.text).readline)
        if token.type == tokenize.COMMENT
    }
    for statement in ast.parse(block.text).body:
        assert statement.end_lineno is not None
        comment = comments.get(statement.end_lineno)
        code = ast.get_source_segment(block.text, statement)
        assert code is not None
        if isinstance(statement, ast.Expr):
            value = eval(code, folder.namespace)
            if comment and value is not None:
                assert repr(value) == comment, f"{block.where}: {code} is {value!r}"
        else:
            exec(code, folder.namespace)


def run_yaml(block: Block, folder: Folder) -> None:
    """Read a whole benchmark, or a part of one in place of what another has there."""
    if saved := re.match(r"# (\w+\.yaml)\n", block.text):
        folder.put(saved[1], block.text)
    given = yaml.safe_load(block.text)
    whole = yaml.safe_load((ROOT / "benchmarks" / "digits_linf.yaml").read_text())
    parse_benchmark({"name": "document"} | (given if "models" in given else whole | given))


def run_toml(block: Block, folder: Folder) -> None:
    """Have a package installed as pip does it in a checkout: its modules here, its metadata beside them."""
    project = tomllib.loads(block.text)["project"]
    entry_points = "".join(
        f"[{group}]\n" + "".join(f"{kind} = {place}\n" for kind, place in points.items())
        for group, points in project["entry-points"].items()
    )
    info = folder.path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(entry_points)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")


RUN: Mapping[str, Callable[[Block, Folder], None]] = {
    "sh": run_shell,
    "python": run_python,
    "yaml": run_yaml,
    "toml": run_toml,
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The benchmarks, cheap ones, and the committed boards. Copy it."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "benchmarks").mkdir()
    for path in (ROOT / "benchmarks").glob("*.yaml"):
        (folder / "benchmarks" / path.name).write_text(cheap(path.read_text(encoding="utf-8")), encoding="utf-8")
    (folder / "leaderboards").mkdir()
    for path in (ROOT / "leaderboards").glob("*.csv"):
        shutil.copy(path, folder / "leaderboards")
    return folder


@pytest.fixture
def folder(clone: Path, tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """A working directory of its own, in which the test is."""
    import torch

    shutil.copytree(clone, tmp_path / "clone")
    monkeypatch.chdir(tmp_path / "clone")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]))
    monkeypatch.setenv("COLUMNS", "250")
    modules, threads = set(sys.modules), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield Folder(tmp_path / "clone")
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)
    for name in set(sys.modules) - modules:  # those of the folder
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


# --- every block runs ---


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name not in ("README.md", "harness/README.md")])
def test_every_command_and_every_block_of_a_document_runs(name: str, folder: Folder) -> None:
    for block in DOCUMENTS[name].blocks:
        if block.language and not block.marker:
            RUN[block.language](block, folder)


def test_a_marker_says_what_a_block_needs() -> None:
    markers = [block.marker for one in DOCUMENTS.values() for block in one.blocks if block.marker]
    assert markers.count("run") == markers.count("test") == 1
    assert {marker.partition(": ")[0] for marker in markers} == {"run", "test", "needs"}
    needs = {marker.removeprefix("needs: ") for marker in markers if marker.startswith("needs: ")}
    assert needs <= {"the package index", "a Ray cluster", "a GPU", "minutes", "half an hour"}


def own_network(folder: Folder) -> dict[str, Any]:
    """What a reader of README.md has: a trained network, and images with labels, here those that the network gives."""
    import torch

    benchmark = yaml.safe_load((folder.path / "mine.yaml").read_text())
    (model,) = benchmark["models"]
    mean, std = (torch.tensor(model[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder.path))
        sys.modules.pop("my_networks", None)  # another test's
        network = importlib.import_module("my_networks").cnn().eval()
    with torch.no_grad():
        network[-1].weight.mul_(20)
        network[-1].bias.zero_()
        images = torch.randint(0, 256, (200, 3, 8, 8), dtype=torch.uint8)
        images = (images * torch.rand(200, 3, 1, 1)).to(torch.uint8)
        pixels = images / 255
        labels, others = network((pixels - mean) / std).argmax(1), network(pixels).argmax(1)
    assert len(labels.unique()) >= 3
    assert (labels == others).float().mean() < 0.9  # so the normalisation matters
    return {"network": network, "images": images.numpy(), "labels": labels.numpy()}


def test_readme_runs_and_a_readers_own_network_scores_what_it_must(folder: Folder) -> None:
    blocks = [block for block in README.blocks if block.language and not block.marker]
    for block in sorted(
        blocks, key=lambda block: "torch.save(" in block.text
    ):  # once my_networks and mine.yaml are there
        if block.language == "yaml" or "# my_networks.py" in block.text:
            RUN[block.language](block, folder)
    folder.namespace |= own_network(folder)
    for block in blocks:
        RUN[block.language](block, folder)
    board = pd.read_csv("leaderboards/mine.csv")
    asked = yaml.safe_load(Path("mine.yaml").read_text())
    assert set(board["model"]) == {asked["models"][0]["name"]}
    assert set(board["n"]) == {50}
    grid = board[~board["status"].isin(HEADLINES.values())]
    assert sorted(grid["beta"]) == sorted([*asked["steering"]["beta"], 1.0])
    (clean,) = grid[grid["method"] == "untouched"]["clean"]
    assert clean == 1.0
    assert board["eps"].round(6).eq(round(1 / 255, 6)).all()


def test_the_plug_ins_of_the_tutorial_run_and_score_what_they_must(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.datasets import load_digits

    monkeypatch.syspath_prepend(str(folder.path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder.path), os.environ["PYTHONPATH"]]))
    greys = (load_digits().images * 15.9375).astype(np.uint8)  # 16 becomes 255
    header = np.array([0x803, *greys.shape], ">u4").tobytes()
    Path("t10k-images-idx3-ubyte").write_bytes(header + greys.tobytes())
    header = np.array([0x801, len(greys)], ">u4").tobytes()
    Path("t10k-labels-idx1-ubyte").write_bytes(header + load_digits().target.astype(np.uint8).tobytes())
    for block in DOCUMENTS["harness/README.md"].blocks:
        if block.language and not block.marker:
            RUN[block.language](block, folder)
            if block.title == "# pyproject.toml":
                assert {"brightness", "Linf_momentum"} <= registry.registered("threats").keys()

    def right(x: np.ndarray) -> np.ndarray:
        """Which images the network classifies correctly: its forward pass, by hand."""
        arrays = list(np.load("mlp.npz").values())
        depth = len(arrays) // 2
        for number, (weight, bias) in enumerate(zip(arrays[:depth], arrays[depth:], strict=True)):
            x = x @ weight + bias
            x = np.maximum(x, 0) if number + 1 < depth else x
        return np.asarray(x.argmax(1) == y)

    idx = "{kind: idx, images: t10k-images-idx3-ubyte, labels: t10k-labels-idx1-ubyte, n: 50}"
    folder.harness("run", "mine.yaml", "--set", f"dataset={idx}", "--set", "name=other")
    board = pd.read_csv("leaderboards/other.csv")
    (baseline,) = board[board["method"] == "untouched"].to_dict("records")
    x, y = greys[:50].reshape(50, 64) / 255, load_digits().target[:50]
    survived = right(x) & right((x - 0.3).clip(0, 1)) & right((x + 0.3).clip(0, 1))
    assert baseline["clean"] == right(x).mean()
    assert baseline["robust"] == survived.mean()
    assert 0 < baseline["robust"] < baseline["clean"]
    boards = (path for path in Path("leaderboards").glob("mine-*.csv") if not path.stem.endswith(".outcomes"))
    attacked = pd.read_csv(max(boards, key=lambda path: path.stat().st_mtime))  # by the last command
    assert set(attacked["attack"]) == {"mi-fgsm+square"}
    refused = CliRunner().invoke(app, ["run", "mine.yaml", "--set", "threat.delt=1"])
    assert refused.exit_code == 2
    assert "threat.delt" in refused.stderr
    assert "'delta'" in refused.stderr
    plain, fast = lost_to_momentum("Linf_momentum", folder), lost_to_momentum("Linf_momentum_fast", folder)
    assert (plain <= fast).all()  # the same walk; in slots it ends at the first misclassified image
    assert plain.sum() > 0
    assert fast.mean() < 1


def lost_to_momentum(kind: str, folder: Folder) -> np.ndarray:
    """Return whether each image of ``mine.yaml`` is lost under each steering to the tutorial's attack."""
    ball = f"threat={{kind: {kind}, eps: 0.1, attack: {{stages: [apgd-ce], iterations: 1}}}}"
    folder.harness("run", "mine.yaml", "--set", ball, "--set", "search={kind: full}", "--set", "name=momentum")
    outcomes = pd.read_csv("leaderboards/momentum.outcomes.csv", dtype=str)
    texts = outcomes[outcomes["stage"] == "mi-fgsm"]["outcomes"]
    return np.array([[mark == "0" for mark in text] for text in texts])


def imports() -> set[tuple[str, str]]:
    """Which package imports which, wherever the import stands; the files at the root as packages of their own."""
    found = set()
    for path in (ROOT / "harness").rglob("*.py"):
        package = path.relative_to(ROOT / "harness").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "harness":
                own = (node.module or "").split(".")[1:2]
                found |= {(package, name) for name in own or [alias.name for alias in node.names]}
    return {(package, other) for package, other in found if package != other}


def test_the_tree_names_every_package_and_imports_run_down_in_its_order() -> None:
    (tree,) = [block for block in DOCUMENTS["harness/README.md"].blocks if block.title == "harness/"]
    named = re.findall(r"^  (\w+)(?:/|\.py) ", tree.text, re.MULTILINE)
    there = {
        path.stem for path in (ROOT / "harness").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert sorted(named) == sorted(there - {"__init__", "__main__"})
    floor = {name: number for number, name in enumerate(named)}
    arrows = [(name, other) for name, other in imports() if name in floor and other in floor]
    assert len(arrows) > len(named)
    assert [(name, other) for name, other in arrows if floor[other] < floor[name]] == []


def test_the_two_commands_of_readme_are_found_as_scripts_find_them() -> None:
    """By the awk of ``.ci/run``: the line after the marker opens the fence."""
    found = {block.marker: block.text.splitlines() for block in README.blocks if block.marker in ("run", "test")}
    environment = "python3 -m venv .venv && . .venv/bin/activate"
    assert found == {
        "run": [environment, "pip install -e .", "ct-harness run benchmarks/digits_linf.yaml"],
        "test": [environment, "pip install -e '.[dev]'", "pytest -n auto"],
    }


# --- what is shown is real ---


def printed(text: str) -> list[str]:
    """The lines of some output, without what only fills the width."""
    return [re.sub(r"─+", "─", line.rstrip()) for line in text.splitlines() if line.strip()]


def test_every_output_shown_is_what_the_command_prints(folder: Folder) -> None:
    shutil.copytree(ROOT / "leaderboards", folder.path / "leaderboards", dirs_exist_ok=True)
    seen = []
    for block in (block for one in DOCUMENTS.values() for block in one.blocks if not block.language):
        if block.title == "harness/":  # the tree, which has a test of its own
            continue
        if block.title.startswith("✗"):
            (folder.path / "leaderboards").mkdir(exist_ok=True)
            result = CliRunner().invoke(app, ["doctor", "benchmarks/cifar10_corruptions.yaml"])
            assert result.exit_code == 2
            output = result.stdout.replace(f"{folder.path}/", "")
        else:
            command = "coverage" if block.title == "leaderboards/coverage.csv" else "show"
            output = folder.harness(*([command] if command == "coverage" else [command, block.title]))
        seen.append(block.title)
        shown, real = printed(block.text), printed(output)
        assert [line for line in shown if line not in real] == [], block.where
        assert [line for line in real if line in shown] == shown, block.where
    assert {"leaderboards/digits_linf.csv", "leaderboards/coverage.csv"} <= set(seen)


def test_the_results_in_the_list_of_boards_are_those_of_the_boards() -> None:
    (rows,) = [table for table in tables(BOARDS.section("The committed boards")) if "board" in table[0]]
    expected = []
    for path in sorted((ROOT / "leaderboards").glob("*.csv")):
        if path.name.endswith(".outcomes.csv") or path.stem == "coverage":
            continue
        board = pd.read_csv(path)
        for model, own in board.groupby("model", sort=False):
            (headline,) = own[own["status"].isin(HEADLINES.values())].to_dict("records")
            baseline = 100 * headline["robust"] - headline["delta_pp"]
            signed = [f"{headline[name]:+.1f}".replace("-", "−") for name in ("delta_pp", "delta_low", "delta_high")]
            signed = [text.replace("−0.0", "+0.0") for text in signed]
            expected.append({
                "board": path.stem, "model": model, "n": str(headline["n"]), "untouched": f"{baseline:.1f}",
                "selected": f"{100 * headline['robust']:.1f}", "Δ, 95 %": f"{signed[0]}, {signed[1]} … {signed[2]}",
                "p (Holm)": f"{headline['p_holm']:.2g}",
            })  # fmt: skip
    found = [row | {"board": row["board"].split("`")[1]} for row in rows]
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_the_results_of_transfer_are_those_of_the_boards() -> None:
    (rows,) = tables(BOARDS.section("Transfer"))
    for method, *cells in (list(row.values()) for row in rows):
        name = method.strip("`") if "`" in method else "linear_probe"
        expected = []
        for model in ("digits_plain_0to4", "digits_robust_0to4"):
            for stem in ("transfer_digits", "transfer_digits_linf"):
                board = pd.read_csv(ROOT / "leaderboards" / f"{stem}.csv")
                (row,) = board[
                    (board["model"] == model) & (board["method"] == name) & (board["status"] == "ok")
                ].to_dict("records")
                p_value = "" if np.isnan(row["p_holm"]) else f"{row['p_holm']:.2g}"
                expected += [f"{100 * row['robust']:.1f}", p_value]
        assert cells == expected, method


def test_the_simulation_tables_have_the_procedures_and_worlds_that_are_simulated(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.script("ci/simulate.py", "--tables", "1")
    statistics, ci = DOCUMENTS["harness/analysis/README.md"], DOCUMENTS["ci/README.md"]
    sections = (
        statistics.section("How often is a gain claimed where there is none?"),
        statistics.section("How often does an interval hold the truth?"),
        ci.section("The nightly gate"),
    )
    for section, simulated in zip(sections, tables(capsys.readouterr().out), strict=True):
        shown = tables(section)[-1]
        assert [next(iter(row.values())) for row in shown] == [next(iter(row.values())) for row in simulated]
        assert list(shown[0])[1:] == list(simulated[0])[1:]


# --- what is listed is complete ---


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """What ``ct-harness schema`` says of the YAML, without third parties."""
    result = CliRunner().invoke(app, ["schema"])
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def kinds(schema: dict[str, Any], group: str) -> dict[str, dict[str, Any]]:
    """The keys of each kind of a group, by its name."""
    found = {}
    for entry in schema["$defs"][group]["oneOf"]:
        properties = dict(entry["properties"])
        found[properties.pop("kind")["const"]] = properties
    return found


def as_written(cell: str) -> Any:
    """The default that a cell names; None for a key that must be given is told apart by the type."""
    return ... if cell == "required" else yaml.safe_load(cell.strip("`"))


def said(table: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Key and default as a table of the reference has them."""
    return {row["key"].strip("`"): as_written(row["default"]) for row in table if row["key"]}


def meant(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Key and default as the schema has them."""
    return {key: entry.get("default", ...) for key, entry in properties.items()}


def test_every_key_of_a_benchmark_stands_in_the_reference_with_its_default(schema: dict[str, Any]) -> None:
    (table,) = tables(REFERENCE.section("Top level"))
    special = {"name": "the file's name", "executor": {"kind": "local"}}
    assert said(table) == meant(schema["properties"]) | special
    assert [row["key"].strip("`") for row in table if row["default"] == "required"] == schema["required"]
    (table,) = tables(REFERENCE.section("Steering"))
    assert said(table) == meant(schema["$defs"]["SteeringGrid"]["properties"])


@pytest.mark.parametrize("title", ["Selection", "Search"])
def test_every_way_of_selecting_and_searching_stands_in_the_reference(title: str, schema: dict[str, Any]) -> None:
    names = schema["properties"][title.lower()]["discriminator"]["mapping"]
    expected: dict[str, dict[str, Any]] = {}
    for kind, reference in names.items():
        properties = dict(schema["$defs"][reference.rpartition("/")[2]]["properties"])
        del properties["kind"]
        expected[kind] = meant(properties)
    (table,) = tables(REFERENCE.section(title))
    assert {row["kind"].strip("`"): said([row]) for row in table} == expected


@pytest.mark.parametrize("group", ["models", "datasets", "executors"])
def test_every_kind_stands_in_the_reference_with_its_keys_and_defaults(group: str, schema: dict[str, Any]) -> None:
    shared: dict[str, Any] = {}
    if group == "datasets":
        (table,) = tables(REFERENCE.section("Datasets"))
        shared = said(table)
    for kind, properties in kinds(schema, group).items():
        table, *more = tables(REFERENCE.section(f"`{kind}`"))
        assert said(table) | shared == meant(properties), kind
        for inner, name in zip(more, ("Probing", "Tuning"), strict=False):
            assert said(inner) == meant(schema["$defs"][name]["properties"])
        assert len(more) == 2 * (kind == "probe")


def test_every_threat_stands_in_the_reference_with_its_keys_and_defaults(schema: dict[str, Any]) -> None:
    found = kinds(schema, "threats")
    balls, own_budget = tables(REFERENCE.section("Lp threats"))
    for kind in ("Linf", "L2", "L1"):
        assert said(balls) == meant(found.pop(kind))
    assert said(own_budget) == meant(schema["$defs"]["Custom"]["properties"])
    (corruptions,) = tables(REFERENCE.section("Corruptions"))
    expected = meant(found.pop("corruptions"))
    assert said(corruptions) == expected | {"corruptions": f"all {len(expected['corruptions'])}"}
    three = meant(found.pop("corruptions_3d"))
    assert three.keys() == expected.keys()
    assert three["source"] in REFERENCE.section("Corruptions")
    assert found.pop("clean") == {}
    assert found == {}


def test_every_downstream_data_set_stands_in_the_reference() -> None:
    from harness.datasets.downstream import Downstream

    (names,) = Downstream.names().values()
    text = REFERENCE.section("`downstream`")
    assert [name for name in re.findall(r"`(\w+)`", text) if name in names][: len(names)] == list(names)


def test_every_benchmark_has_its_line() -> None:
    (table,) = tables(REFERENCE.section("The shipped benchmarks"))
    files = [row["file"].strip("`") for row in table]
    assert sorted(files) == sorted(path.stem for path in (ROOT / "benchmarks").glob("*.yaml"))


def test_every_column_of_a_board_stands_in_its_document_in_order() -> None:
    (table,) = tables(BOARDS.section("Columns"))
    header = (ROOT / "leaderboards" / "digits_linf.csv").read_text().partition("\n")[0].split(",")
    assert [row["column"].strip("`") for row in table] == header
    assert all(row["meaning"] for row in table)


def test_every_column_of_an_outcome_file_stands_in_its_document() -> None:
    header = (ROOT / "leaderboards" / "digits_linf.outcomes.csv").read_text().partition("\n")[0].split(",")
    assert ", ".join(f"`{name}`" for name in header) in BOARDS.section("Outcome files")


def test_every_flag_stands_in_its_document() -> None:
    (table,) = tables(BOARDS.section("Flags"))
    assert sorted(row["flag"].strip("`") for row in table) == sorted(MEANING)


def test_every_module_of_the_statistics_has_its_line() -> None:
    (table,) = [table for table in tables(DOCUMENTS["harness/analysis/README.md"].prose) if "file" in table[0]]
    files = {re.sub(r"\[(.+)\]\(.+\)", r"\1", row["file"]) for row in table}
    assert files == {path.name for path in (ROOT / "harness" / "analysis").glob("[a-z]*.py")}


def test_every_script_of_ci_has_its_line() -> None:
    table, *_ = tables(DOCUMENTS["ci/README.md"].prose)
    files = {re.sub(r"\[(.+)\]\(.+\)", r"\1", row["script"]) for row in table}
    assert files == {path.name for path in (ROOT / "ci").glob("*.py")}


def test_every_command_stands_in_readme() -> None:
    text = "\n".join(block.text for block in README.blocks if block.language == "sh")
    for name in get_command(app).commands:  # type: ignore[attr-defined]
        assert f"ct-harness {name}" in text, name


# --- what is named is there ---


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 210


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", DOCUMENTS[name].prose)
    assert links
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert target.exists(), link
        if anchor:
            other = target.relative_to(ROOT).as_posix()
            assert anchor in document(other).anchors, link


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_and_names_of_the_code_exist(name: str) -> None:
    """What stands in backticks, or in a command, as a path or a dotted name of the package."""
    one = DOCUMENTS[name]
    words = re.findall(r"`([^`\n]+)`", one.prose)
    words += [word for block in one.blocks if block.language == "sh" for word in shlex.split(block.text, comments=True)]
    for word in words:
        if re.fullmatch(r"(harness|tests|ci|benchmarks|leaderboards|\.github|\.ci)/[\w./-]*", word):
            assert (ROOT / word).exists(), word
        if re.fullmatch(r"harness(\.\w+)+(:\w+)?(\(\))?", word):
            resolve(word.removesuffix("()").replace(":", "."))


def resolve(dotted: str) -> object:
    """The module, or what is in it, of that name."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            found = getattr(found, attribute)
        return found
    raise ModuleNotFoundError(dotted)


def test_where_to_find_things_names_files_that_have_them() -> None:
    (table,) = tables(DOCUMENTS["harness/README.md"].section("Where to find things"))
    for row in table:
        words = re.findall(r"`([^`]+)`", row["look at"])
        texts = [(ROOT / word).read_text(encoding="utf-8") for word in words if (ROOT / word).is_file()]
        for name in (word for word in words if word.isidentifier()):
            assert any(re.search(rf"\b{name}\b", text) for text in texts), row


def test_options_that_are_named_exist() -> None:
    commands = get_command(app).commands.values()  # type: ignore[attr-defined]
    known = {option for command in commands for parameter in command.params for option in parameter.opts}
    for script in (ROOT / "ci").glob("*.py"):
        known |= set(re.findall(r'add_argument\("(--[\w-]+)"', script.read_text(encoding="utf-8")))
    known |= {"--help", "--check"}  # --check of ruff
    for one in DOCUMENTS.values():
        text = one.prose + "".join(block.text for block in one.blocks if block.language == "sh")
        assert set(re.findall(r"(?<![\w-])(--[a-z][\w-]*)", text)) <= known, one.name


# --- the tests above can fail ---


def test_a_block_that_nothing_runs_is_told(folder: Folder) -> None:
    (block,) = document("x", "```sh\nmake coffee\n```\n").blocks
    with pytest.raises(pytest.fail.Exception, match="nothing runs 'make coffee'"):
        run_shell(block, folder)


def test_a_wrong_value_in_a_comment_is_told(folder: Folder) -> None:
    (block,) = document("x", "```python\na = 1\na + 1  # 3\n```\n").blocks
    with pytest.raises(AssertionError, match="is 2"):
        run_python(block, folder)


def test_anchors_are_githubs() -> None:
    text = "# A\n## The paper's protocol\n## `probe`\n## How often? Never.\n## A\n```\n# no heading\n```\n"
    assert document("x", text).anchors == {"a", "the-papers-protocol", "probe", "how-often-never", "a-1"}
