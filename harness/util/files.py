"""Atomic writing of files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from harness.errors import FileError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically; its directory is created if missing.

    Args:
        path: path of the file.
        content: bytes, or text to be encoded as UTF-8.

    Raises:
        FileError: the file cannot be written.
    """
    with _draft(path, content) as draft, _explained(path):
        os.replace(draft, path)


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """Write several files, or none of them: what was there before is put back when one cannot be written.

    Args:
        contents: bytes, or text to be encoded as UTF-8, by path.

    Raises:
        FileError: one of the files cannot be written.
    """
    with ExitStack() as stack, ExitStack() as undo:
        drafts = [(path, stack.enter_context(_draft(path, content))) for path, content in contents.items()]
        for path, draft in drafts:
            undo.callback(_put_back, path, stack.enter_context(_kept(path)))
            with _explained(path):
                os.replace(draft, path)
        undo.pop_all()


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be written; its directory is created if missing.

    Raises:
        FileError: it cannot be, on account of its name, its directory or what is in its place.
    """
    with _explained(path), suppress(FileNotFoundError):
        if path.is_dir():
            raise IsADirectoryError("a directory is in its place")
        os.lstat(path)
    with _draft(path, b""):
        pass


@contextmanager
def _draft(path: Path, content: str | bytes) -> Iterator[Path]:
    """Write a file beside ``path``, of a name that no other process uses; it is gone after the block."""
    draft = _beside(path)
    try:
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(content.encode() if isinstance(content, str) else content)
        yield draft
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


@contextmanager
def _kept(path: Path) -> Iterator[Path | None]:
    """Keep what a file is now under another name, within the block; None where there is none."""
    kept = _beside(path)
    try:
        with _explained(path), suppress(FileNotFoundError):
            kept.write_bytes(path.read_bytes())
        yield kept if kept.exists() else None
    finally:
        with suppress(OSError):
            kept.unlink(missing_ok=True)


def _put_back(path: Path, before: Path | None) -> None:
    if before is None:
        path.unlink(missing_ok=True)
    else:
        os.replace(before, path)


def _beside(path: Path) -> Path:
    """Return a name of its own in the directory of ``path``, short where that is as long as names may be."""
    return path.with_name(f".{secrets.token_hex(8)}.part")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error}; free some space, or choose another path") from error
