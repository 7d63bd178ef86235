"""One row of a leaderboard: its columns, their types and formats, and the kind of row it is.

A new column is a new field of `LeaderboardRow`; its place among the fields is its place in the CSV. Text becomes typed
values once, in `rows_of`, without control characters; everything that reads a board reads these records.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_type_hints

from harness.analysis.metrics import BY_NAME, METRICS, Metric
from harness.api.records import FamilyName
from harness.errors import LeaderboardError
from harness.util.batching import grouped
from harness.util.text import cleaned

if TYPE_CHECKING:
    import pandas as pd

RowKind = Literal["baseline", "steered", "adapted", "bounded", "selected", "in_sample", "untrusted", "failed"]
"""Kinds of rows, one for each row:

- ``baseline``: the untouched network, or its linear probe;
- ``steered``: a finished point of the grid;
- ``adapted``: another method than steering, such as ``lora-4``, finished;
- ``bounded``: pruned by the search; its accuracies are upper bounds;
- ``selected``: the headline, its β chosen on other images than it is reported on;
- ``in_sample``: a headline whose β was chosen on the images it is reported on: not to be trusted;
- ``untrusted``: a headline where the baseline or a chosen β shows signs of gradient masking: not to be trusted;
- ``failed``: a model, or another method of adapting one, without a score.
"""

OK, BOUNDED, FAILED = "ok", "bounded", "failed"
SELECTED, IN_SAMPLE, UNTRUSTED = "selected", "in-sample", "untrusted"
"""Values of the column ``status``; a failed row's goes on with the reason."""

CT, UNTOUCHED, LINEAR_PROBE = "ct", "untouched", "linear_probe"
"""Values of the column ``method`` for a steering and for both kinds of baseline. Other methods name themselves."""
BASELINES = (UNTOUCHED, LINEAR_PROBE)
OWN = (CT, *BASELINES)

Text = Annotated[str, "s"]
Count = Annotated[int | None, "d", (0, sys.float_info.max)]
Coordinate = Annotated[float | None, ".6g", (0, 1)]
Accuracy = Annotated[float | None, ".6f", (0, sys.float_info.max)]
"""Accuracy in [0, 1]; where the metric is an error, that error."""
Points = Annotated[float | None, "+.4f", (-sys.float_info.max, sys.float_info.max)]
"""Percentage points; where the metric is an error, hundredths of it."""
PValue = Annotated[float | None, ".4g", (0, 1)]
Figure = Annotated[float | None, ".4f", (0, sys.float_info.max)]
"""Further number, such as an error relative to another network's."""


@dataclass(frozen=True, kw_only=True)
class LeaderboardRow:
    """One row of a leaderboard; None or empty where the CSV is. ``leaderboards/README.md`` explains every column."""

    rank: Count
    model: Text
    method: Text
    beta: Coordinate
    c: Coordinate
    smoothing: Annotated[float | None, ".3g", (0, sys.float_info.max)]
    """(1 − β) over the spread of the pre-activations: what β is to this network."""
    family: Text
    clean: Accuracy
    robust: Accuracy
    robust_low: Accuracy
    robust_high: Accuracy
    robust_aa: Accuracy
    """Against the row's own attack alone, as other benchmarks publish it; ``robust`` counts what fooled other β too."""
    delta_pp: Points
    delta_low: Points
    delta_high: Points
    gained: Count
    lost: Count
    p_value: PValue
    p_holm: PValue
    unit_test: Annotated[float | None, ".4f", (0, 1)]
    """Share of the planted adversarial examples that the attack finds."""
    mce: Figure
    published_clean: Figure
    published_robust: Figure
    status: Text
    selection: Text
    chosen: Annotated[tuple[str, ...], "s"]
    """The steering of each fold, ``0.9``, or with another c than 0.5 ``0.9/0.3``."""
    sites: Count
    steered: Count
    trainable_parameters: Count
    n: Count
    dataset: Text
    metric: Annotated[Metric, "s"]
    threat: Text
    eps: Text
    attack: Text
    protocol: Text
    question: Text
    """Hash of the whole question: threat, attack, data, selection and steering with every parameter."""
    parameters: Text
    """Threat and attack with every parameter, as canonical JSON."""
    flags: Annotated[tuple[str, ...], "s"]
    seed: Count
    weights_sha256: Text
    fitted_from: Text
    train: Text
    data_sha256: Text
    ct_harness: Text
    torch: Text
    device: Text
    compiled: Text
    forward_passes: Count
    backward_passes: Count
    seconds: Annotated[float | None, ".1f", (0, sys.float_info.max)]
    kind: RowKind
    """Not a column: follows from ``status`` and ``method``."""

    @property
    def key(self) -> RowKey:
        """Identity of a row of the grid among the rows of its board."""
        return RowKey(self.model, self.method, known(self.beta), known(self.c))

    @property
    def is_headline(self) -> bool:
        """True where the row reports a choice of β."""
        return self.kind in HEADLINES

    @property
    def is_finished(self) -> bool:
        """True where the row is a fully scored point of the grid; the baseline and other methods are points too."""
        return self.kind in ("baseline", "steered", "adapted")

    @property
    def is_adapted(self) -> bool:
        """True where the network was adapted by another method than steering, finished or not."""
        return self.method not in (*OWN, "")

    @property
    def is_attacked(self) -> bool:
        """True where the benchmark has a threat; without one, clean and robust are the same."""
        return self.threat != "clean"

    @property
    def passes(self) -> int | None:
        """Images through the network, forward and backward, for this row; None where that is not known."""
        if self.forward_passes is None or self.backward_passes is None:
            return None
        return self.forward_passes + self.backward_passes

    @property
    def failure(self) -> str:
        """Reason why the model has no score; empty where it has one."""
        return self.status.removeprefix(f"{FAILED}: ") if self.kind == "failed" else ""

    @property
    def chosen_betas(self) -> tuple[float, ...]:
        """The β of each fold of a headline."""
        return tuple(float(text.partition("/")[0]) for text in self.chosen)

    def written(self, column: str) -> str:
        """Return a cell as the CSV has it."""
        value = getattr(self, column)
        if isinstance(value, tuple):
            return ";".join(value)
        return written(value.name if isinstance(value, Metric) else value, column)


