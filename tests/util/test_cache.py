"""The cache: computed once, and a disk that cannot be written is the model's failure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.errors import ModelError
from harness.util.cache import CachedArrays, cached

KEY = "ab" * 32


def test_what_is_cached_is_computed_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> CachedArrays:
        calls.append(1)
        return {"x": np.arange(3)}

    first, again = cached(tmp_path, KEY, compute), cached(tmp_path, KEY, compute)
    assert calls == [1]
    assert first["x"].tolist() == again["x"].tolist() == [0, 1, 2]


def test_a_full_disk_is_the_models_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.util.files.os.replace", full)
    with pytest.raises(ModelError) as caught:
        cached(tmp_path, KEY, lambda: {"x": np.zeros(1)})
    for piece in ("cache", str(tmp_path), "No space left"):
        assert piece in str(caught.value)
