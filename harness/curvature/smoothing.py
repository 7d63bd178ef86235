"""Placement of a grid of β against the pre-activations that it acts on. Pure.

φ smooths ReLU over pre-activations of the size 1 − β (Eq. 7 of arXiv 2502.07783), so what one β does depends on how far
a network's pre-activations spread. The ratio of the two is the *smoothing*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from harness.errors import ModelError

FAINT = 0.03
"""Smoothing up to which a network is nearly as it is.

On 14 networks (ResNets and small CNNs, trained normally, adversarially and with certificates) the clean accuracy moves
by at most 0.4 points there, and at most 2 % of the predictions change. At 0.1 up to 20 % do.
"""
STRONG = 1.0
"""Smoothing from which most networks are destroyed.

Six of the seven CIFAR-10 networks that reach it keep two fifths of their clean accuracy or less; the seventh, certified
at 8/255, keeps all of it until 1.3. At 0.5 some networks have lost nothing yet.
"""
PROPOSED = 10
"""Number of β that are proposed in place of a grid."""
AUTO = 30
"""Number of β of ``steering.beta: auto``."""
AUTO_FROM, AUTO_TO = 0.01, 2.0
"""Its smallest and its largest smoothing: hardly anything, and destroyed."""


class Misplacement(NamedTuple):
    """Fault of a grid, and a better one.

    Args:
        fault: what the whole grid does to the network.
        remedy: a grid to try.
    """

    fault: str
    remedy: str


def smoothing(beta: float, spread: float | None) -> float | None:
    """Return (1 − β)/spread; None where the spread is not known.

    Args:
        beta: steering parameter in [0, 1].
        spread: standard deviation of the pre-activations, the median over the steered activations.
    """
    return None if spread is None else (1.0 - beta) / spread


def misplaced(betas: Sequence[float], spread: float | None, destroyed: bool = False) -> Misplacement | None:
    """Return what is wrong with a grid that leaves the network as it is at every β, or destroys it at every β.

    Args:
        betas: the grid, without the untouched network.
        spread: as for `smoothing`.
        destroyed: whether the network is known to be destroyed at every β.
    """
    if not betas or spread is None:
        return None
    most, least = ((1.0 - extreme(betas)) / spread for extreme in (min, max))
    if most < FAINT:
        fault = f"leaves the network nearly as it is: its smoothing is at most {most:.2g}, and {FAINT:g} is needed"
    elif destroyed:
        fault = f"destroys the network: its smoothing is {least:.2g} or more"
    elif least > STRONG:
        fault = f"is likely to destroy the network: its smoothing is {least:.2g} or more, and few bear {STRONG:g}"
    else:
        return None
    if spread * FAINT >= 1:
        return Misplacement(fault, "expect no effect, as β = 0 is still too faint for its wide pre-activations")
    proposed = ", ".join(f"{beta:g}" for beta in placed(spread, FAINT, STRONG, PROPOSED))
    return Misplacement(fault, f"try steering.beta: [{proposed}], or auto")


def chosen_or_placed(betas: Sequence[float] | Literal["auto"], spread: float | None) -> Sequence[float]:
    """Return the β of a grid, which ``auto`` places by the spread.

    Args:
        betas: the grid as the benchmark has it.
        spread: as for `smoothing`; two digits of it count, which are the same on every machine.

    Raises:
        ModelError: the grid is to be placed, and the spread is not known.
    """
    if betas != "auto":
        return betas
    if spread is None:
        raise ModelError(
            "steering.beta: auto places the grid by the spread of the pre-activations, but none vary on the first "
            "images; give the values of β"
        )
    return placed(float(f"{spread:.2g}"), AUTO_FROM, AUTO_TO, AUTO)


def placed(spread: float, least: float, most: float, number: int) -> tuple[float, ...]:
    """Return β in [0, 1) from the least smoothing to the most, evenly spaced on a logarithmic scale.

    Args:
        spread: as for `smoothing`. Where it is so large that β = 0 does not smooth that much, the grid ends there,
            and begins at β = 0.9 or above.
        least: smallest smoothing.
        most: largest smoothing.
        number: number of β; fewer where some are the same to three digits of 1 − β, or to six of β.
    """
    widest = min(most * spread, 1.0)
    narrowest = min(least * spread, widest / 10)
    widths = (narrowest * (widest / narrowest) ** (step / (number - 1)) for step in range(number))
    betas = (round(1.0 - float(f"{width:.3g}"), 6) for width in widths)
    return tuple(dict.fromkeys(beta for beta in betas if beta < 1.0))