COLUMNS = {
    name: hint
    for name, hint in get_type_hints(LeaderboardRow, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}
FORMATS: dict[str, str] = {name: hint.__metadata__[0] for name, hint in COLUMNS.items()}
"""The columns in their order, and how the CSV writes each."""
LIMITS: dict[str, tuple[float, float]] = {
    name: hint.__metadata__[1] for name, hint in COLUMNS.items() if len(hint.__metadata__) > 1
}
"""Least and most that a number can be, by column."""
OF_SHARES = {name: {Accuracy: (0.0, 1.0), Points: (-100.0, 100.0)}.get(hint) for name, hint in COLUMNS.items()}
"""Narrower limits of accuracies and their differences, where the metric is no error."""

TEXT = [name for name, form in FORMATS.items() if form == "s"]


class RowKey(NamedTuple):
    """Identity of a row of the grid: model, method and steering."""

    model: str
    method: str
    beta: float
    c: float

    @property
    def name(self) -> str:
        """The model, and the steering or the other method: ``m β=0.9``."""
        if self.method not in OWN:
            return f"{self.model} {self.method}"
        return f"{self.model} β={self.beta:g}" + ("" if self.c == 0.5 else f" c={self.c:g}")


def as_chosen(beta: float, c: float) -> str:
    """Return a steering as the column ``chosen`` has it."""
    return f"{beta:g}" if c == 0.5 else f"{beta:g}/{c:g}"


HEADLINES: dict[RowKind, str] = {"selected": SELECTED, "in_sample": IN_SAMPLE, "untrusted": UNTRUSTED}
"""Kinds of headlines, each with its ``status``."""

T = TypeVar("T")


def known(value: T | None) -> T:
    """Return a number that every row of its kind has: `rows_of` has checked it, and the type does not say so."""
    assert value is not None
    return value


def written(value: object, column: str) -> str:
    """Return a value as the CSV has it, whether it was just computed or read from one."""
    if _is_missing(value):
        return ""
    form = FORMATS[column]
    return str(int(value)) if form == "d" else f"{value:{form}}"  # type: ignore[call-overload]


def rows_of(table: pd.DataFrame) -> list[LeaderboardRow]:
    """Parse a board, fresh or read from its CSV, into typed rows.

    Raises:
        LeaderboardError: a status, family or metric is unknown, a scored row lacks a number, or one is out of range.
    """
    return [_parsed(record) for record in table.to_dict("records")]


def by_model(rows: Iterable[LeaderboardRow]) -> dict[str, list[LeaderboardRow]]:
    """Group the rows by model, in the board's order."""
    return grouped(rows, lambda row: row.model)


def attack_runs(rows: Iterable[LeaderboardRow]) -> float | None:
    """Return what the rows of one model have cost, in runs of their attack; None where that is not known.

    A run is what the attack cost on the untouched network, in images through the network, forward and backward.
    """
    grid = [row for row in rows if not row.is_headline]
    baseline = next((row for row in grid if row.kind == "baseline"), None)
    if baseline is None or not baseline.is_attacked or not baseline.passes:
        return None
    return sum(row.passes or 0 for row in grid) / baseline.passes


def failures_of(rows: Iterable[LeaderboardRow]) -> dict[str, str]:
    """Return the models, and methods of adapting one, that were not scored, each with its reason."""
    return {f"{row.model} {row.method}".strip(): row.failure for row in rows if row.kind == "failed"}


def baseline_of(rows: Sequence[LeaderboardRow]) -> LeaderboardRow:
    """Return the baseline among the rows of one model.

    Raises:
        LeaderboardError: there is not exactly one.
    """
    found = [row for row in rows if row.kind == "baseline"]
    if len(found) != 1:
        raise LeaderboardError(
            f"{rows[0].model}: expected one row of the untouched network, found {len(found)}; run the benchmark again"
        )
    return found[0]


SCORED = ("clean", "robust", "n", "sites", "steered")
COUNTED = ("robust_low", "robust_high", "delta_pp", "gained", "lost")
COMPARED = (*COUNTED, "delta_low", "delta_high", "p_value")
GRID = ("beta", "c")
REQUIRED: dict[RowKind, tuple[str, ...]] = {
    "baseline": (*GRID, *SCORED, *COUNTED),
    "steered": (*GRID, *SCORED, *COMPARED),
    "adapted": (*GRID, *SCORED, *COMPARED),
    "bounded": (*GRID, *SCORED),
    "selected": (*SCORED, *COMPARED, "p_holm"),
    "in_sample": (*SCORED, *COMPARED, "p_holm"),
    "untrusted": (*SCORED, *COMPARED, "p_holm"),
    "failed": (),
}
"""The numbers that a row of each kind always has."""


def _parsed(record: dict[Any, Any]) -> LeaderboardRow:
    model = str(record["model"])
    kind = _kind(str(record["status"]), str(record["method"]))
    if kind is None:
        raise _odd(model, "status", f"{OK}, {BOUNDED}, {', '.join(HEADLINES.values())} or {FAILED}", record["status"])
    cells = {column: _cell(record[column], column, model) for column in FORMATS}
    for column in REQUIRED[kind]:
        if cells[column] is None:
            raise _odd(model, column, f"a number where status is {cells['status']}", "none")
    if cells["metric"].is_share:
        for column, limits in OF_SHARES.items():
            if limits is not None:
                _check_range(cells[column], column, model, limits)
    return LeaderboardRow(**cells, kind=kind)


def _odd(model: str, column: str, expected: str, found: object) -> LeaderboardError:
    shown = found if found == "none" else repr(found)
    return LeaderboardError(f"{model}: {column}: expected {expected}, found {shown}; run the benchmark again")


def _kind(status: str, method: str) -> RowKind | None:
    if status.startswith(FAILED):
        return "failed"
    if status == OK:
        return "baseline" if method in BASELINES else "steered" if method == CT else "adapted"
    others: dict[str, RowKind] = {name: kind for kind, name in HEADLINES.items()}
    return "bounded" if status == BOUNDED else others.get(status)


def _cell(value: Any, column: str, model: str) -> Any:
    missing, form = _is_missing(value), FORMATS[column]
    if form != "s":
        return None if missing else _number(value, column, model)
    text = "" if missing else cleaned(str(value))
    if column in KNOWN and text not in ("", *KNOWN[column]):  # a model that failed early has none
        raise _odd(model, column, ", ".join(KNOWN[column]), text)
    if column in ("chosen", "flags"):
        values = tuple(filter(None, text.split(";")))
        if column == "chosen" and not all(map(_is_steering, values)):
            raise _odd(model, column, "steerings such as 0.9;0.8/0.3", text)
        return values
    return BY_NAME.get(text, METRICS["class"]) if column == "metric" else text


KNOWN = {"metric": tuple(BY_NAME), "family": get_args(FamilyName)}
"""Columns of few values."""


def _is_steering(text: str) -> bool:
    """Return whether a text is a steering as `as_chosen` writes them."""
    try:
        return all(0 <= float(number) <= 1 for number in text.split("/", 1))
    except ValueError:
        return False


def _number(value: Any, column: str, model: str) -> float | int:
    _check_range(value, column, model, LIMITS[column])
    if FORMATS[column] != "d":
        return float(value)
    if value != int(value):
        raise _odd(model, column, "a whole number", value)
    return int(value)


def _check_range(value: float | None, column: str, model: str, limits: tuple[float, float]) -> None:
    low, high = limits
    if value is not None and not low <= value <= high:
        ends = f"at least {low:g}" if high == sys.float_info.max else f"a number in [{low:g}, {high:g}]"
        raise _odd(model, column, "a finite number" if low == -sys.float_info.max else ends, value)


def _is_missing(value: Any) -> bool:
    return value is None or value != value  # noqa: PLR0124
