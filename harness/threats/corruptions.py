"""Common corruptions: noise, blur, weather and digital faults, each at five severities, and no adversary.

Hendrycks & Dietterich 2019, arXiv 1903.12261; in three dimensions Kar et al. 2022, arXiv 2203.01441.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from harness.api.threat import Threat
from harness.threats.corruption_sources.base import CorruptionSource
from harness.threats.corruption_sources.generated import Generated
from harness.threats.corruption_sources.official import CIFARC, ImageNetC
from harness.util.text import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.api.records import Batch

CORRUPTIONS = (
    "shot_noise", "motion_blur", "snow", "pixelate", "gaussian_noise", "defocus_blur", "brightness", "fog",
    "zoom_blur", "frost", "glass_blur", "impulse_noise", "contrast", "jpeg_compression", "elastic_transform",
)  # fmt: skip
"""RobustBench's names, in its order."""
CORRUPTIONS_3D = (
    "near_focus", "far_focus", "bit_error", "color_quant", "flash", "fog_3d", "h265_abr", "h265_crf", "iso_noise",
    "low_light", "xy_motion_blur", "z_motion_blur",
)  # fmt: skip
"""Those that know of the depth of the scene."""
SEVERITIES = (1, 2, 3, 4, 5)

Names = Annotated[tuple[str, ...], Field(min_length=1)]

CORRUPTION_SOURCES: Mapping[str, CorruptionSource] = {
    "CIFAR-10-C": CIFARC("CIFAR-10-C", record="2535967"),
    "CIFAR-100-C": CIFARC("CIFAR-100-C", record="3555552"),
    "ImageNet-C": ImageNetC("ImageNet-C", url="https://zenodo.org/records/2235448"),
    "ImageNet-3DCC": ImageNetC("ImageNet-3DCC", url="https://github.com/EPFL-VILAB/3DCommonCorruptions"),
    "generated": Generated(),
}


class Corrupted(Threat):
    """Every corruption at every severity is a stage ``<corruption>-<severity>``; an image scores the share it survives.

    What a stage shows does not depend on which others there are, so neither list is part of the identity, and what a
    run of some left in the ledger serves a run of others.
    """

    reduction = "mean"
    location_fields: ClassVar[frozenset[str]] = frozenset({"root"})
    known: ClassVar[tuple[str, ...]]
    """All corruptions of this kind."""

    source: str
    root: str = "data"
    corruptions: Names
    severities: Annotated[tuple[Annotated[int, Field(strict=True, ge=1, le=5)], ...], Field(min_length=1)] = SEVERITIES

    @property
    def standard(self) -> bool:
        """The whole official set."""
        return self.source != "generated" and (self.corruptions, self.severities) == (self.known, SEVERITIES)

    @property
    def stages(self) -> tuple[str, ...]:
        """Corruption by corruption, in RobustBench's order, each from mild to severe."""
        return tuple(self._stages)

    def prepare(self, batch: Batch | None, *, offline: bool = False) -> None:
        """The official set is there and whole, and is of these images; downloads CIFAR's where it is missing."""
        self._corruption_source.prepare(Path(self.root), list(self._stages.values()), batch, offline)

    def perturb(self, stage: str, network: nn.Module, batch: Batch, seed: int) -> Tensor:
        """The corrupted images, the same for every network; downloads nothing.

        Raises:
            DataError: they are not there, or are of other images.
        """
        return self._corruption_source.images(Path(self.root), *self._stages[stage], batch, seed).to(batch.x.device)

    def identity(self) -> dict[str, Any]:
        """Where the images come from, the generator's version included."""
        return {"kind": self.kind, "source": self._corruption_source.label}

    def columns(self) -> dict[str, str]:
        """Where the images come from, and which they are where not all of the set."""
        parts = ["+".join(self.corruptions)] if len(self.corruptions) < len(self.known) else []
        if self.severities != SEVERITIES:
            parts.append("at " + "+".join(map(str, self.severities)))
        subset = f"[{' '.join(parts)}]" if parts else ""
        return {"threat": self.kind, "eps": "", "attack": f"{self._corruption_source.label}{subset}"}

    def summary_columns(self, accuracy: Mapping[str, float]) -> dict[str, float]:
        """The mean corruption error, where AlexNet has been scored on this set and every stage of it was run."""
        reference = alexnet().get(self.source, {})
        return {"mce": mce(accuracy, reference)} if reference and accuracy.keys() >= reference.keys() else {}

    @property
    def _corruption_source(self) -> CorruptionSource:
        return CORRUPTION_SOURCES[self.source]

    @property
    def _stages(self) -> dict[str, tuple[str, int]]:
        """Corruption and severity by the name of the stage."""
        return {f"{name}-{severity}": (name, severity) for name in self.corruptions for severity in self.severities}

    @field_validator("corruptions")
    @classmethod
    def _known_ones(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Each once, in RobustBench's order whatever the file's."""
        for name in names:
            if name not in cls.known:
                hint = did_you_mean(name, list(cls.known))
                raise ValueError(f"no corruption {name!r}{hint}; known: {', '.join(cls.known)}")
        return tuple(name for name in cls.known if name in names)

    @field_validator("severities")
    @classmethod
    def _ascending(cls, severities: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(severities)))


class Corruptions(Corrupted):
    """The 15 common corruptions: CIFAR-10-C, CIFAR-100-C, ImageNet-C, or made on the fly of any other images."""

    kind = "corruptions"
    known = CORRUPTIONS

    source: Literal["CIFAR-10-C", "CIFAR-100-C", "ImageNet-C", "generated"] = "generated"
    corruptions: Names = CORRUPTIONS

    @classmethod
    def defaults(cls, dataset: str) -> dict[str, Any]:
        """The data set's official set, where it has one."""
        official = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C", "imagenet": "ImageNet-C"}
        return {"source": official[dataset]} if dataset in official else {}


class Corruptions3D(Corrupted):
    """The 12 corruptions of ImageNet-3DCC, which know of the depth of the scene."""

    kind = "corruptions_3d"
    known = CORRUPTIONS_3D

    source: Literal["ImageNet-3DCC"] = "ImageNet-3DCC"
    corruptions: Names = CORRUPTIONS_3D


def mce(accuracy: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """The mean corruption error, in percent: 100 for the reference itself, lower is better.

    ``mCE = mean is_done corruptions of Σ_s (1 − accuracy) / Σ_s (1 − reference)``, the sums over the severities
    (Hendrycks & Dietterich 2019, section 4.1; as RobustBench has it).

    Args:
        accuracy: by stage ``<corruption>-<severity>``, in [0, 1].
        reference: likewise, AlexNet's; its stages are those that count.
    """
    sums: dict[str, list[float]] = {}
    for stage in reference:
        errors = sums.setdefault(stage.rpartition("-")[0], [0.0, 0.0])
        errors[0] += 1 - accuracy[stage]
        errors[1] += 1 - reference[stage]
    return 100 * sum(ours / theirs for ours, theirs in sums.values()) / len(sums)


@cache
def alexnet() -> Mapping[str, Mapping[str, float]]:
    """AlexNet's accuracy by set and stage, in [0, 1]: the figures of RobustBench's repository, for 5,000 images."""
    found: dict[str, dict[str, float]] = {}
    with files("harness.threats").joinpath("alexnet_corruptions.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            stages = found.setdefault(row["set"], {})
            stages |= {f"{row['corruption']}-{severity}": float(row[str(severity)]) for severity in SEVERITIES}
    return found
