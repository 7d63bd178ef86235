"""A part of a benchmark: a mapping of the YAML with a ``kind``."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Part(BaseModel, ABC):
    """A mapping of the YAML that has a ``kind``. Unknown keys are refused; an instance never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    kind: ClassVar[str]
    """The name under which it is registered."""
    location_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that say where something lies, not what it is: left out of the identity."""

    @classmethod
    def names(cls) -> Mapping[str, Sequence[str]]:
        """What may be given as ``name``, under a heading each; empty where anything may. May be slow."""
        return {}

    def identity(self) -> dict[str, Any]:
        """What this part is, as JSON: part of the identity of every cell that it takes part in."""
        return {"kind": self.kind} | self.model_dump(mode="json", exclude=set(self.location_fields))
