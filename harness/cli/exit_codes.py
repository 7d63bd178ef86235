"""Exit codes, and errors shown as one message without a traceback."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from harness.cli.signals import Interrupted, ended
from harness.errors import HarnessError
from harness.util.foreign import ANYTHING, told

GOOD, NO, UNDONE = 0, 1, 2
"""Done; done, and the answer is no; could not be done."""
SHARED = {"debug": False}
"""Values of the options that come before the command."""


def guarded(command: Callable[..., int]) -> Callable[..., None]:
    """Wrap a command so that it exits with the code it returns, or with 2 and one message where it raises."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with ended(orderly=True):
                code = command(*args, **kwargs)
        except HarnessError as error:
            if SHARED["debug"]:
                raise
            typer.secho(f"error: {error}", err=True, fg="red")
            code = UNDONE
        except OSError as error:  # a full disk or a missing permission that nobody has foreseen
            if SHARED["debug"] or isinstance(error, BrokenPipeError):
                raise
            typer.secho(f"error: {error}; free some space, or check permissions", err=True, fg="red")
            code = UNDONE
        except Exception as error:  # a fault of the harness or of a part: never exit code 1, which is an answer
            if SHARED["debug"]:
                raise
            where = "run ct-harness --debug … to see where"
            fault = _plugin_behind(error) or "ct-harness or of a plug-in"
            typer.secho(f"error: a fault of {fault}: {told(error)}; {where}", err=True, fg="red")
            code = UNDONE
        except Interrupted as error:
            typer.echo("interrupted; results so far are kept: run the same command to continue", err=True)
            code = error.code
        except ANYTHING as error:  # which ends the command, whatever exit code it says: nothing was done
            whose = _plugin_behind(error) or "the code of a part"
            typer.secho(f"error: {whose} ended the command: {told(error)}; repair or uninstall it", err=True, fg="red")
            code = UNDONE
        raise typer.Exit(code)

    return run


def _plugin_behind(error: BaseException) -> str:
    from harness.api.registry import plugin_behind  # which takes a while to import

    return plugin_behind(error)
