"""Code of modules: what is hashed follows the imports, and stops at installed packages."""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from harness.util.source_code import code_of

TREE = {
    "mine/__init__.py": "",
    "mine/net.py": "import torch, numpy\nfrom . import layers\nfrom .deep.block import Block\n",
    "mine/layers.py": "def f():\n    import lazily\n",
    "mine/deep/__init__.py": "from ..unnamed import *\n",
    "mine/deep/block.py": "import os, broken\n",
    "mine/unnamed.py": "",
    "mine/untouched.py": "",
    "lazily.py": "import harness.errors\n",
    "broken.py": "def :\n",
}
REACHED = {
    "mine", "mine.net", "mine.layers", "mine.deep", "mine.deep.block", "mine.unnamed", "lazily", "broken", "numpy",
}  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_all_that_a_module_imports_is_hashed_and_nothing_else(tree: Path) -> None:
    found = code_of(["mine.net"])
    assert found.keys() == REACHED
    assert found["numpy"] == version("numpy")
    assert found["mine.net"] == hashlib.sha256(TREE["mine/net.py"].encode()).hexdigest()
    assert not {"mine", "mine.net", "lazily"} & sys.modules.keys()


@pytest.mark.parametrize("edited", [name for name in TREE if name != "mine/untouched.py"])
def test_an_edit_anywhere_shows(tree: Path, edited: str) -> None:
    before = code_of(["mine.net"])
    with (tree / edited).open("a") as file:
        file.write("\n# edited\n")
    assert code_of(["mine.net"]) != before


def test_an_edit_of_what_is_not_imported_does_not_show(tree: Path) -> None:
    before = code_of(["mine.net"])
    (tree / "mine/untouched.py").write_text("x = 1\n")
    assert code_of(["mine.net"]) == before


@pytest.mark.parametrize("module", ["harness.errors", "torch.nn", "os", "nowhere", "nowhere.to.be.found"])
def test_the_harness_torch_the_standard_library_and_the_unknown_are_left_out(module: str) -> None:
    assert code_of([module]) == {}


def test_the_working_directory_is_looked_at_as_builders_may_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("x = 1\n")
    monkeypatch.chdir(tmp_path)
    assert code_of(["only_here"]).keys() == {"only_here"}
