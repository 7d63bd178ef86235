"""The tree shows the architecture: packages stand on floors, imports run downwards only, the core knows no plug-in.

Every import counts, wherever it stands: at the top of a file, in a function, or for type checkers alone.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HARNESS = ROOT / "harness"

AT_THE_ROOT = {"__init__", "__main__", "pipeline", "errors", "testing"}
PLUG_INS = {"models", "datasets", "threats", "attacks", "transfer", "executors"}
MOST_FLOORS = 12

KNOWN_EXCEPTIONS = {("harness.cli.info", "harness.models.robustbench_zoo")}
"""``ct-harness coverage`` is about RobustBench's zoo, and says so."""

Graph = Mapping[str, set[str]]


def name_of(path: Path) -> str:
    """Return the dotted name of a file of the package; a package by its own name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, modules: set[str]) -> Iterator[str]:
    """Yield the modules of the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            candidates = [f"{module}.{alias.name}" for alias in node.names]
            candidates = [name if name in modules else module for name in candidates]
        else:
            continue
        yield from (name for name in candidates if name in modules)


def files() -> Graph:
    """Return which module imports which."""
    paths = {name_of(path): path for path in HARNESS.rglob("*.py")}
    return {name: set(imported(path, set(paths))) - {name} for name, path in paths.items()}


def room_of(module: str) -> str:
    """Return the package directly below ``harness`` that a module stands in, or the module itself at the root."""
    return ".".join(module.split(".")[:2])


def rooms(graph: Graph) -> Graph:
    """Return which package imports which, the files at the root as packages of their own."""
    found: dict[str, set[str]] = {}
    for module, others in graph.items():
        found.setdefault(room_of(module), set()).update(map(room_of, others))
    return {room: others - {room} for room, others in found.items()}


def floors(graph: Graph) -> dict[str, int]:
    """Return each node's floor: one above the highest that it imports.

    Raises:
        CycleError: there is a circle.
    """
    found: dict[str, int] = {}
    for node in TopologicalSorter(graph).static_order():
        found[node] = 1 + max((found[other] for other in graph[node]), default=0)
    return found


def test_no_file_imports_itself_around_a_circle() -> None:
    floors(files())


def test_packages_stand_on_at_most_twelve_floors_and_imports_run_downwards() -> None:
    assert max(floors(rooms(files())).values()) <= MOST_FLOORS


@pytest.mark.parametrize(
    ("extra", "circle"),
    [
        ({("harness.api.records", "harness.pipeline")}, True),
        ({("harness.util.files", "harness.report.site")}, True),
        (set(), False),
    ],
)
def test_a_planted_import_that_runs_up_is_found(extra: set[tuple[str, str]], circle: bool) -> None:
    graph = {module: others | {b for a, b in extra if a == module} for module, others in files().items()}
    for planted in (graph, rooms(graph)):
        if circle:
            with pytest.raises(CycleError):
                floors(planted)
        else:
            assert floors(planted)


def test_only_the_line_its_errors_and_the_contract_suites_stand_at_the_root() -> None:
    assert {path.stem for path in HARNESS.glob("*.py")} == AT_THE_ROOT


def test_the_core_imports_no_plug_in() -> None:
    plug_ins = {f"harness.{name}" for name in PLUG_INS}
    crossings = {
        (module, other)
        for module, others in files().items()
        for other in others
        if room_of(module) not in plug_ins and room_of(other) in plug_ins
    }
    assert crossings == KNOWN_EXCEPTIONS


NETWORKS_RUN_IN = ("attacks", "curvature", "engine", "threats", "transfer")
RUN_NONE = {"engine/prepare.py", "engine/session.py", "engine/numerics.py"}
"""Files that report whatever is raised as it is, as the model's failure, or run no network there."""


def test_no_handler_takes_an_error_of_the_device_for_one_of_the_network() -> None:
    """Out of memory is no gradient masking, no gap in the steering, and no reason to compute otherwise."""
    broad = {"Exception", "RuntimeError", "BaseException"}
    found = 0
    for path in (file for package in NETWORKS_RUN_IN for file in sorted((HARNESS / package).rglob("*.py"))):
        if path.relative_to(HARNESS).as_posix() in RUN_NONE:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)} if node.type else broad
            if caught & broad:
                first = ast.unparse(node.body[0])
                passes_on = (
                    "raise_of_device(error)",
                    "if not is_out_of_memory(error):\n    raise",
                    "if any(map(is_out_of_memory, (error, error.__context__))) or not device_answers():\n    raise",
                )
                assert first in passes_on, f"{path}:{node.lineno}"
                found += 1
    assert found >= 8


def test_every_package_says_what_it_is_for() -> None:
    for path in HARNESS.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_tests_mirror_the_packages() -> None:
    packages = {path.parent.name for path in HARNESS.glob("*/__init__.py")}
    directories = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert directories <= packages
    assert packages - directories <= set()


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom harness.cli.app import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


QUESTIONS = {"What", "Which", "Who", "Whose", "Whether", "How", "Where", "Of", "Is", "Are", "If", "As"}
"""First words of a docstring that is neither a verb nor a noun of the field."""


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    found = []
    for path in HARNESS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                words = (ast.get_docstring(node) or "").split()
                if words and words[0].strip("`.,:?") in QUESTIONS:
                    found.append(f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'module')}: {' '.join(words[:9])}")
    assert found == []


def test_a_board_is_read_by_one_door() -> None:
    """`board_files` holds it against its outcomes and digests; what is to be replaced may be damaged."""
    readers = {name for name, others in files().items() if "harness.leaderboard.csv_file" in others}
    assert readers == {"harness.leaderboard.board_files", "harness.leaderboard.replacement"}
