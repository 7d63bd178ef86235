"""A process of its own: whatever the code in it does, the caller goes on, and hears of it in a sentence."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

from harness.errors import ModelError, SpecError
from harness.util import process as module
from harness.util.process import MOST_PRINTED, Awaited, Process, Relay

pytestmark = pytest.mark.slow  # each process imports torch
AWAITED = Awaited("net", "loaded and tried")
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def shared() -> Iterator[Process]:
    with Process({}) as process:
        yield process


def exits(code: object) -> None:
    sys.exit(code)  # type: ignore[arg-type]


def interrupts() -> None:
    raise KeyboardInterrupt


def refuses() -> None:
    raise SpecError("batch_size: expected a number")


def raises_its_own() -> None:
    """Raise an error whose class only this process can import."""
    folder = Path("theirs")
    folder.mkdir()
    (folder / "theirs_alone.py").write_text("class Fault(Exception): pass")
    sys.path.append(str(folder))
    import theirs_alone  # type: ignore[import-not-found]

    raise theirs_alone.Fault("no such layer")


def test_a_result_comes_back_and_the_process_is_kept(shared: Process) -> None:
    assert shared.call(math.factorial, 20, awaited=AWAITED) == math.factorial(20)
    pid = shared.call(os.getpid, awaited=AWAITED)
    assert pid == shared.pid != os.getpid()


@pytest.mark.parametrize("code", [0, 3])
def test_a_process_that_is_ended_is_told_and_replaced(shared: Process, code: int) -> None:
    with pytest.raises(ModelError, match=rf"ended the process in which it was loaded and tried \(exit code {code}\)"):
        shared.call(os._exit, code, awaited=AWAITED)
    assert shared.call(math.factorial, 3, awaited=AWAITED) == 6


def test_what_is_raised_is_told(shared: Process, tmp_path: Path) -> None:
    shared.call(os.chdir, str(tmp_path), awaited=AWAITED)
    with pytest.raises(ModelError, match=r"^it called sys\.exit\(0\)$"):
        shared.call(exits, 0, awaited=AWAITED)
    with pytest.raises(ModelError, match=r"^it raised KeyboardInterrupt$"):
        shared.call(interrupts, awaited=AWAITED)
    with pytest.raises(ModelError, match=r"^Fault: no such layer$"):
        shared.call(raises_its_own, awaited=AWAITED)
    with pytest.raises(SpecError, match=r"^batch_size: expected a number$"):
        shared.call(refuses, awaited=AWAITED)


def test_silence_is_told_and_then_ended(
    shared: Process, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared.call(math.factorial, 3, awaited=AWAITED)
    monkeypatch.setattr(module, "FIRST_NOTE", 0.5)
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"^loaded and tried: no answer for 3 s; look where its code waits"):
        shared.call(time.sleep, 600, awaited=Awaited("net", "loaded and tried", limit=3))
    assert 3 <= time.monotonic() - began < 60
    told = [line for line in capsys.readouterr().err.splitlines() if "still waiting" in line]
    assert told[:2] == [f"net: loaded and tried: no answer for {waited} s; still waiting" for waited in (0, 1)]
    assert len(told) <= 3  # after 0.5, 1 and 2 s
    assert shared.call(math.factorial, 3, awaited=AWAITED) == 6


def test_a_bounded_amount_of_what_is_printed_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    read, write = os.pipe()
    relay = Relay("net")
    with os.fdopen(write, "wb") as stream:
        stream.write(b"\x1b[31mred\x1b[0m\r 10 %\r100 %\n\n" + b"y" * 30_000 + b"\n" + b"z\n" * 1000)
    relay._follow(os.fdopen(read, "rb"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "net: 100 %"
    assert all(line.startswith("net: ") for line in lines)
    assert MOST_PRINTED * 0.8 < sum(map(len, lines)) < MOST_PRINTED * 1.2
    assert lines[-1] == "net: prints more than 10,000 characters; the rest is left out"
