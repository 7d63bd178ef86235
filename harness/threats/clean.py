"""No perturbation: the images as they are, for benchmarks of generalisation."""

from __future__ import annotations

from harness.api.threat import Threat


class Clean(Threat):
    """The clean stage alone: a row's ``robust`` equals its ``clean``."""

    kind = "clean"

    @property
    def stages(self) -> tuple[str, ...]:
        """No stage besides the clean one."""
        return ()
