"""Parsing of the benchmark file: its text becomes typed values here, once, and is not checked again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from harness.analysis.selection import CrossValidation, OnTraining, Procedure, Selection
from harness.api import registry
from harness.api.dataset import Dataset
from harness.api.executor import Executor
from harness.api.model import Model
from harness.api.records import Compile, FamilyName, Precision, Protocol, Sites
from harness.api.threat import Threat
from harness.api.validation import WRITTEN, Count, explain, spelt
from harness.config.overrides import apply_override
from harness.config.protocol import filled_in
from harness.config.yaml_text import LARGEST_TEXT, TOO_LARGE, parse_yaml
from harness.curvature.smoothing import AUTO
from harness.errors import SpecError
from harness.util.numbers import as_number
from harness.util.text import disarmed, shown

PARTS = {"dataset": "datasets", "threat": "threats", "executor": "executors"}
"""Keys that hold a part, with the group in which its kind is looked up; ``models`` holds a list of parts."""

MOST_MODELS = 250
"""Most models of a benchmark; RobustBench has 206."""
MOST_STEERINGS = 10_000
"""Most points of a grid: a hundred values of β for each of a hundred of c."""

MOST_SCORES = 20_000_000
"""Most images × steerings × models, each of which takes about a kilobyte: CIFAR-10's 10,000 under 30 β by 66 models."""
NAME = "letters, digits and _, with . and - after the first, since files are named after it"
DEVICE = "auto, cpu, cuda, or one GPU by its number, such as cuda:1"
"""Names and devices in words, for messages."""
ROUNDING = Decimal("1e-9")
"""Share of a step by which a fraction such as 1/3, as a float, may miss the end."""

Unit = Annotated[float, Field(strict=True, ge=0, le=1), WRITTEN]


def _spread(value: Any) -> Any:
    """Return the values of a number, a list of numbers, or ``{from, to, step}`` with both ends included."""
    if not isinstance(value, Mapping):
        number = as_number(value)
        return [number] if isinstance(number, int | float) else value
    if set(value) != {"from", "to", "step"}:
        raise ValueError("expected a list of numbers or {from: …, to: …, step: …}")
    ends = [as_number(value[key]) for key in ("from", "to", "step")]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) and isfinite(end) for end in ends):
        raise ValueError("expected numbers for from, to and step")
    start, stop, step = (Decimal(str(end)) for end in ends)  # without the rounding of repeated additions
    if not (0 <= start <= stop <= 1 and step > 0):
        raise ValueError("expected 0 ≤ from ≤ to ≤ 1 and step > 0")
    if (stop - start) / step > MOST_STEERINGS:
        raise ValueError(f"expected at most {MOST_STEERINGS:,} values; raise step")
    values = [start + i * step for i in range(int((stop - start) / step + ROUNDING) + 1)]
    return [float(stop if abs(value - stop) < step * ROUNDING else value) for value in values]


UNIT_SCHEMA = {"type": "number", "minimum": 0, "maximum": 1}
SPREAD_SCHEMA = {
    "type": "object",
    "required": ["from", "to", "step"],
    "additionalProperties": False,
    "properties": {"from": UNIT_SCHEMA, "to": UNIT_SCHEMA, "step": UNIT_SCHEMA},
}
GRID_SCHEMA = {"anyOf": [UNIT_SCHEMA, {"type": "array", "items": UNIT_SCHEMA, "minItems": 1}, SPREAD_SCHEMA]}

Grid = Annotated[
    tuple[Unit, ...],
    Field(min_length=1, max_length=MOST_STEERINGS),
    BeforeValidator(_spread),
    WithJsonSchema(GRID_SCHEMA),
]


