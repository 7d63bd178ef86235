"""Before anything is computed: are the data images, and can each model be scored?

A fault of the data stops the benchmark; a fault of a model is that model's alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from harness.contracts import Dataset, Model
from harness.errors import DataError, HarnessError, ModelError
from harness.evaluate import admit, logits, source, workbench
from harness.plan import batched
from harness.runtime import reproducible, resolve
from harness.spec import Benchmark
from harness.types import AS_STORED, Batch, Coverage, Preprocessing, Task, sha256

SLICE = 256
"""Images read at once."""


@dataclass(frozen=True)
class Data:
    """The chosen images: their numbers, in order, with a hash of each one's pixels and label; and the labels, [n]."""

    digests: Mapping[int, str]
    labels: np.ndarray

    @property
    def sha256(self) -> str:
        """Names the whole subset."""
        return sha256([[image, digest] for image, digest in self.digests.items()])


@dataclass(frozen=True)
class Admission:
    """A model that can be scored: its task and what the steering reaches. Or why it cannot."""

    model: Model
    data: Data | None = None
    task: Task | None = None
    coverage: Coverage | None = None
    failure: ModelError | None = None


def open_data(dataset: Dataset, offline: bool, preprocessing: Preprocessing = AS_STORED) -> Data:
    """Read the chosen images once, by slices, as a model that wants ``preprocessing`` sees them.

    Raises:
        DataError: they are not there, or not float32 images in [0, 1] with labels.
    """
    opened = source(dataset, preprocessing, offline)
    digests: dict[int, str] = {}
    labels: list[int] = []
    for part in batched(dataset.chosen(opened), SLICE):
        batch = opened.read(part)
        _check(batch, dataset.kind)
        for image, x, y in zip(part, batch.x.numpy(), batch.y.tolist(), strict=True):
            labels.append(y)
            digests[image] = hashlib.sha256(f"{x.shape} {y} ".encode() + x.tobytes()).hexdigest()
    return Data(digests, np.array(labels))


def _check(batch: Batch, kind: str) -> None:
    x, y = batch.x, batch.y
    if x.dtype != torch.float32 or x.ndim != 4 or y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise DataError(
            f"dataset: {kind}: expected x float32 [n, c, h, w] and y int64 [n], found x {x.dtype} {list(x.shape)} and "
            f"y {y.dtype} {list(y.shape)}"
        )
    if not (x.min() >= 0 and x.max() <= 1):  # NaN fails too
        raise DataError(
            f"dataset: {kind}: images must lie in [0, 1], since eps is in pixels; found {x.min():.4g} … {x.max():.4g}. "
            "Leave normalisation to the model (checkpoint: mean, std)"
        )


def admit_model(benchmark: Benchmark, model: Model, data: Data, offline: bool) -> Admission:
    """Load the model, run it on a few images, and prove that the steering reaches all of it."""
    try:
        device = resolve(benchmark.device)
        bench = workbench(model, device, offline, benchmark.normalised)
        preprocessing = model.preprocessing(offline=offline)
        few = source(benchmark.dataset, preprocessing, offline).read(tuple(data.digests)[:8])
        batch = bench.enter(few.to(device))
        with reproducible():
            bench.lay_out(batch.x[:1])
            admit(logits(bench.loaded.network, batch.x), batch.y)
            steering = benchmark.steering
            coverage = bench.loaded.coverage(steering.sites, batch.x[:1], steering.family)
    except HarnessError as error:
        return Admission(model, data, failure=error if isinstance(error, ModelError) else ModelError(str(error)))
    except Exception as error:  # whatever a network raises on its first images
        return Admission(model, data, failure=ModelError(f"cannot be run: {type(error).__name__}: {error}"))
    task = Task(
        label=model.label,
        model=model,
        dataset=benchmark.dataset,
        threat=benchmark.threat,
        seed=benchmark.seed,
        device=device,
        weights_sha256=bench.loaded.sha256,
        preprocessing=preprocessing,
        offline=offline,
        compile=benchmark.compile,
        precision=benchmark.precision,
        replay_first=benchmark.replay_first,
        normalised=benchmark.normalised,
    )
    return Admission(model, data, task, coverage)
