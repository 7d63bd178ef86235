"""A plug-in that ends the process, however it does, ends no command as if all were done, and is named."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import Command, Run
from helpers.packages import install, python_path
from helpers.tiny import few_cells

from harness.api.registry import part
from harness.errors import SpecError
from harness.util import waiting
from harness.util.foreign import refuse_exit

PARTS = """
import os
from typing import ClassVar
from harness.datasets.arrays import Arrays
from harness.threats.lp import Linf

def end(how):
    if how == "os": os._exit(0)
    if how == "interrupt": raise KeyboardInterrupt
    if how == "error": raise RuntimeError("no such file")

class Images(Arrays):
    kind: ClassVar[str] = "ending"
    when_opened: str = ""
    def open(self, *, offline=False):
        end(self.when_opened)
        return super().open(offline=offline)

class Threat(Linf):
    kind: ClassVar[str] = "ending"
    when_prepared: str = ""
    when_listed: str = ""
    def prepare(self, batch, *, offline=False):
        end(self.when_prepared)
    @property
    def stages(self):
        end(self.when_listed)
        return super().stages
"""


@pytest.fixture
def plugins(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages with parts that end the process, or print, when they are imported or used."""
    site = here / "site"
    parts = "[ct_harness.datasets]\nending = ending_parts:Images\n[ct_harness.threats]\nending = ending_parts:Threat\n"
    install(site, "endingparts", parts, ending_parts=PARTS)
    for name, code in (
        ("exits", "import os; print('chatter'); os._exit(0)"),
        ("interrupts", "raise KeyboardInterrupt"),
        ("leaves", "raise SystemExit(0)"),
    ):
        install(site, name, f"[ct_harness.datasets]\n{name} = {name}_parts:Part\n", **{f"{name}_parts": code})
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(os, "_exit", os._exit)  # and back
    refuse_exit()
    return site


@pytest.mark.usefixtures("plugins")
def test_list_and_schema_go_on_and_name_what_cannot_be_imported(command: Command) -> None:
    listed = command("list", "datasets")
    assert listed.code == 0
    text = " ".join(listed.out.replace("│", " ").split())
    assert "digits" in text
    schema = command("schema")
    assert schema.code == 0
    assert "arrays" in json.dumps(json.loads(schema.out)), "what a plug-in prints is no part of the answer"
    for kind, how in (
        ("exits", "it called os._exit(0)"),
        ("interrupts", "KeyboardInterrupt"),
        ("leaves", "sys.exit(0)"),
    ):
        assert f"kind '{kind}' (from {kind}) cannot be imported: " in schema.err
        assert how in schema.err
        assert f"(from {kind})" in text


def test_a_plug_in_whose_import_takes_long_is_named_meanwhile(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, time\nfor _ in range(500):\n    if not sys.stderr.getvalue(): time.sleep(0.01)\n"
    install(here / "slow", "slow", "[ct_harness.datasets]\nslow = slow_parts:Part\n", slow_parts=code)
    monkeypatch.syspath_prepend(str(here / "slow"))
    monkeypatch.setattr(waiting, "FIRST_NOTE", 0.4)
    heard = io.StringIO()
    monkeypatch.setattr(sys, "stderr", heard)
    with pytest.raises(SpecError, match="slow"):  # there is no Part
        part("datasets", "slow")
    assert heard.getvalue().startswith("importing kind 'slow' (from slow): no end for 0 s; still waiting\n")


@pytest.mark.parametrize(
    ("part", "how", "told"),
    [
        ("dataset", {"when_opened": "os"}, "ended the command: it called os._exit(0)"),
        ("dataset", {"when_opened": "interrupt"}, "ended the command: it raised KeyboardInterrupt"),
        ("dataset", {"when_opened": "error"}, "RuntimeError: no such file"),
        ("threat", {"when_prepared": "os"}, "ended the command: it called os._exit(0)"),
        ("threat", {"when_listed": "interrupt"}, "ended the command: it raised KeyboardInterrupt"),
    ],
)
@pytest.mark.usefixtures("plugins")
def test_a_part_that_ends_the_run_is_named_and_the_exit_code_says_that_nothing_was_done(
    run: Run, part: str, how: dict[str, str], told: str
) -> None:
    benchmark = few_cells()
    ended = run(benchmark | {part: benchmark[part] | {"kind": "ending"} | how})
    assert ended.code == 2
    assert "the plug-in endingparts (ending_parts.py, line " in ended.err
    assert told in ended.err


def test_the_command_itself_refuses_os_exit(plugins: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "harness", "list", "datasets"], capture_output=True, text=True, timeout=120,
        check=False, env=os.environ | {"PYTHONPATH": python_path(plugins)},
    )  # fmt: skip
    assert ended.returncode == 0
    assert "digits" in ended.stdout
