"""Repair of a ledger: what is sound is kept bit for bit, and what is damaged is gone, so that it is computed again."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.ledgers import Key, trials

from harness.api.records import BASELINE
from harness.api.trial import Answer, Attempt, Cost, Result, Trial
from harness.engine import ledger_database
from harness.engine.ledger import Ledger, Stored
from harness.engine.repair import Kept, repair
from harness.errors import LedgerError

SHAPE = (1, 4, 4)
CONTEXTS, PACKS, SIZE = 3, 40, 5
BYTES = 64


def picture(number: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(number).random(SHAPE, np.float32))


def entry(number: int) -> tuple[str, str, Result]:
    adversarial = picture(number) if number % 3 == 0 else None
    answer = Answer(float(number % 2), 0.25, tuple(range(number % 4)))
    return (
        f"image {number}",
        "square",
        Result(Trial(BASELINE, 0, Attempt("square")), answer, Cost(7, 5, 1), adversarial),
    )


@pytest.fixture
def before(tmp_path: Path) -> dict[Key, Stored]:
    """What a ledger of many packs holds, each with images; it is in ``tmp_path``."""
    with Ledger(tmp_path) as ledger:
        for number in range(0, PACKS * SIZE, SIZE):
            for context in range(CONTEXTS):
                some = [entry(one) for one in range(number, number + SIZE)]
                ledger.append({"context": context}, some, [f"flag {number % 3}"], {"torch": "2"})
    return trials(tmp_path)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at // 8] ^= 1 << at % 8
    path.write_bytes(content)


def edit(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        connection.execute(statement)
        connection.commit()


def sound(folder: Path, before: dict[Key, Stored]) -> dict[Key, Stored]:
    """Return what a ledger holds, after a look at all of it, adversarial images included."""
    after = trials(folder)
    assert after.items() <= before.items()
    with Ledger(folder) as ledger:
        for (_, image, _), stored in after.items():
            if stored.offset >= 0:
                expected = picture(int(image.split()[1])).numpy()
                np.testing.assert_array_equal(ledger.adversarial(stored, SHAPE), expected)
    return after


def test_of_a_sound_ledger_everything_is_kept(tmp_path: Path, before: dict[Key, Stored]) -> None:
    assert repair(tmp_path) == Kept(len(before), 0)
    assert sound(tmp_path, before) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adversaries.f32", "ledger.sqlite"]


def test_where_there_is_no_ledger_nothing_is_made(tmp_path: Path) -> None:
    assert repair(tmp_path / "runs") == Kept(0, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("statement", "lost"),
    [
        ("UPDATE packs SET results = x'0011' WHERE id = 7", SIZE),
        ("UPDATE packs SET context = 1 WHERE context = 0", PACKS * SIZE),
        ("UPDATE packs SET size = 'two' WHERE id = 7", SIZE),
        ("UPDATE contexts SET content = '{}' WHERE id = 2", PACKS * SIZE),
        ("UPDATE images SET content = x'ff' WHERE id = 11", SIZE * CONTEXTS),
        ("DELETE FROM images WHERE id = 11", SIZE * CONTEXTS),
        ("DROP TABLE packs", PACKS * SIZE * CONTEXTS),
    ],
)
def test_what_was_edited_is_dropped_and_nothing_else(
    statement: str, lost: int, tmp_path: Path, before: dict[Key, Stored]
) -> None:
    edit(tmp_path, statement)
    kept = repair(tmp_path)
    assert len(sound(tmp_path, before)) == kept.results == len(before) - lost


def test_an_adversarial_image_that_is_another_costs_its_result_alone(tmp_path: Path, before: dict[Key, Stored]) -> None:
    flip(tmp_path / "adversaries.f32", 8 * (5 * BYTES + 3))
    assert repair(tmp_path) == Kept(len(before) - 1, 1)
    assert len(sound(tmp_path, before)) == len(before) - 1


def test_adversarial_images_that_were_cut_off_cost_their_results_alone(
    tmp_path: Path, before: dict[Key, Stored]
) -> None:
    os.truncate(tmp_path / "adversaries.f32", 10 * BYTES + 3)
    kept = repair(tmp_path)
    after = sound(tmp_path, before)
    lost = {key for key, stored in before.items() if stored.offset >= 10 * BYTES}
    assert before.keys() - after.keys() == lost
    assert kept == Kept(len(after), len(lost))


def damaged_within(folder: Path, drawn: random.Random) -> None:
    path = folder / "ledger.sqlite"
    for _ in range(3):
        flip(path, drawn.randrange(8 * 100, 8 * path.stat().st_size))  # not the header, which says what it is


def cut_short(folder: Path, drawn: random.Random) -> None:
    path = folder / "ledger.sqlite"
    os.truncate(path, drawn.randrange(path.stat().st_size * 2 // 3, path.stat().st_size))


@pytest.mark.parametrize("damage", [damaged_within, cut_short])
def test_what_is_computed_again_after_a_repair_is_whole(
    damage: Callable[[Path, random.Random], None], tmp_path: Path, before: dict[Key, Stored]
) -> None:
    whole = {name: (tmp_path / name).read_bytes() for name in ("ledger.sqlite", "adversaries.f32")}
    partly = 0
    for seed in range(20):
        for name, content in whole.items():
            (tmp_path / name).write_bytes(content)
        damage(tmp_path, random.Random(seed))
        kept = repair(tmp_path)
        assert len(sound(tmp_path, before)) == kept.results
        partly += 0 < kept.results < len(before)
        with Ledger(tmp_path) as ledger:
            for context in range(CONTEXTS):
                ledger.append({"context": context}, [entry(one) for one in range(PACKS * SIZE)], [], {"torch": "2"})
        again = trials(tmp_path)
        assert {key: one.answer for key, one in again.items()} == {key: one.answer for key, one in before.items()}
    assert partly, "no damage left some of the results"


def test_a_ledger_of_another_schema_is_left_alone(tmp_path: Path, before: dict[Key, Stored]) -> None:
    edit(tmp_path, "PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match="newer version"):
        repair(tmp_path)
    edit(tmp_path, f"PRAGMA user_version = {ledger_database.SCHEMA}")
    assert trials(tmp_path) == before


def test_a_ledger_in_use_is_left_alone(
    tmp_path: Path, before: dict[Key, Stored], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_database, "PATIENCE", 0.1)
    with Ledger(tmp_path), pytest.raises(LedgerError, match="in use by another run"):
        repair(tmp_path)
    assert trials(tmp_path) == before
