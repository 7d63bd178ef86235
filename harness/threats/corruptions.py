"""Common corruptions: noise, blur, weather and digital artefacts at five severities, without an adversary.

Hendrycks & Dietterich 2019, arXiv 1903.12261; with the depth of the scene, Kar et al. 2022, arXiv 2203.01441.
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
    from harness.util.noise import Noise

CORRUPTIONS = (
    "shot_noise", "motion_blur", "snow", "pixelate", "gaussian_noise", "defocus_blur", "brightness", "fog",
    "zoom_blur", "frost", "glass_blur", "impulse_noise", "contrast", "jpeg_compression", "elastic_transform",
)  # fmt: skip
"""The common corruptions under RobustBench's names, in its order."""
CORRUPTIONS_3D = (
    "near_focus", "far_focus", "bit_error", "color_quant", "flash", "fog_3d", "h265_abr", "h265_crf", "iso_noise",
    "low_light", "xy_motion_blur", "z_motion_blur",
)  # fmt: skip
"""The corruptions of ImageNet-3DCC, which use the depth of the scene; names and order are RobustBench's."""
SEVERITIES = (1, 2, 3, 4, 5)

CorruptionNames = Annotated[tuple[str, ...], Field(min_length=1)]

CORRUPTION_SOURCES: Mapping[str, CorruptionSource] = {
    "CIFAR-10-C": CIFARC("CIFAR-10-C", record="2535967"),
    "CIFAR-100-C": CIFARC("CIFAR-100-C", record="3555552"),
    "ImageNet-C": ImageNetC("ImageNet-C", url="https://zenodo.org/records/2235448"),
    "ImageNet-3DCC": ImageNetC("ImageNet-3DCC", url="https://github.com/EPFL-VILAB/3DCommonCorruptions"),
    "generated": Generated(),
}


class CorruptionThreat(Threat):
    """Corruptions as stages ``<corruption>-<severity>``; an image's score is the share of the stages it survives.

    The images of a stage do not depend on the other stages. So neither list is part of the identity, and runs of
    different subsets share their outcomes in the ledger.

    Args:
        source: name of the official dataset of corrupted images, or "generated".
        root: directory that holds the official datasets.
        corruptions: names of the corruptions to score.
        severities: severities to score, from 1 (mild) to 5 (severe).
    """

    reduction = "mean"
    location_fields: ClassVar[frozenset[str]] = frozenset({"root"})
    all_corruptions: ClassVar[tuple[str, ...]]
    """Every corruption of this kind, in RobustBench's order."""

    source: str
    root: str = "data"
    corruptions: CorruptionNames
    severities: Annotated[tuple[Annotated[int, Field(strict=True, ge=1, le=5)], ...], Field(min_length=1)] = SEVERITIES

    @property
    def standard(self) -> bool:
        """True for a whole official dataset; see `Threat.standard`."""
        whole = (self.corruptions, self.severities) == (self.all_corruptions, SEVERITIES)
        return self.source != "generated" and whole

    @property
    def concurrent(self) -> bool:
        """True where the corrupted images are files; see `Threat.concurrent`."""
        return self._corruption_source.concurrent

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages: corruption by corruption in RobustBench's order, each from mild to severe."""
        return tuple(self._stages)

    def prepare(self, batch: Batch | None, *, offline: bool = False) -> None:
        """Check that the corrupted images are complete and match ``batch``; download CIFAR's if missing."""
        self._corruption_source.prepare(Path(self.root), list(self._stages.values()), batch, offline)

    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        """Return the corrupted images, the same for every network; download nothing.

        Raises:
            DataError: the corrupted images are missing, or do not match ``batch``.
        """
        return self._corruption_source.images(Path(self.root), *self._stages[stage], batch, noise.seed).to(
            batch.x.device
        )

    def identity(self) -> dict[str, Any]:
        """Return the kind and the source of the images, the generator's version included."""
        return {"kind": self.kind, "source": self._corruption_source.label}

    def columns(self) -> dict[str, str]:
        """Return the source of the images and, of a subset, its corruptions and severities."""
        parts = ["+".join(self.corruptions)] if len(self.corruptions) < len(self.all_corruptions) else []
        if self.severities != SEVERITIES:
            parts.append("at " + "+".join(map(str, self.severities)))
        subset = f"[{' '.join(parts)}]" if parts else ""
        return {"threat": self.kind, "eps": "", "attack": f"{self._corruption_source.label}{subset}"}

    def summary_columns(self, accuracy: Mapping[str, float]) -> dict[str, float]:
        """Return the mean corruption error, if AlexNet's figures are known here and every stage was run."""
        reference = alexnet().get(self.source, {})
        return {"mce": mce(accuracy, reference)} if reference and accuracy.keys() >= reference.keys() else {}

    @property
    def _corruption_source(self) -> CorruptionSource:
        return CORRUPTION_SOURCES[self.source]

    @property
    def _stages(self) -> dict[str, tuple[str, int]]:
        """The corruption and severity of each stage, by its name."""
        return {f"{name}-{severity}": (name, severity) for name in self.corruptions for severity in self.severities}

    @field_validator("corruptions")
    @classmethod
    def _in_robustbench_order(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return each name once, in RobustBench's order; reject unknown ones."""
        for name in names:
            if name not in cls.all_corruptions:
                hint = did_you_mean(name, list(cls.all_corruptions))
                raise ValueError(f"unknown corruption {name!r}{hint}; known: {', '.join(cls.all_corruptions)}")
        return tuple(name for name in cls.all_corruptions if name in names)

    @field_validator("severities")
    @classmethod
    def _ascending(cls, severities: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(severities)))


