"""A part of a benchmark: a mapping in the YAML with a ``kind``."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Part(BaseModel, ABC):
    """A mapping in the YAML with a ``kind``: a model, dataset, threat or executor. Frozen; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    kind: ClassVar[str]
    """Name under which the part is registered as an entry point."""
    location_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that say where files are, not what is in them; left out of the identity."""

    @classmethod
    def names(cls) -> Mapping[str, Sequence[str]]:
        """Return the values that ``name`` may have, by heading; empty where any value may be given. May be slow."""
        return {}

    def identity(self) -> dict[str, Any]:
        """Return what this part is, as JSON; it enters the identity of every result computed with this part."""
        return {"kind": self.kind} | self.parameters()

    def parameters(self) -> dict[str, Any]:
        """Return every field that says what this part is rather than where it lies, as JSON."""
        return self.model_dump(mode="json", exclude=set(self.location_fields))

    def own_parameters(self) -> dict[str, Any]:
        """Return the parameters that classes outside of the harness add, which an inherited `identity` may miss."""
        inside = {
            name for base in type(self).__mro__ if base.__module__.startswith("harness.")
            for name in getattr(base, "model_fields", {})
        }  # fmt: skip
        return {name: value for name, value in self.parameters().items() if name not in inside}
