"""How the numbers of the Curvature Tuning paper were made, so that they can be reproduced: ``protocol: paper``.

There, images are normalised before AutoAttack, so ε and the box [0, 1] act on normalised images: a perturbation may be
several times larger in pixels than ε says, and no image that was found is checked. (Corruptions have no ε, and are made
before either way.) Registered modules alone are replaced, and β is the best on the very images it is reported on. Such
a row is flagged ``not_comparable``. With ``protocol: pixel``, the default, everything else in this package applies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError

if TYPE_CHECKING:
    pass

IMPLIED: Mapping[str, Mapping[str, Any]] = {
    "selection": {"kind": "none"},
    "steering": {"sites": "modules", "family": "relu"},
}
"""What ``protocol: paper`` fills in, and what a benchmark may not say otherwise."""


def filled_in(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a benchmark with what its protocol implies.

    Raises:
        SpecError: the benchmark says otherwise.
    """
    if fields.get("protocol") != "paper":
        return dict(fields)
    filled = dict(fields)
    for key, implied in IMPLIED.items():
        given = fields.get(key)
        if not isinstance(given, Mapping | None):
            continue  # reading it will say what is wrong
        for name, value in implied.items():
            if given is not None and given.get(name, value) != value:
                raise SpecError(
                    f"{key}.{name}: protocol: paper goes with {name}: {value}, found {given[name]!r}; leave it out, or "
                    "set protocol=pixel"
                )
        filled[key] = dict(given or {}) | dict(implied)
    return filled
