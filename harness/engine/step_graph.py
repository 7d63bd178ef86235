"""CUDA graphs: the kernels of a step are recorded once and launched together, with nothing left to the host.

A graph repeats the same work on the same memory, so only a machine that keeps to it (`Attack.capturable`) is recorded,
and only if the recording gives the bits that the step gives.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol
from weakref import WeakSet

import torch
from torch import Tensor

from harness.engine.numerics import same_bits
from harness.util.device_errors import device_answers, is_out_of_memory

WARM_UP = 3
"""Steps that are run as they are first: they choose kernels, and compile what is compiled."""


class Recorder(Protocol):
    """Records work on a device, to be repeated."""

    usable: bool
    """False once something could not be recorded, as where a network waits for the device in every pass."""

    def run(self, work: Callable[[], None]) -> None:
        """Run work as it is, where it would be recorded."""

    def rehearse(self, work: Callable[[], None]) -> None:
        """Run work as it is, with an eye on what cannot be recorded.

        Raises:
            Exception: the work waits for the device.
        """

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what repeats the work, on the memory that it is on now.

        Raises:
            Exception: the work cannot be recorded.
        """


class CudaRecorder:
    """Records CUDA graphs, which share the memory of what is in between.

    Args:
        device: the GPU.
    """

    def __init__(self, device: str) -> None:
        self.usable = True
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs = WeakSet[torch.cuda.CUDAGraph]()

    def run(self, work: Callable[[], None]) -> None:
        """See `Recorder.run`."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)

    def rehearse(self, work: Callable[[], None]) -> None:
        """See `Recorder.rehearse`; a recording that fails may leave torch's allocator in disorder, so none is begun."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        try:
            self.run(work)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder.record`."""
        graph, other = torch.cuda.CUDAGraph(), next(iter(self._graphs), None)
        pool = None if other is None else other.pool()  # a pool ends with the last of its graphs
        before = torch.cuda.stream(torch.cuda.current_stream())  # a recording that fails does not come back to it
        with before, torch.cuda.graph(graph, pool=pool, stream=self._stream):
            work()
        self._graphs.add(graph)
        return graph.replay


class Replayed:
    """A step that is run a few times, then recorded, and repeated from then on if that gives the same bits.

    Args:
        step: the step.
        state: all tensors that it changes.
        recorder: records it.
    """

    def __init__(self, step: Callable[[], None], state: Sequence[Tensor], recorder: Recorder) -> None:
        self._step, self._state, self._recorder = step, state, recorder
        self._runs = 0
        self._repeat: Callable[[], None] | None = None

    def __call__(self) -> None:
        """Take a step."""
        if self._runs == WARM_UP:
            self._repeat = self._recorded()
        self._runs += 1
        if self._repeat is not None:
            self._repeat()
        elif self._runs <= WARM_UP:
            self._recorder.run(self._step)
        else:
            self._step()

    def _recorded(self) -> Callable[[], None] | None:
        """Return the recording, if it does what the step does; every tensor is as before then."""
        before = [tensor.clone() for tensor in self._state]
        try:
            self._recorder.rehearse(self._step)
            expected = [tensor.clone() for tensor in self._state]
            self._restore(before)
            repeat = self._recorder.record(self._step)
            self._restore(before)
            repeat()
            reason = "" if same_bits(self._state, expected) else "repeated, it computes something else"
        except Exception as error:  # whatever the device says to a network that waits for it
            if any(map(is_out_of_memory, (error, error.__context__))) or not device_answers():
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        self._restore(before)
        if not reason:
            return repeat
        self._recorder.usable = False
        warnings.warn(f"a step cannot be recorded as a CUDA graph ({reason}); it runs without, slower", stacklevel=2)
        return None

    def _restore(self, values: Sequence[Tensor]) -> None:
        for tensor, value in zip(self._state, values, strict=True):
            tensor.copy_(value)


def state_of(machine: object) -> list[Tensor]:
    """Return every tensor that an object holds, directly or in objects of its own, each once."""
    found: dict[int, Tensor] = {}
    seen: set[int] = set()

    def visit(value: object) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            found[id(value)] = value
        for part in _parts(value):
            visit(part)

    visit(machine)
    return list(found.values())


def _parts(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
    elif type(value).__module__.partition(".")[0] not in ("builtins", "torch"):
        yield from getattr(value, "__dict__", {}).values()
