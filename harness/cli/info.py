"""Commands about the harness itself: ``list``, ``schema`` and ``coverage``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.exit_codes import GOOD, NO, guarded
from harness.errors import SpecError
from harness.util.foreign import ANYTHING, told

COVERAGE = Path("leaderboards/coverage.csv")


class PartGroup(StrEnum):
    """Groups of parts that ``list`` knows."""

    models = "models"
    datasets = "datasets"
    threats = "threats"
    executors = "executors"


@guarded
def coverage(
    board: Annotated[str | None, typer.Option(help="Only this board of RobustBench, such as cifar10/Linf.")] = None,
    model: Annotated[str | None, typer.Option(help="Only entries of this name.")] = None,
    csv: Annotated[Path, typer.Option(help="The table; entries that it has are not audited again.")] = COVERAGE,
) -> int:
    """Count the activations that CT reaches in RobustBench's architectures: random weights, nothing is downloaded."""
    from harness.checks import zoo_coverage
    from harness.cli.progress import CountBar
    from harness.cli.terminal import print_coverage
    from harness.models.robustbench_zoo import build, zoo
    from harness.util.text import did_you_mean

    entries = zoo()
    for option, wanted, names in (
        ("--board", board, sorted({entry.board for entry in entries})),
        ("--model", model, sorted({entry.name for entry in entries})),
    ):
        if wanted is not None and wanted not in names:
            raise SpecError(f"{option}: RobustBench has no {wanted!r}{did_you_mean(wanted, names)}")
    chosen = [entry for entry in entries if board in (None, entry.board) and model in (None, entry.name)]
    if not chosen:
        raise SpecError(f"--model: {model!r} is not on the board {board}; leave --board out")
    with CountBar(len(zoo_coverage.missing(chosen, csv)), "entries") as bar:
        audits = zoo_coverage.survey(
            chosen, csv, build, lambda audit: bar.advanced(f"{audit.dataset}/{audit.threat} {audit.model}")
        )
    print_coverage(audits, str(csv))
    return NO if any(audit.builds != "yes" for audit in audits) else GOOD


@guarded
def list_(group: Annotated[PartGroup | None, typer.Argument(help="Only these.")] = None) -> int:
    """List the parts that a YAML can name, built-in and third-party; with a group also the names that each knows."""
    from harness.api import registry
    from harness.cli.terminal import print_parts

    for name in [group.value] if group else [entry.value for entry in PartGroup]:
        print_parts(name, registry.described(name))
    if group:
        for kind in registry.registered(group.value):
            _print_names(group.value, kind)
    return GOOD


def _print_names(group: str, kind: str) -> None:
    """Print the names that a kind knows; of one that fails, why."""
    from harness.api import registry
    from harness.cli.terminal import print_names

    try:
        names = registry.part(group, kind).names()
    except SpecError:  # the table says so
        return
    except ANYTHING as error:
        _warn(f"kind {kind!r} cannot list its names: {told(error)}")
        return
    print_names(names)


def _warn(text: str) -> None:
    typer.secho(f"warning: {text}", err=True, fg="yellow")


@guarded
def schema() -> int:
    """Print the JSON Schema of the benchmark YAML, for editors."""
    from harness.config.schema import schema as make

    typer.echo(json.dumps(make(_warn), indent=2, ensure_ascii=False))
    return GOOD
