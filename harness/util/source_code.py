"""Hashes of the code that a computation depends on.

Files outside of installed packages are hashed, with all that they import from such files; of installed packages the
version counts. Left out are the harness's own code, which the scoring version stands for, torch, whose version is a
column of the leaderboard, and pydantic, which computes nothing.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

from harness.util.hashing import sha256

HARNESS = Path(__file__).resolve().parents[1]
INSTALLED = ("site-packages", "dist-packages")
"""Names of the directories that package managers install into."""
LEFT_OUT = sys.stdlib_module_names | {"torch", "pydantic"}


def code_of(modules: Iterable[str]) -> dict[str, str]:
    """Return what modules are made of: the SHA-256 of each source by module, the version of each installed package.

    Args:
        modules: dotted names of modules that can be imported; unknown ones are left out.
    """
    found: dict[str, str] = {}
    waiting, seen = set(modules), set[str]()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        path = None if name.partition(".")[0] in LEFT_OUT else _file(name)
        if path is None or path.is_relative_to(HARNESS):
            continue
        if set(INSTALLED) & set(path.parts):
            package = name.partition(".")[0]
            found[package] = _version(package)
            continue
        source = path.read_bytes()
        found[name] = hashlib.sha256(source).hexdigest()
        waiting |= set(_imported(source, name, is_package=path.stem == "__init__")) - seen
    return dict(sorted(found.items()))


def code_of_classes(*classes: type) -> str:
    """Return a hash of the code of classes outside of the harness; empty where there is none."""
    code = code_of({base.__module__ for one in classes for base in one.__mro__})
    return sha256(code) if code else ""


def _file(name: str) -> Path | None:
    """Return the source of a module; None where it has none."""
    spec = _spec(name)
    if spec is None or not spec.has_location or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin).resolve()
    return path if path.is_file() else None


def _spec(name: str) -> ModuleSpec | None:
    """Find a module without importing anything; also in the working directory, where builders may be."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__spec__", None)
    parent = name.rpartition(".")[0]
    if not parent:
        return find_spec(name) or PathFinder.find_spec(name, [str(Path.cwd())])
    above = _spec(parent)
    places = above.submodule_search_locations if above is not None else None
    return PathFinder.find_spec(name, list(places)) if places else None


def _imported(source: bytes, module: str, is_package: bool) -> Iterator[str]:
    """Yield the modules that a source may import, wherever in it, and the packages around it."""
    yield from _and_above(module)
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # what cannot be parsed cannot be imported either
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _and_above(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            for name in (base, *(f"{base}.{alias.name}" for alias in node.names)):
                yield from _and_above(name.strip("."))


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """Return the dotted name that ``from … import`` starts from."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _and_above(name: str) -> Iterator[str]:
    """Yield a dotted name and those of the packages around it, whose code runs first."""
    parts = name.split(".")
    return (".".join(parts[:stop]) for stop in range(1, len(parts) + 1))


@cache
def _version(package: str) -> str:
    for name in (package, *packages_distributions().get(package, ())):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"
