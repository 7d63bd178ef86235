"""Metrics: the units of a board's scores, and their usual notation. Pure.

Inside the harness an outcome is one number for each image, and more is better. A board shows the mean as the field
does: as an accuracy, or as an error, of which less is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.api.records import Target


@dataclass(frozen=True)
class Metric:
    """Name and notation of a mean outcome.

    Args:
        name: value of the column ``metric``.
        sign: sign of the board's value relative to the outcome: −1 for an error, of which less is better.
        most: highest outcome of an image.
        scale: factor from the board's value to the usual notation: 100 for an accuracy, read in percent.
        form: format specification of the usual notation.
    """

    name: str
    sign: int = 1
    most: float = 1.0
    scale: float = 100.0
    form: str = ".1f"

    def shown(self, outcome: float) -> float:
        """Return a mean outcome as the board has it: an accuracy in [0, 1], or a positive error."""
        return self.sign * outcome

    def interval(self, low: float, high: float) -> tuple[float, float]:
        """Return an interval of mean outcomes as the board has it, the lower end first."""
        return (low, high) if self.sign > 0 else (-high, -low)

    def read(self, value: float) -> float:
        """Return a board's value in the usual notation: an accuracy in percent, an error as it is."""
        return self.scale * value

    def text(self, value: float) -> str:
        """Return a board's value in the usual notation, as text."""
        return f"{self.read(value):{self.form}}"

    @property
    def is_share(self) -> bool:
        """True if values are read in percent, and differences in percentage points."""
        return self.scale == 100

    def points(self, hundredths: float) -> float:
        """Return a difference in the usual notation, such as percentage points.

        Args:
            hundredths: 100 times the difference of two values, as in the board's column ``delta_pp``.
        """
        return self.scale / 100 * hundredths


METRICS: Mapping[Target, Metric] = {
    "class": Metric("accuracy"),
    "attributes": Metric("mean_accuracy"),
    "values": Metric("mse", sign=-1, most=0.0, scale=1.0, form=".4g"),
}
BY_NAME = {metric.name: metric for metric in METRICS.values()}


def spoken(metric: Metric) -> str:
    """Return the metric's name in words."""
    return metric.name.replace("_", " ")
