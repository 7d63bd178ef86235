"""Networks that fail, wait or die in a worker, and not where they are prepared.

The process that started the run has written its pid to ``driver.pid`` in the working directory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from traceback import walk_stack
from typing import NoReturn

import tiny_networks
import torch
from tiny_networks import mixed, narrow, quadrants
from torch import Tensor, nn

__all__ = ["caught", "dies_always", "dies_halfway", "dies_once", "drips", "mixed", "narrow", "overdue", "quadrants"]
__all__ += ["built_here", "built_there", "loses_device_always", "loses_device_once", "raises", "slow", "stops_halfway"]
__all__ += ["spoils", "stuck"]
__all__ += ["overdue_when_built", "tells_gpus", "tells_threads"]


def _in_worker() -> bool:
    is_driver = os.getpid() == int(Path("driver.pid").read_text())
    return not is_driver and all(frame.f_code.co_name != "prepare_model" for frame, _ in walk_stack(None))


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def dies_once() -> nn.Module:
    if _in_worker():
        with contextlib.suppress(FileExistsError):
            Path("died.once").touch(exist_ok=False)  # by one worker, whoever is first
            _die()
    return mixed()


def dies_always() -> nn.Module:
    if _in_worker():
        with Path("died.always").open("a") as log:
            log.write("x")
        _die()
    return mixed()


def _as(cls: type[nn.Sequential]) -> nn.Module:
    network = mixed()
    network.__class__ = cls  # the same weights under the same names
    return network


class _Sequential(nn.Sequential):
    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = nn.Sequential.forward(self, x)  # type: ignore[no-untyped-call]
        return logits


class _Caught(_Sequential):
    """On the Ray node that is to be killed it never ends; elsewhere it waits until it has begun there."""

    def forward(self, x: Tensor) -> Tensor:
        if _in_worker():
            import ray

            if ray.get_runtime_context().get_node_id() == Path("victim").read_text():
                Path("caught").touch()
                time.sleep(600)
            while not Path("caught").exists():
                time.sleep(0.02)
        return self._logits(x)


def caught() -> nn.Module:
    return _as(_Caught)


class _Slow(_Sequential):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.1 if _in_worker() else 0)
        return self._logits(x)


def slow() -> nn.Module:
    return _as(_Slow)


class _Stuck(_Sequential):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(600 if _in_worker() else 0)
        return self._logits(x)


def stuck() -> nn.Module:
    return _as(_Stuck)


def _log_process() -> None:
    """Add this worker to the log of those that have built a network."""
    if _in_worker():
        with Path("built").open("a") as log:
            log.write(f"{os.getpid()}\n")


def built_here() -> nn.Module:
    _log_process()
    return slow()


def built_there() -> nn.Module:
    return built_here()


class _Poisoned(_Sequential):
    """Fails as on a GPU on which an assertion has failed, in a worker."""

    def forward(self, x: Tensor) -> Tensor:
        if _in_worker():
            raise torch.AcceleratorError(
                "CUDA error: device-side assert triggered\nCUDA kernel errors might be reported"
            )
        return self._logits(x)


class _PoisonedOnce(_Poisoned):
    """Fails so in one worker, whoever is first."""

    def forward(self, x: Tensor) -> Tensor:
        if _in_worker() and not Path("poisoned").exists():
            Path("poisoned").touch()
            return super().forward(x)
        return self._logits(x)


def loses_device_once() -> nn.Module:
    _log_process()
    return _as(_PoisonedOnce)


def loses_device_always() -> nn.Module:
    return _as(_Poisoned)


def _pass_on_everything() -> None:
    """Yield every result as soon as it is there."""
    from harness.engine import evaluate

    evaluate.REPORT_EVERY = 0.0


def drips() -> nn.Module:
    if _in_worker():
        _pass_on_everything()
    return slow()


def _once_halfway() -> bool:
    """Return whether results have been delivered, to the first that asks."""
    if _in_worker() and Path("delivered").exists():
        with contextlib.suppress(FileExistsError):
            Path("halfway").touch(exist_ok=False)
            return True
    return False


class _DiesHalfway(_Slow):
    def forward(self, x: Tensor) -> Tensor:
        if _once_halfway():
            _die()
        return super().forward(x)


def dies_halfway() -> nn.Module:
    if _in_worker():
        _pass_on_everything()
    return _as(_DiesHalfway)


class _StopsHalfway(_Slow):
    def forward(self, x: Tensor) -> Tensor:
        if _once_halfway():
            _interrupt()
        return super().forward(x)


def stops_halfway() -> nn.Module:
    if _in_worker():
        _pass_on_everything()
    return _as(_StopsHalfway)


def tells_threads() -> nn.Module:
    if _in_worker():
        Path("threads").write_text(str(torch.get_num_threads()))
    return mixed()


def tells_gpus() -> nn.Module:
    if _in_worker():
        Path("gpus").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    return mixed()


class _Unpicklable(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class _Raises(_Sequential):
    def forward(self, x: Tensor) -> Tensor:
        if _in_worker():
            raise _Unpicklable("salt", "pepper")
        return self._logits(x)


def raises() -> nn.Module:
    return _as(_Raises)


def _interrupt() -> None:
    """Send what Slurm sends to a job whose time is nearly up."""
    os.kill(os.getpid(), signal.SIGUSR2)


def overdue_when_built() -> nn.Module:
    if _in_worker():
        _interrupt()
    return mixed()


def overdue() -> nn.Module:
    network = mixed()
    if _in_worker():
        network.register_forward_pre_hook(lambda *_: _interrupt())
    return network


def spoils() -> nn.Module:
    """The network `mixed`; in a worker, no other model can be built after it."""
    made = mixed()
    if _in_worker():
        tiny_networks.mixed = tiny_networks.quadrants
    return made
