"""The exit codes, and errors told without a traceback."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import typer

from harness.errors import HarnessError

if TYPE_CHECKING:
    pass


GOOD, NO, UNDONE = 0, 1, 2


SHARED = {"debug": False}
"""The options that stand before the command."""


def guarded(command: Callable[..., int]) -> Callable[..., None]:
    """A command that ends with the exit code it returns, or 2 and one clear message where it could not be done."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            code = command(*args, **kwargs)
        except HarnessError as error:
            if SHARED["debug"]:
                raise
            typer.secho(f"error: {error}", err=True, fg="red")
            code = UNDONE
        except KeyboardInterrupt:
            typer.echo("interrupted; what is computed is kept: run the same command to go on", err=True)
            code = UNDONE
        raise typer.Exit(code)

    return run
