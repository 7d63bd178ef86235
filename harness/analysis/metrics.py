"""In what is an answer measured, and how is that read? Pure.

Along the line an outcome is a number an image, and more is better. A board shows the metric as its field does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.api.records import Target


@dataclass(frozen=True)
class Metric:
    """What the mean of the outcomes is called.

    Args:
        name: in the column ``metric``.
        sign: −1 where less is better, so that an outcome is the negative of what is shown.
        most: an outcome can be.
        scale: what people multiply it by: an accuracy is read in percent.
        form: how they write it then.
    """

    name: str
    sign: int = 1
    most: float = 1.0
    scale: float = 100.0
    form: str = ".1f"

    def shown(self, outcome: float) -> float:
        """As a board has it: an accuracy in [0, 1], an error as such."""
        return self.sign * outcome

    def interval(self, low: float, high: float) -> tuple[float, float]:
        """Both ends as a board has them, the lower first."""
        return (low, high) if self.sign > 0 else (-high, -low)

    def read(self, value: float) -> float:
        """As people read what a board has."""
        return self.scale * value

    def text(self, value: float) -> str:
        """The same, written."""
        return f"{self.read(value):{self.form}}"

    @property
    def is_share(self) -> bool:
        """Whether it is read in percent, and its differences in points."""
        return self.scale == 100

    def points(self, value: float) -> float:
        """A difference as people read it, from the hundredths that a board has: percentage points of an accuracy."""
        return self.scale / 100 * value


METRICS: Mapping[Target, Metric] = {
    "class": Metric("accuracy"),
    "attributes": Metric("mean_accuracy"),
    "values": Metric("mse", sign=-1, most=0.0, scale=1.0, form=".4g"),
}
BY_NAME = {metric.name: metric for metric in METRICS.values()}


def spoken(metric: Metric) -> str:
    """Its name in words."""
    return metric.name.replace("_", " ")