class SteeringGrid(BaseModel):
    """Steerings to score, besides the untouched network, which is always scored.

    Args:
        beta: values of β in [0, 1]; or "auto", about 30 that each model's pre-activations place; see
            `harness.curvature.smoothing`.
        c: values of c in [0, 1]; the paper's 0.5 by default.
        sites: calls of activations to steer: "all", or only those of registered "modules".
        family: activations to steer: "relu" as in the paper, or "smooth" for SiLU and GELU along c = 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    beta: Grid | Literal["auto"]
    c: Grid = (0.5,)
    sites: Sites = "all"
    family: FamilyName = "relu"

    @model_validator(mode="before")
    @classmethod
    def _along_one(cls, fields: Any) -> Any:
        """Fill in c = 1 for the smooth family."""
        smooth = isinstance(fields, Mapping) and fields.get("family") == "smooth"
        return {"c": 1.0} | dict(fields) if smooth else fields

    @model_validator(mode="after")
    def _together(self) -> SteeringGrid:
        if self.family == "smooth" and (self.c != (1.0,) or self.sites != "all"):
            raise ValueError("family: smooth is steered along c = 1 at all sites; leave c and sites out")
        if self.family == "smooth" and self.beta == "auto":
            raise ValueError("beta: auto is made for ReLU; give the values of β with family: smooth")
        if self.points > MOST_STEERINGS:
            raise ValueError(
                f"beta and c make {self.points:,} steerings, expected at most {MOST_STEERINGS:,}; thin them out"
            )
        return self

    @property
    def points(self) -> int:
        """Number of pairs of β and c, or the most that it can be."""
        return (AUTO if self.beta == "auto" else len(self.beta)) * len(self.c)


class BestFirst(Procedure):
    """Best-first search: finish the baseline and the winners, and prune the rest.

    Args:
        top: number of the best steerings to finish.
    """

    kind: Literal["best_first"] = "best_first"
    top: Count = 1


class Full(Procedure):
    """Full search: finish every steering of the grid."""

    kind: Literal["full"] = "full"


Search = Annotated[BestFirst | Full, Field(discriminator="kind")]


class Benchmark(BaseModel):
    """One question: these models, on these images, under this threat, at these β.

    Args:
        name: name of the ledger's directory and of the CSV; the file's name by default.
        models: models to score, each with its ``kind``; see ``ct-harness list``.
        dataset: images to score them on, with its ``kind``.
        threat: attacks or corruptions to score them under, with its ``kind``.
        steering: grid of β and c.
        protocol: "pixel", or "paper" to reproduce the paper's numbers; see `harness.config.protocol`.
        selection: procedure by which the headline's β is chosen. By default cross-validation on the scored images, or
            on the training images if every model has some.
        search: whether to finish every steering, or only those that can win; the winner is the same.
        replay_points: percentage points that a row may lose to the adversarial images of other steerings before it is
            flagged ``replay``.
        seed: seed of the attacks' noise, and of the folds.
        batch_size: most images that go through a network at once; "auto" measures what is fastest. A matter of speed
            and memory alone: results do not depend on it.
        compile: whether attacks run on a compiled network; "auto" compiles on a GPU, where the run is long enough and
            the network can be compiled; "never" records no CUDA graphs either. Like the device, it is not part of a
            result's identity.
        precision: precision of the network under attack; adversarial images are judged in float32. "tf32" needs a GPU.
        executor: place where trials are computed, with its ``kind``; this machine by default.
        device: device to compute on: "auto" (a GPU if there is one), "cpu", "cuda", or "cuda:1".
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: Annotated[str, Field(max_length=100), *spelt(r"\w[\w.-]*", NAME)]
    models: Annotated[tuple[Model, ...], Field(min_length=1)]
    dataset: Dataset
    threat: Threat
    steering: SteeringGrid
    protocol: Protocol = "pixel"
    selection: Selection = CrossValidation()
    search: Search = BestFirst()
    replay_points: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False), WRITTEN] = 1.0
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    batch_size: Count | Literal["auto"] = "auto"
    compile: Compile = "auto"
    precision: Precision = "float32"
    executor: Executor
    device: Annotated[str, *spelt("(auto|cpu|cuda(:[0-9]{1,4})?)", DEVICE)] = "auto"

    @property
    def normalised(self) -> bool:
        """True if images are normalised before they are attacked; see `harness.config.protocol`."""
        return self.protocol == "paper" and self.threat.reduction == "worst"

    @field_validator("models")
    @classmethod
    def _each_once(cls, models: tuple[Model, ...]) -> tuple[Model, ...]:
        labels = [model.label for model in models]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"two models are called {twice[0]!r}; give one of them another name")
        unsafe = [label for label in labels if not label or label != disarmed(label)]
        if unsafe:
            raise ValueError(f"a model is called {unsafe[0]!r}; give it a name of letters, without control characters")
        return models

    @field_validator("compile", "precision")
    @classmethod
    def _only_with_attacks(cls, value: Any, info: ValidationInfo) -> Any:
        threat = info.data.get("threat")
        if threat is not None and not threat.attacks and value not in ("auto", "never", "float32"):
            raise ValueError(f"it is about attacks, and {threat.kind} has none; leave it out")
        return value

    @model_validator(mode="after")
    def _can_be_held(self) -> Benchmark:
        images = self.dataset.n or len(self.dataset.indices or ())
        if fault := self.too_many_scores(images):
            raise ValueError(fault)
        return self

    def too_many_scores(self, images: int) -> str:
        """Return what is wrong if so many images are scored; empty if there is room for all their scores."""
        steerings, models = self.steering.points, len(self.models)
        if (scores := images * steerings * models) <= MOST_SCORES:
            return ""
        return (
            f"dataset: {images:,} images × {steerings:,} steerings × {models:,} models are {scores:,} scores, expected "
            f"at most {MOST_SCORES:,}; lower dataset.n, thin out steering.beta, or split the file"
        )

    @model_validator(mode="after")
    def _attacks_change_a_class(self) -> Benchmark:
        if self.threat.attacks and self.dataset.target != "class":
            raise ValueError(
                f"threat: {self.threat.kind} makes a network predict another class, but the labels of "
                f"{self.dataset.title} are {self.dataset.target}; use threat: {{kind: clean}}"
            )
        return self


