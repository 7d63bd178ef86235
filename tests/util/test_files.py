"""Atomic writing: a file is there whole or as it was, several files together or none, and no draft is left."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import FileError
from harness.util.files import check_writable, write_together, write_whole


def there(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def failing_at(number: int, error: BaseException) -> Callable[[Path, Path], None]:
    """Return an ``os.replace`` whose call of this number fails, whoever has made the calls before."""
    calls, replace = iter(range(99)), os.replace

    def fails(source: Path, target: Path) -> None:
        if next(calls) == number:
            raise error
        replace(source, target)

    return fails


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("before", [{}, {"a": "old", "b": "older"}, {"a": "old"}])
def test_files_are_replaced_together_or_not_at_all(
    before: dict[str, str], number: int, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in before.items():
        (tmp_path / name).write_text(content)
    contents = {tmp_path / name: f"new {name}" for name in "ab"}
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing_at(number, error))
        with pytest.raises(FileError if isinstance(error, OSError) else KeyboardInterrupt):
            write_together(contents)
    assert there(tmp_path) == before
    write_together(contents)
    assert there(tmp_path) == {"a": "new a", "b": "new b"}


def test_a_directory_in_its_place_is_named_and_the_other_file_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").mkdir()
    with pytest.raises(FileError, match=r"b: cannot be written: .*choose another path"):
        write_together({tmp_path / "a": "new", tmp_path / "b": "new"})
    assert there(tmp_path) == {"a": "old"}


def test_a_name_as_long_as_names_may_be_is_written(tmp_path: Path) -> None:
    write_whole(tmp_path / ("x" * 255), "content")
    assert there(tmp_path) == {"x" * 255: "content"}


def test_what_cannot_be_written_is_told_before_it_is(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "file")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("old")
    check_writable(tmp_path / "file")
    for path in (tmp_path / ("x" * 256), tmp_path / "new", tmp_path / "file" / "below"):
        with pytest.raises(FileError, match="cannot be written"):
            check_writable(path)
    assert there(tmp_path) == {"file": "old"}


def test_each_draft_has_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that write one file at once must not take each other's draft for theirs."""
    drafts, replace = [], os.replace

    def noted(source: Path, target: Path) -> None:
        drafts.append(source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    for content in ("one", "two"):
        write_whole(tmp_path / "a", content)
    assert len(set(drafts)) == 2
    assert there(tmp_path) == {"a": "two"}
