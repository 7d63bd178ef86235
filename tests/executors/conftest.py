"""A working directory of networks that know whether they run in a worker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def driver(here: Path) -> Path:
    """`here`, where ``worker_networks`` can tell this process from its workers."""
    (here / "driver.pid").write_text(str(os.getpid()))
    return here
