"""A process of its own for the code of others: it is called there, and whatever it does, this process goes on.

The two sides talk over a pipe of their own. Standard output and error of the process come out here, on standard error:
a bounded amount, each line under the name of whoever has printed it.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from collections import ChainMap, Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from math import inf
from multiprocessing.connection import Connection, Pipe
from typing import IO, Any, ClassVar, TypeVar

from harness.errors import HarnessError, ModelError
from harness.util.foreign import told
from harness.util.text import cleaned
from harness.util.waiting import FIRST_NOTE, say

T = TypeVar("T")

MOST_PRINTED = 10_000
"""Characters that are passed on of what one model prints."""
LAST_LINES = 1.0
"""Seconds in which the last lines of a process arrive."""
LONGEST_LINE = 1000
"""Characters after which a line is broken."""


class ProcessLost(Exception):
    """A process has ended before its last answer, or could not be started.

    Args:
        message: what has happened.
        code: exit code; negative for a signal, None if it was not started.
    """

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class TimeIsUp(Exception):
    """A process has not answered within its time, and was killed."""


@dataclass(frozen=True)
class Awaited:
    """Something that a process is asked for.

    Args:
        name: name under which its lines are printed.
        what: description for the line that says what is awaited, such as "stage clean".
        limit: seconds that an answer may take.
    """

    name: str
    what: str
    limit: float = inf


class Process:
    """A process, started when it is first needed and replaced when it has died; one thread at a time asks it.

    Args:
        environment: variables that it is started with, besides those of this process.
        preload: module to import while the first job is on its way.
    """

    def __init__(self, environment: Mapping[str, str], preload: str = "") -> None:
        self._environment, self._preload = environment, preload
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None
        self._relay = Relay()
        self._closed = False
        self._lock = threading.Lock()
        """Held while the process is started or killed, so that none is started after `close`."""

    def __enter__(self) -> Process:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id, if a process was started."""
        return None if self._process is None else self._process.pid

    @property
    def runs(self) -> bool:
        """True if it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Connection[Any, Any]:
        """Start the process if there is none or it died while idle; return the connection to it.

        Raises:
            ProcessLost: it was closed.
            OSError: the system starts no process.
        """
        with self._lock:
            if self._closed:
                raise ProcessLost("It was released.")
            if self._connection is None or not self.runs:
                self._process, self._connection = _start(self._environment, self._preload)
                self._relay.follow(self._process.stdout)
            return self._connection

    def answers(self, job: bytes, awaited: Awaited) -> Generator[Any, None, None]:
        """Send a job and yield its answers, the last of which is None or an error; give it up when closed.

        Args:
            job: what `packed` has made of a function without arguments that returns the answers.
            awaited: what is asked for.

        Raises:
            ProcessLost: the process has died.
            TimeIsUp: an answer took too long; the process was killed.
        """
        connection, answer = self.start(), None
        self._relay.name = awaited.name
        complete = False
        try:
            connection.send_bytes(job)
            while not complete:
                self._wait(connection, awaited)
                answer = pickle.loads(connection.recv_bytes())
                complete = is_last(answer)
                yield answer
        except (OSError, EOFError) as error:  # the pipe has ended, perhaps within an answer
            code = self.kill()
            raise ProcessLost(f"The process ended with exit code {code}.", code) from error
        finally:
            if not complete:  # nobody waits for the rest
                self.kill()

    def call(self, function: Callable[..., T], *arguments: Any, awaited: Awaited) -> T:
        """Return what a function returns in the process.

        Raises:
            ModelError: it has ended the process, taken too long, or raised anything but an error of the harness.
        """
        try:
            value, *_ = self.answers(packed(partial(_called, function, arguments)), awaited)
        except ProcessLost as lost:
            raise ModelError(
                f"its code has ended the process in which it was {awaited.what} (exit code {lost.code}): a crash, too "
                "little memory, or os._exit; look at what it printed before"
            ) from lost
        except TimeIsUp as late:
            raise ModelError(f"{late}; look where its code waits") from late
        if isinstance(value, Exception):
            raise value
        result: T = value[0]
        return result

    def close(self) -> None:
        """Kill the process, and start no other."""
        with self._lock:
            self._closed = True
        self.kill()

    def kill(self) -> int | None:
        """Kill the process, and return its exit code, if it was started."""
        with self._lock:
            if self._process is None:
                return None
            self._process.kill()
            code = self._process.wait()
        self._relay.finish()
        return code

    def _wait(self, connection: Connection[Any, Any], awaited: Awaited) -> None:
        """Wait for an answer, and from time to time say so."""
        began, note = time.monotonic(), FIRST_NOTE
        while not connection.poll(min(note, awaited.limit) - (time.monotonic() - began)):
            waited = time.monotonic() - began
            if waited >= awaited.limit:
                raise TimeIsUp(f"{awaited.what}: no answer for {awaited.limit:.0f} s")
            if waited >= note:
                say(f"{awaited.name}: {awaited.what}: no answer for {note:.0f} s; still waiting")
                note *= 2


class Relay:
    """Passes on what a process prints.

    Args:
        name: name of the model whose code runs there.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._printed: Counter[str] = Counter()
        self._thread: threading.Thread | None = None

    def follow(self, stream: IO[bytes] | None) -> None:
        """Pass on what comes in, in a thread, until the stream ends."""
        assert stream is not None
        self._thread = threading.Thread(target=self._follow, args=(stream,), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the last lines of a process that has ended, but not for what it has started and left behind."""
        if self._thread is not None:
            self._thread.join(LAST_LINES)

    def _follow(self, stream: IO[bytes]) -> None:
        with stream:
            for line in iter(partial(stream.readline, LONGEST_LINE), b""):
                text = cleaned(line.decode(errors="replace").rstrip().rpartition("\r")[2])  # of a bar, its last state
                if text:
                    self._pass_on(text)

    def _pass_on(self, text: str) -> None:
        name, before = self.name, self._printed[self.name]
        self._printed[name] += len(text)
        if self._printed[name] <= MOST_PRINTED:
            say(text if text.startswith(f"{name}: ") else f"{name}: {text}")
        elif before <= MOST_PRINTED:
            say(f"{name}: prints more than {MOST_PRINTED:,} characters; the rest is left out")


def is_last(answer: object) -> bool:
    """Return whether no other answer follows."""
    return answer is None or isinstance(answer, Exception)


def is_ours(error: BaseException) -> bool:
    """Return whether an error can be unpickled without running the code of others, which its class may come with."""
    return type(error).__module__ == HarnessError.__module__


def packed(value: object) -> bytes:
    """Return the pickle of a value, with the parts that a script defines, and with tensors as arrays.

    Arrays take a tenth of the time of tensors, and leave behind the batch that an image was cut out of.
    """
    stream = BytesIO()
    _pickler()(stream, pickle.HIGHEST_PROTOCOL).dump(value)
    return stream.getvalue()


@cache
def _pickler() -> Any:
    """Return a class of picklers that store tensors as arrays."""
    import cloudpickle
    from torch import Tensor, from_numpy

    class ArrayPickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: ClassVar[ChainMap[Any, Any]] = ChainMap(
            {Tensor: lambda tensor: (from_numpy, (tensor.numpy(),))}, cloudpickle.Pickler.dispatch_table
        )

    return ArrayPickler


def serve(parent: int, pipe: int, preload: str) -> None:
    """Answer the jobs that come in on a pipe, until it ends or the process ``parent`` does."""
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    warnings.formatwarning = lambda message, *_: f"{message}\n"  # under the model's name, a place says nothing
    connection: Connection[Any, Any] = Connection(pipe)
    with suppress(Exception):  # while the parent packs the job; if it fails, the answer says so
        __import__(preload)
    with suppress(EOFError):
        while True:
            _answer(connection.recv_bytes(), connection)


def _answer(message: bytes, connection: Connection[Any, Any]) -> None:
    """Send the answers to a packed job."""
    try:
        job: Callable[[], Iterable[object]] = pickle.loads(message)
        for answer in job():
            connection.send_bytes(packed(answer))
    except BaseException as error:  # also KeyboardInterrupt, which is not the user's here
        connection.send_bytes(packed(error if is_ours(error) else ModelError(told(error))))


def _called(function: Callable[..., object], arguments: tuple[object, ...]) -> Iterator[object]:
    yield (function(*arguments),)
    yield None


def _start(environment: Mapping[str, str], preload: str) -> tuple[subprocess.Popen[bytes], Connection[Any, Any]]:
    """Start a process that does not import the caller's script, so that no ``__main__`` guard is needed.

    It sees the caller's command line: a module that reads it fails in every process alike.
    """
    ours, theirs = Pipe()
    deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"  # Ctrl-C is the parent's to answer
    code = (
        f"{deaf}; import sys; sys.path[:], sys.argv[:] = {sys.path}, {sys.argv}; "
        f"from harness.util.process import serve; serve({os.getpid()}, {theirs.fileno()}, {preload!r})"
    )
    with theirs:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
        ), ours


def _exit_with(parent: int) -> None:
    """Exit when the process ``parent`` has, even if it was killed and could not release its workers."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
