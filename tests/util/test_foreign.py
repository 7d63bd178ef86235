"""Code of others: ``os._exit`` is told like any other error, and processes that are forked from this one exit."""

from __future__ import annotations

import os

import pytest

from harness.util.foreign import ANYTHING, refuse_exit, told


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "_exit", os._exit)  # and back
    refuse_exit()


@pytest.mark.usefixtures("refused")
def test_os_exit_raises_what_is_caught_and_told() -> None:
    with pytest.raises(ANYTHING) as caught:
        os._exit(0)
    assert told(caught.value) == "it called os._exit(0)"


@pytest.mark.usefixtures("refused")
def test_a_forked_process_exits() -> None:
    if (child := os.fork()) == 0:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