class Corruptions(CorruptionThreat):
    """The 15 common corruptions: CIFAR-10-C, CIFAR-100-C, ImageNet-C, or generated on the fly from other images."""

    kind = "corruptions"
    all_corruptions = CORRUPTIONS

    source: Literal["CIFAR-10-C", "CIFAR-100-C", "ImageNet-C", "generated"] = "generated"
    corruptions: CorruptionNames = CORRUPTIONS

    @classmethod
    def defaults(cls, dataset: str) -> dict[str, Any]:
        """Return the official corrupted version of ``dataset``, if it has one."""
        official = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C", "imagenet": "ImageNet-C"}
        return {"source": official[dataset]} if dataset in official else {}


class Corruptions3D(CorruptionThreat):
    """The 12 corruptions of ImageNet-3DCC, which use the depth of the scene."""

    kind = "corruptions_3d"
    all_corruptions = CORRUPTIONS_3D

    source: Literal["ImageNet-3DCC"] = "ImageNet-3DCC"
    corruptions: CorruptionNames = CORRUPTIONS_3D


def mce(accuracy: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Return the mean corruption error in percent: 100 for the reference itself, lower is better.

    ``mCE = 100 · mean over corruptions of Σ_s (1 − accuracy) / Σ_s (1 − reference)``, with sums over the severities s
    (Hendrycks & Dietterich 2019, section 4.1; as RobustBench computes it).

    Args:
        accuracy: accuracy in [0, 1] of each stage ``<corruption>-<severity>``.
        reference: AlexNet's accuracy in [0, 1] of each stage; only its stages count.
    """
    errors: dict[str, list[float]] = {}
    for stage in reference:
        of_corruption = errors.setdefault(stage.rpartition("-")[0], [0.0, 0.0])
        of_corruption[0] += 1 - accuracy[stage]
        of_corruption[1] += 1 - reference[stage]
    return 100 * sum(error / reference_error for error, reference_error in errors.values()) / len(errors)


@cache
def alexnet() -> Mapping[str, Mapping[str, float]]:
    """Return AlexNet's accuracy in [0, 1] by source and stage: RobustBench's figures, for 5,000 images."""
    accuracy: dict[str, dict[str, float]] = {}
    with files("harness.threats").joinpath("alexnet_corruptions.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            stages = accuracy.setdefault(row["set"], {})
            stages |= {f"{row['corruption']}-{severity}": float(row[str(severity)]) for severity in SEVERITIES}
    return accuracy