def load_benchmark(path: str | Path, overrides: Sequence[str] = ()) -> Benchmark:
    """Read a benchmark file.

    Args:
        path: path of the YAML file.
        overrides: changes to it, ``key.path=value`` each, the value in YAML; entries of a list are numbered from 0
            (``models.0.name=x``).

    Raises:
        SpecError: the file cannot be read, or is not a benchmark. A line for each fault names the file, the key, what
            was expected and what was found.
    """
    try:
        data = parse_yaml(_read(Path(path)))
        if not isinstance(data, dict):
            raise SpecError(f"expected a mapping with models, dataset, threat and steering, found {shown(data)}")
        for override in overrides:
            apply_override(data, override)
        return parse_benchmark({"name": Path(path).stem} | data)
    except SpecError as error:
        raise SpecError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from error


def _read(path: Path) -> str:
    """Return the text of a file, of which no more is read than a benchmark may have."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_TEXT + 1)
        if len(raw) > LARGEST_TEXT:
            raise SpecError(TOO_LARGE)
        return raw.decode()
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecError(f"not valid YAML: line {line}: the byte {raw[error.start]:#04x} is not UTF-8") from error


def parse_benchmark(data: Mapping[str, Any]) -> Benchmark:
    """Return the benchmark that a mapping describes; see `load_benchmark`."""
    fields = {"executor": {"kind": "local"}} | filled_in(data)
    if isinstance(fields.get("models"), list):
        if len(fields["models"]) > MOST_MODELS:
            raise SpecError(f"models: expected at most {MOST_MODELS}, found {len(fields['models']):,}; split the file")
        fields["models"] = [registry.build("models", model, f"models[{i}]") for i, model in enumerate(fields["models"])]
    fields["threat"] = _with_defaults(fields.get("threat"), fields.get("dataset"))
    for key, group in PARTS.items():
        if fields.get(key) is not None:
            fields[key] = registry.build(group, fields[key], key)
        else:
            fields.pop(key, None)
    if fields.get("selection") is None and _all_have_training_images(fields.get("models")):
        fields["selection"] = OnTraining()
    try:
        return Benchmark.model_validate(fields)
    except ValidationError as error:
        raise SpecError(explain(error, Benchmark, "", fields)) from error


def _all_have_training_images(models: Any) -> bool:
    return isinstance(models, list) and bool(models) and all(model.training is not None for model in models)


def _with_defaults(threat: Any, dataset: Any) -> Any:
    """Return the threat's mapping with the defaults for this dataset, such as RobustBench's ε."""
    if not (isinstance(threat, Mapping) and isinstance(dataset, Mapping)):
        return threat
    kinds = threat.get("kind"), dataset.get("kind")
    if not (isinstance(kinds[0], str) and kinds[0] in registry.registered("threats")):
        return threat
    try:
        cls = registry.part("threats", kinds[0])
    except SpecError:
        return threat  # building it will report the fault
    assert issubclass(cls, Threat)
    return cls.defaults(str(kinds[1])) | dict(threat)
