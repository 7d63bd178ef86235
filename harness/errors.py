"""Every error the harness raises on purpose: what was expected, what was found, where, and what to do."""

from __future__ import annotations


class HarnessError(Exception):
    """Base of all of them. The command line prints its text, without a traceback."""


class SpecError(HarnessError):
    """The benchmark file, an override or an argument is not what it should be; names the file and the key."""


class DataError(HarnessError):
    """The data are not there, damaged, or not images in [0, 1] with labels."""


class DataMissing(DataError):
    """The data are not there at all."""


class ModelError(HarnessError):
    """A model cannot be loaded, or cannot be scored as it is. Its row says ``failed`` and the others still run.

    Args:
        message: what was expected, what was found, and what to do.
        flag: the row's flag that names this fault, where there is one.
    """

    def __init__(self, message: str, flag: str | None = None) -> None:
        super().__init__(message)
        self.flag = flag

    def __reduce__(self) -> tuple[type[ModelError], tuple[str, str | None]]:
        return type(self), (str(self), self.flag)


class NothingToSteer(ModelError):
    """The network executes no piecewise-affine activation, so Curvature Tuning has nothing to act on."""


class IncompleteSteering(ModelError):
    """A piecewise-affine activation escapes the steering, so a score would be of a half-steered network."""


class InvalidAdversary(ModelError):
    """An attack returned an image that is not finite, outside [0, 1], or outside the ball: never scored."""


class LedgerError(HarnessError):
    """The ledger cannot be opened or written, or was written by another schema."""


class LeaderboardError(HarnessError):
    """A leaderboard file is not one of ours, or cannot be written."""
