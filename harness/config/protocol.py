"""``protocol: paper``: the settings of the Curvature Tuning paper, to reproduce its numbers.

There, images are normalised before AutoAttack, so ε and the box [0, 1] apply to normalised images: in pixels a
perturbation may be several times larger than ε, and adversarial images are not verified. (Corruptions have no ε, and
are made before the normalisation in either protocol.) Only registered modules are replaced, and β is the best one on
the very images it is reported on. Such rows are flagged ``not_comparable``. The default is ``protocol: pixel``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.errors import SpecError

IMPLIED: Mapping[str, Mapping[str, Any]] = {
    "selection": {"kind": "none"},
    "steering": {"sites": "modules", "family": "relu"},
}
"""Keys that ``protocol: paper`` fills in, and that a benchmark may not set otherwise."""


def filled_in(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a benchmark's mapping with the keys that its protocol implies.

    Args:
        fields: the mapping as it was read.

    Raises:
        SpecError: a key contradicts the protocol.
    """
    if fields.get("protocol") != "paper":
        return dict(fields)
    filled = dict(fields)
    for key, implied in IMPLIED.items():
        given = fields.get(key)
        if not isinstance(given, Mapping | None):
            continue  # parsing it will say what is wrong
        for name, value in implied.items():
            if given is not None and given.get(name, value) != value:
                raise SpecError(
                    f"{key}.{name}: protocol: paper goes with {name}: {value}, found {given[name]!r}; leave it out, or "
                    "set protocol=pixel"
                )
        filled[key] = dict(given or {}) | dict(implied)
    return filled
