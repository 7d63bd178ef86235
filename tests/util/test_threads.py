"""Threads: several at once, in order, one item ahead, with the errors of direct reading, and none left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from harness.util.threads import MOST_READERS, ahead, in_threads, readers

PATIENCE = 20.0
"""Seconds after which a thread that should come is given up."""


@pytest.fixture(autouse=True)
def nobody_stays() -> Iterator[None]:
    """No thread outlives a test."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def square(number: int) -> int:
    return number**2


def refuse_odd(number: int) -> int:
    time.sleep(0.01 * (9 - number))  # the last error is there first
    if number % 2:
        raise ValueError(f"odd: {number}")
    return number


# --- in_threads ---


@pytest.mark.parametrize("threads", [0, 1, 2, 7])
def test_results_are_in_the_order_of_the_items(threads: int) -> None:
    assert in_threads(square, range(50), threads) == [number**2 for number in range(50)]
    assert in_threads(square, [], threads) == []


def test_threads_work_at_once() -> None:
    meeting = threading.Barrier(3)
    assert sorted(in_threads(lambda _: meeting.wait(PATIENCE), range(3), 3)) == [0, 1, 2]


def test_one_thread_is_the_callers() -> None:
    for threads, items in ((0, 9), (1, 9), (8, 1)):
        assert set(in_threads(lambda _: threading.get_ident(), range(items), threads)) == {threading.get_ident()}


@pytest.mark.parametrize("threads", [1, 4])
def test_the_error_is_that_of_the_first_item(threads: int) -> None:
    with pytest.raises(ValueError, match=r"^odd: 3$"):
        in_threads(refuse_odd, [2, 4, 3, 5, 7], threads)


def test_readers_are_the_cores_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, 1), (3, 3), (64, MOST_READERS)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert readers() == expected


# --- ahead ---


class Reader:
    """Squares numbers, and keeps what it has been asked."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.threads: set[int] = set()
        self.done = threading.Semaphore(0)

    def __call__(self, number: int) -> int:
        self.read.append(number)
        self.threads.add(threading.get_ident())
        if number == 13:
            raise LookupError("no 13")
        self.done.release()
        return number**2

    def has_read(self, count: int) -> bool:
        return all(self.done.acquire(timeout=PATIENCE) for _ in range(count))


def test_items_come_in_order_each_with_what_was_read() -> None:
    assert list(ahead(range(20), square)) == [(number, number**2) for number in range(20)]
    assert list(ahead([], square)) == []


def test_the_next_item_is_read_while_one_is_worked_on_and_no_other() -> None:
    reader = Reader()
    items = ahead(range(4), reader)
    for number in range(3):
        assert next(items) == (number, number**2)
        assert reader.has_read(2 if number == 0 else 1)
        time.sleep(0.02)
        assert reader.read == list(range(number + 2))
    assert list(items) == [(3, 9)]
    assert len(reader.threads) == 1
    assert threading.get_ident() not in reader.threads


def test_an_error_is_raised_when_its_item_is_due() -> None:
    reader = Reader()
    items = ahead([1, 2, 13, 4], reader)
    assert [next(items), next(items)] == [(1, 1), (2, 4)]
    with pytest.raises(LookupError, match="no 13"):
        next(items)
    assert reader.read == [1, 2, 13]


def test_closing_waits_for_the_thread() -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(number: int) -> int:
        if number == 1:
            entered.set()
            assert leave.wait(PATIENCE)
        return number

    items = ahead(range(9), slow)
    next(items)
    assert entered.wait(PATIENCE)
    threading.Timer(0.05, leave.set).start()
    items.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_an_error_of_the_one_who_works_ends_the_thread() -> None:
    with pytest.raises(ZeroDivisionError):
        [1 // number for number, _ in ahead(range(9), square)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
