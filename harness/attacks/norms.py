"""The norms in which AutoAttack's balls are measured."""

from typing import Literal

Norm = Literal["Linf", "L2", "L1"]
