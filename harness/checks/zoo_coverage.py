"""Coverage of RobustBench's zoo: the activations that Curvature Tuning reaches in each architecture, counted in a run.

The table is a CSV with a row for each entry. An existing table is continued, so that the survey can be stopped at any
moment.
"""

from __future__ import annotations

import csv
import gc
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from harness.api.records import FamilyName, Sites
from harness.curvature.activation_names import GATES, STEERED
from harness.errors import LeaderboardError, ModelError, NothingToSteer
from harness.util.files import write_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

Entry = TypeVar("Entry", bound=tuple[str, str, str])
"""An entry of the zoo: its dataset, its threat and its name."""


@dataclass(frozen=True)
class Audit:
    """One entry of the zoo. Counts are of calls in one forward pass; empty where the entry does not build.

    Args:
        dataset: dataset of the entry's board.
        threat: threat of the entry's board.
        model: name of the entry.
        builds: "yes", or why not.
        parameters: number of parameters of the network.
        activations: activations that are executed, with their counts: ``relu:17;sigmoid:2``.
        sites: calls of ReLU-like activations.
        steered: those of them that this harness steers.
        by_modules: those of them that the replacement of registered modules steers.
        smooth: calls of SiLU and GELU that ``family: smooth`` steers, which goes beyond the paper.
        applicability: of CT as published: "yes", "partial" where other activations remain, "no" with those it uses.
        robustbench: version of the zoo.
    """

    dataset: str
    threat: str
    model: str
    builds: str
    parameters: str = ""
    activations: str = ""
    sites: str = ""
    steered: str = ""
    by_modules: str = ""
    smooth: str = ""
    applicability: str = ""
    robustbench: str = ""


COLUMNS = [field.name for field in fields(Audit)]


def audit(entry: Entry, build: Callable[[Entry], tuple[nn.Module, Tensor]]) -> Audit:
    """Build an entry, run it once, and count its activations.

    Args:
        entry: dataset, threat and name.
        build: returns the entry's network in eval mode, and an example input.
    """
    where = dict(zip(("dataset", "threat", "model"), entry, strict=True), robustbench=version("robustbench"))
    try:
        network, example = build(entry)
        counts = executed(network, example)
    except Exception as error:  # the zoo is 200 authors' code
        return Audit(**where, builds=" ".join(f"no: {error}".split()))
    sites = sum(count for kind, count in counts.items() if kind in STEERED["relu"])
    return Audit(
        **where,
        builds="yes",
        parameters=str(sum(parameter.numel() for parameter in network.parameters())),
        activations=";".join(f"{kind}:{count}" for kind, count in sorted(counts.items())),
        sites=str(sites),
        steered=_steered(network, example, "relu"),
        by_modules=_steered(network, example, "relu", "modules") if sites else "0",
        smooth=_steered(network, example, "smooth"),
        applicability=applicability(counts),
    )


def executed(network: nn.Module, example: Tensor) -> Counter[str]:
    """Count the activations that one forward pass calls, by kind; a swish in a function of its own counts as SiLU."""
    import torch

    from harness.curvature.families import FAMILIES
    from harness.curvature.reroute import ActivationCounter
    from harness.curvature.smooth import with_plain_silu

    canonical, counter = with_plain_silu(network), ActivationCounter(FAMILIES["relu"])
    with torch.no_grad(), counter:
        canonical(example)
    return counter.left + counter.others


def applicability(counts: Counter[str]) -> str:
    """Judge whether CT as published applies, from the activations that are executed; gates of attention are none."""
    others = sorted(counts.keys() - STEERED["relu"] - GATES)
    if not counts.keys() & STEERED["relu"]:
        return f"no: {', '.join(others or sorted(counts)) or 'no activation'}"
    return f"partial: also {', '.join(others)}" if others else "yes"


def _steered(network: nn.Module, example: Tensor, family: FamilyName, sites: Sites = "all") -> str:
    """Return the number of calls that are provably steered; 0 where there are none, or why not."""
    from harness.curvature.steering import coverage_of

    try:
        return str(coverage_of(network, sites, example, family).steered)
    except NothingToSteer:
        return "0"
    except ModelError as error:
        return " ".join(f"no: {error}".split())


def survey(
    entries: Sequence[Entry],
    table: Path,
    build: Callable[[Entry], tuple[nn.Module, Tensor]],
    listener: Callable[[Audit], None],
) -> list[Audit]:
    """Audit the entries one after the other, in a process of its own, and write the table after each.

    Args:
        entries: entries to audit, each with dataset, threat and name.
        table: path of the CSV; entries that it has, of this version of the zoo, are not audited again.
        build: returns an entry's network in eval mode, and an example input; must be picklable.
        listener: called with each new row.

    Returns:
        The rows of ``entries``, in their order.

    Raises:
        LeaderboardError: the table cannot be read or written.
    """
    left = missing(entries, table)
    known = {_identity(row): row for row in read(table)}
    for entry, row in zip(left, _audited(left, build), strict=True):
        known[tuple(entry)] = row
        write_whole(table, to_csv(known.values()))
        listener(row)
    return [known[tuple(entry)] for entry in entries]


def missing(entries: Sequence[Entry], table: Path) -> list[Entry]:
    """Return the entries that did not build, or that the table lacks in this version of the zoo."""
    current = version("robustbench")
    known = {_identity(row) for row in read(table) if row.robustbench == current and row.builds == "yes"}
    return [entry for entry in entries if tuple(entry) not in known]


def _identity(row: Audit) -> tuple[str, ...]:
    return row.dataset, row.threat, row.model


def _audited(entries: Sequence[Entry], build: Callable[[Entry], tuple[nn.Module, Tensor]]) -> Iterator[Audit]:
    """Audit one entry at a time, in a worker that is replaced when it dies, most likely out of memory."""
    from loky import ProcessPoolExecutor

    pool = None
    try:
        for entry in entries:
            pool = pool or ProcessPoolExecutor(max_workers=1, timeout=None)
            try:
                yield pool.submit(_audit_afresh, entry, build).result()
            except BrokenProcessPool:
                pool.shutdown(kill_workers=True)
                pool = None
                dataset, threat, model = entry
                yield Audit(dataset, threat, model, builds="no: the process died (out of memory?)")
    finally:
        if pool:
            pool.shutdown(wait=False, kill_workers=True)


def _audit_afresh(entry: Entry, build: Callable[[Entry], tuple[nn.Module, Tensor]]) -> Audit:
    """Audit once the entry before is cleared away: some networks refer to themselves."""
    gc.collect()
    return audit(entry, build)


def to_csv(rows: Iterable[Audit]) -> str:
    """Return the text of the table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def read(table: Path) -> list[Audit]:
    """Read the table; empty where there is none.

    Raises:
        LeaderboardError: the file is not a table of coverage.
    """
    if not table.exists():
        return []
    with table.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames != COLUMNS:
            raise LeaderboardError(f"{table}: not a table of coverage: expected the columns {', '.join(COLUMNS)}")
        return [Audit(**row) for row in rows]
