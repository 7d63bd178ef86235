"""What Curvature Tuning reaches of every architecture in RobustBench's zoo, counted while each one runs.

One row an entry, as CSV; a table that is there already is gone on with, so that it can be stopped at any moment.
"""

from __future__ import annotations

import csv
import gc
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.records import FamilyName, Sites
from harness.curvature.activation_names import GATES, STEERED
from harness.errors import LeaderboardError, ModelError
from harness.util.files import write_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.models.robustbench_zoo import ZooEntry


@dataclass(frozen=True)
class Audit:
    """One entry of the zoo; counts are of calls in one forward pass, "" where there is nothing to count.

    Args:
        builds: "yes", or why not.
        parameters: of the network.
        activations: those executed, with how often: ``relu:17;sigmoid:2``.
        sites: calls of ReLU-like activations.
        steered: those that this harness steers.
        by_modules: those that the replacement of registered modules steers.
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


def audit(entry: ZooEntry) -> Audit:
    """Build the entry with random weights, run it once, and count."""
    from harness.models.robustbench_zoo import build

    where = {"dataset": entry.dataset, "threat": entry.threat, "model": entry.name}
    where["robustbench"] = version("robustbench")
    try:
        network, example = build(entry)
        kinds = executed(network, example)
    except Exception as error:  # the zoo is 200 authors' code
        return Audit(**where, builds=" ".join(f"no: {error}".split()))
    sites = sum(count for kind, count in kinds.items() if kind in STEERED["relu"])
    steered = _reached(network, example, "relu")
    return Audit(
        **where,
        builds="yes",
        parameters=str(sum(parameter.numel() for parameter in network.parameters())),
        activations=";".join(f"{kind}:{count}" for kind, count in sorted(kinds.items())),
        sites=str(sites),
        steered=steered,
        by_modules=_reached(network, example, "relu", "modules") if sites else "0",
        smooth=_reached(network, example, "smooth"),
        applicability=applicability(kinds),
    )


def executed(network: nn.Module, example: Tensor) -> Counter[str]:
    """The activations that one forward pass calls, by kind, a swish in a function of its own among the SiLU."""
    import torch

    from harness.curvature.families import FAMILIES
    from harness.curvature.reroute import ActivationCounter
    from harness.curvature.smooth import with_plain_silu

    canonical, watch = with_plain_silu(network), ActivationCounter(FAMILIES["relu"])
    with torch.no_grad(), watch:
        canonical(example)
    return watch.left + watch.others


def applicability(kinds: Counter[str]) -> str:
    """Of CT as published, from the activations that are executed; gates of attention are none."""
    others = sorted(kinds.keys() - STEERED["relu"] - GATES)
    if not kinds.keys() & STEERED["relu"]:
        return f"no: {', '.join(others or sorted(kinds)) or 'no activation'}"
    return f"partial: also {', '.join(others)}" if others else "yes"


def _reached(network: nn.Module, example: Tensor, family: FamilyName, sites: Sites = "all") -> str:
    """How many calls are steered, proven; 0 where there are none, or why not."""
    from harness.errors import NothingToSteer
    from harness.models.loaded import Loaded

    try:
        return str(Loaded(network, "").coverage(sites, example, family).steered)
    except NothingToSteer:
        return "0"
    except ModelError as error:
        return " ".join(f"no: {error}".split())


def survey(entries: Sequence[ZooEntry], table: Path, told: Callable[[Audit], None]) -> list[Audit]:
    """Audit the entries one after the other, in a process of its own, and write the table after each.

    Args:
        entries: which.
        table: the CSV; entries that it has, of this version of the zoo, are not audited again.
        told: called with each new row.

    Returns:
        The rows of ``entries``, in their order.

    Raises:
        LeaderboardError: the table cannot be read or written.
    """
    left = missing(entries, table)
    known = {(row.dataset, row.threat, row.model): row for row in read(table)}
    for entry, row in zip(left, _audited(left), strict=True):
        known[entry] = row
        write_whole(table, to_csv(known.values()))
        told(row)
    return [known[entry] for entry in entries]


def missing(entries: Sequence[ZooEntry], table: Path) -> list[ZooEntry]:
    """The entries that the table does not have, of this version of the zoo, or that did not build."""
    current = version("robustbench")
    whole = [row for row in read(table) if row.robustbench == current and row.builds == "yes"]
    known = {(row.dataset, row.threat, row.model) for row in whole}
    return [entry for entry in entries if entry not in known]


def _audited(entries: Sequence[ZooEntry]) -> Iterator[Audit]:
    """One at a time, in a worker that is replaced when it dies: of hunger, most likely."""
    from loky import ProcessPoolExecutor

    pool = None
    try:
        for entry in entries:
            pool = pool or ProcessPoolExecutor(max_workers=1, timeout=None)
            try:
                yield pool.submit(_alone, entry).result()
            except BrokenProcessPool:
                pool.shutdown(kill_workers=True)
                pool = None
                yield Audit(*entry, builds="no: the process died (out of memory?)")
    finally:
        if pool:
            pool.shutdown(wait=False, kill_workers=True)


def _alone(entry: ZooEntry) -> Audit:
    """The audit, with what is left of the entry before cleared away: some networks refer to themselves."""
    gc.collect()
    return audit(entry)


def to_csv(rows: Any) -> str:
    """The table as text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def read(table: Path) -> list[Audit]:
    """The table; empty where there is none.

    Raises:
        LeaderboardError: it is not one of ours.
    """
    if not table.exists():
        return []
    with table.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames != COLUMNS:
            raise LeaderboardError(f"{table}: not a table of coverage: expected the columns {', '.join(COLUMNS)}")
        return [Audit(**row) for row in rows]


SUMMED_UP = (
    "build", "CT applies", "in part", "not", "steered wholly", "wholly by modules", "smooth extension",
)  # fmt: skip


def summed_up(rows: Sequence[Audit]) -> list[tuple[str, ...]]:
    """For each board and for all, how many entries there are, and how many of them `SUMMED_UP`."""
    boards: dict[str, list[Audit]] = {}
    for row in rows:
        boards.setdefault(f"{row.dataset}/{row.threat}", []).append(row)
    return [_sum(name, part) for name, part in (*boards.items(), ("all", list(rows)))]


def _sum(name: str, rows: Sequence[Audit]) -> tuple[str, ...]:
    def count(keep: Callable[[Audit], bool]) -> str:
        return str(sum(map(keep, rows)))

    return (
        name,
        str(len(rows)),
        count(lambda row: row.builds == "yes"),
        count(lambda row: row.applicability == "yes"),
        count(lambda row: row.applicability.startswith("partial")),
        count(lambda row: row.applicability.startswith("no")),
        count(lambda row: row.sites not in ("", "0") and row.steered == row.sites),
        count(lambda row: row.sites not in ("", "0") and row.by_modules == row.sites),
        count(lambda row: row.smooth.isdecimal() and row.smooth != "0"),
    )
