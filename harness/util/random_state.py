"""The random state of torch, left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore torch's random state after the block, on the CPU and on the GPUs that this process uses.

    ``torch.random.fork_rng`` would first take possession of every GPU, or fail where there is no driver.
    """
    in_use = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(in_use):
        yield
