"""The command ``ct-harness`` and its subcommands. Only this package prints, and only it knows exit codes.

0: good. 1: the answer is no (a model or a board failed). 2: it could not be done (bad input, nothing scored).
130, 143, 129: it was ended by Ctrl-C, SIGTERM or SIGHUP.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from harness import __version__
from harness.cli import info, run, view
from harness.cli.exit_codes import GOOD, SHARED

app = typer.Typer(
    name="ct-harness",
    help="Does Curvature Tuning make a pretrained classifier more robust? From a benchmark YAML to a β leaderboard.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ct-harness {__version__}")
        raise typer.Exit(GOOD)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Keep the options that come before every command."""
    SHARED["debug"] = debug


for command in (
    run.run, view.show, view.plot, view.report, view.site, view.paper, view.demo, view.export, view.compare, run.check,
    run.doctor, info.coverage, info.list_, info.schema,
):  # fmt: skip
    app.command(command.__name__.rstrip("_"))(command)


def main() -> None:
    """Run ``ct-harness``."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without β still works
    app()
