"""Every error that the harness raises on purpose.

A message says what was expected, what was found, where, and what to do.

    HarnessError
    ├── SpecError              the benchmark file, an override or an argument
    ├── DataError              the images or their labels
    │   └── DataMissing
    ├── ModelError             one model; the others are still scored
    │   ├── NothingToSteer
    │   ├── IncompleteSteering
    │   ├── MethodError        one method of adapting a model; its other rows are still scored
    │   └── InvalidAdversary
    ├── DeviceLost             a device, in one process; another one goes on
    ├── LedgerError            the results under ``runs``
    ├── LeaderboardError       a CSV file
    └── FileError              a file that a command writes
"""

from __future__ import annotations

LONGEST = 2000
"""Characters of what is told of a model; what its code has raised may have millions."""


class HarnessError(Exception):
    """Base of all errors of the harness. The command line prints its message, without a traceback."""


class SpecError(HarnessError):
    """The benchmark file, an override or an argument is not valid. The message names the file and the key."""


class DataError(HarnessError):
    """The data are missing, damaged, or not images in [0, 1] with labels."""


class DataMissing(DataError):
    """The data are missing."""


class ModelError(HarnessError):
    """A model cannot be loaded, or cannot be scored. Its row says ``failed``, and the others are still scored.

    Args:
        message: what was expected, what was found, and what to do.
        flag: flag of the row that stands for this fault; None if there is none.
    """

    def __init__(self, message: str, flag: str | None = None) -> None:
        cut = message if len(message) <= LONGEST else f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"
        super().__init__(cut)
        self.flag = flag

    def __reduce__(self) -> tuple[type[ModelError], tuple[str, str | None]]:
        return type(self), (str(self), self.flag)


class NothingToSteer(ModelError):
    """The network runs no activation of the family, so there is nothing for Curvature Tuning to act on."""


class IncompleteSteering(ModelError):
    """An activation escapes the steering, so a score would be that of a partly steered network."""


class MethodError(ModelError):
    """One method of adapting a model fails, such as LoRA. The method's row says ``failed``; the others are scored.

    Args:
        message: what was expected, what was found, and what to do.
        method: the method, ``lora-4``.
    """

    def __init__(self, message: str, method: str) -> None:
        super().__init__(message)
        self.method = method

    def __reduce__(self) -> tuple[type[MethodError], tuple[str, str]]:
        return type(self), (str(self), self.method)


class InvalidAdversary(ModelError):
    """An attack returned an image that is not finite, not in [0, 1] or not allowed by the threat: never scored."""


class DeviceLost(HarnessError):
    """A process can no longer use its device: an assertion failed on it, say, or its memory is damaged.

    The process ends, and another one computes again what is left.
    """


class LedgerError(HarnessError):
    """The ledger cannot be opened, read or written, or has another schema."""


class LeaderboardError(HarnessError):
    """A leaderboard or outcome file cannot be read, is not one of ours, or contradicts itself."""


class FileError(HarnessError):
    """A file cannot be written: no room, no permission, or its name is too long."""
