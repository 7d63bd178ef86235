"""Kernels of Triton in its interpreter, which computes on the CPU; it must be chosen before Triton is imported.

with Interpreter() as interpreter:
    moves = interpreter.project("l2", points, normals, offsets)
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


class Interpreter:
    """A process of its own, in which Triton interprets."""

    def __enter__(self) -> Self:
        self._process = ProcessPoolExecutor(1, get_context("spawn"), _interpret).__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._process.__exit__(*exception)

    def project(self, name: str, *given: Tensor, chunk: int | None = None) -> Tensor:
        """Call a function of `harness.attacks.fab_projection_triton`, if asked to with chunks of another size."""
        arrays = [tensor.numpy() for tensor in given]
        return torch.from_numpy(self._process.submit(_project, name, chunk, arrays).result())


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"


def _project(name: str, chunk: int | None, arrays: list[np.ndarray]) -> np.ndarray:
    from harness.attacks import fab_projection_triton

    own = fab_projection_triton.CHUNK
    fab_projection_triton.CHUNK = chunk or own
    try:
        moves: Tensor = getattr(fab_projection_triton, name)(*map(torch.from_numpy, arrays))
    finally:
        fab_projection_triton.CHUNK = own
    return moves.numpy()
