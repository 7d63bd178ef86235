"""Will this benchmark run, and what will it take? Looked into in seconds, before the hours are spent.

Nothing is downloaded; what is there is recorded in ``models.lock``, as a run would.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from math import ceil
from pathlib import Path

import torch

from harness.api.records import Batch, Preprocessing
from harness.checks.cost import WORKER, available_memory, memory, seconds
from harness.checks.findings import Finding, problem
from harness.checks.model_checks import ModelCosts, checkup
from harness.config.benchmark import Benchmark
from harness.engine.images import open_data, source
from harness.engine.numerics import resolve
from harness.engine.prepare import check_enough_images
from harness.engine.provenance import provenance
from harness.engine.session import model_session
from harness.errors import ModelError

IMAGES = 64
"""As many are looked at, spread evenly over the chosen ones."""
ROOM = 0.8
"""The share of the free memory that may be planned with."""


def doctor(benchmark: Benchmark, *, runs: Path, out: Path) -> Iterator[Finding]:
    """Look into everything that ``ct-harness run`` will need.

    A model that cannot be scored does not keep the others from being looked into.

    Args:
        benchmark: as parsed.
        runs: the folder of the ledgers.
        out: the leaderboard CSV.

    Yields:
        What each check found, as soon as it is known.
    """
    model_session.cache_clear()  # files may have changed since an earlier look of this process
    source.cache_clear()
    said: set[Finding] = set()
    for finding in _findings(benchmark, runs, out):
        if finding not in said:  # data are opened once for each preprocessing
            said.add(finding)
            yield finding


def _findings(benchmark: Benchmark, runs: Path, out: Path) -> Iterator[Finding]:
    device = yield from _device(benchmark)
    opened: dict[Preprocessing, tuple[Batch, int] | None] = {}
    looks: list[ModelCosts] = []
    for model in benchmark.models:
        try:
            wanted = model.preprocessing(offline=True)
        except ModelError as error:
            yield problem("weights", model.label, error)
            continue
        if wanted not in opened:
            opened[wanted] = yield from _data(benchmark, wanted)
            yield from _threat(benchmark, opened[wanted])
        data = opened[wanted]
        findings, look = checkup(benchmark, model, data[0] if data else None, device)
        yield from findings
        looks += [look] if look else []
    yield _folder("runs", runs / benchmark.name, "--runs")
    yield _folder("out", out.parent, "--out") if not out.is_dir() else _unwritable("out", out, "--out")
    if looks:
        size = next(data[1] for data in opened.values() if data)
        yield _disk(benchmark, looks, size, runs)
        yield _memory(benchmark, looks, size, device)
        yield _duration(benchmark, looks, size)


def _device(benchmark: Benchmark) -> Generator[Finding, None, str]:
    """What ``auto`` stands for, and what computes; where there is no such GPU, the rest is looked into on the CPU."""
    device, gpus = resolve(benchmark.device), torch.cuda.device_count()
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= gpus:
        text = f"{device} was asked for, but torch sees {gpus} GPUs"
        yield Finding("device", "device", "problem", text, "set device: auto, or install a torch built for your GPU")
        device = "cpu"
    known = provenance(device)
    versions = ", ".join(f"{name} {known[name]}" for name in ("python", "torch", "pyautoattack", "robustbench"))
    workers = f"{benchmark.executor.slots} cells at a time"
    yield Finding("device", "device", "ok", f"{device} ({known['device_name']}), {workers}; {versions}")
    return device


def _data(benchmark: Benchmark, preprocessing: Preprocessing) -> Generator[Finding, None, tuple[Batch, int] | None]:
    """The images to look at, and how many were chosen in all; None where there are none."""
    dataset = benchmark.dataset
    try:
        opened = source(dataset, preprocessing, True)
        chosen = dataset.chosen(opened)
        check_enough_images(benchmark, len(chosen))
        number = min(IMAGES, len(chosen))
        few = tuple(chosen[place * len(chosen) // number] for place in range(number))
        open_data(dataset.model_copy(update={"n": None, "per_class": None, "indices": few}), True, preprocessing)
        batch = opened.read(few)
    except Exception as error:  # also what a library raises on a damaged file
        yield problem("data", dataset.label, error)
        return None
    if dataset.target != "class":
        shape, labels = "×".join(map(str, batch.x.shape[1:])), f"{batch.y.shape[1]} {dataset.target} each"
        yield Finding(
            "data", dataset.label, "ok", f"{len(chosen)} images of {shape}; {len(few)} were read, with {labels}"
        )
        return batch, len(chosen)
    low, high = int(batch.y.min()), int(batch.y.max())
    if low < 0:
        text = f"image {few[int(batch.y.argmin())]} has the label {low}"
        yield Finding("data", dataset.label, "problem", text, "number the classes from 0 on")
        return None
    shape = "×".join(map(str, batch.x.shape[1:]))
    read = f"{len(few)} were read, with labels {low} … {high}"
    yield Finding("data", dataset.label, "ok", f"{len(chosen)} images of {shape}; {read}")
    return batch, len(chosen)


def _threat(benchmark: Benchmark, data: tuple[Batch, int] | None) -> Iterator[Finding]:
    """What its stages need beside the images."""
    try:
        benchmark.threat.prepare(data[0] if data else None, offline=True)
    except Exception as error:  # also what a library raises on a damaged file
        yield problem("threat", benchmark.threat.kind, error)


def _folder(subject: str, folder: Path, option: str) -> Finding:
    there = _existing(folder)
    if there.is_dir() and os.access(there, os.W_OK):
        return Finding("folder", subject, "ok", f"{folder} can be written")
    return _unwritable(subject, folder, option)


def _unwritable(subject: str, path: Path, option: str) -> Finding:
    return Finding("folder", subject, "problem", f"{path} cannot be written", f"choose another place with {option}")


def _existing(folder: Path) -> Path:
    """``folder``, or the nearest above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _disk(benchmark: Benchmark, looks: list[ModelCosts], size: int, runs: Path) -> Finding:
    """Room for the adversarial images: under each steering one for each image that is right and falls."""
    kept = size if benchmark.threat.attacks else 0
    needed = sum(look.steerings * kept * look.correct * look.costs.image for look in looks)
    free = shutil.disk_usage(_existing(runs)).free
    text = f"at most about {_bytes(needed)} of adversarial images, and {_bytes(free)} are free"
    if needed <= free:
        return Finding("disk", "runs", "ok", text)
    return Finding("disk", "runs", "problem", text, "choose a larger disk with --runs, or fewer images or β")


def _memory(benchmark: Benchmark, looks: list[ModelCosts], size: int, device: str) -> Finding:
    """Of the model that needs most, for all the workers that share the device."""
    batch, gpu = min(benchmark.batch_size, size), device.startswith("cuda")
    workers = ceil(benchmark.executor.slots / (torch.cuda.device_count() if device == "cuda" else 1))

    def needed(images: int) -> int:
        most = max(memory(benchmark.threat, look.costs, images) for look in looks)
        return workers * (most + (0 if gpu else WORKER))

    free = available_memory(device)
    text = f"about {_bytes(needed(batch))} for {workers} at a time with batches of {batch}"
    if free is None:
        return Finding("memory", "batch_size", "ok", f"{text}; how much is free, this system does not say")
    text += f", and {_bytes(free)} are free"
    if needed(batch) <= ROOM * free:
        return Finding("memory", "batch_size", "ok", text)
    fitting = [images for images in range(1, batch) if needed(images) <= ROOM * free]
    remedy = (
        f"set batch_size: {fitting[-1]}"
        if fitting
        else "set executor: {kind: local, workers: 1}, or use a smaller model"
    )
    return Finding("memory", "batch_size", "problem" if needed(batch) > free else "warning", text, remedy)


def _duration(benchmark: Benchmark, looks: list[ModelCosts], size: int) -> Finding:
    """An upper bound: as if no image that is right ever fell."""
    threat, total = benchmark.threat, 0.0
    for look in looks:
        each = seconds(threat, look.costs)
        if each is None:
            return Finding("duration", "threat", "ok", f"not known beforehand for the threat {threat.kind}")
        total += each * size * look.steerings * (look.correct if threat.attacks else 1)
    chains = sum(look.steerings for look in looks) * ceil(size / benchmark.batch_size)
    spoken = _spoken(total / min(benchmark.executor.slots, chains))
    left_out = len(benchmark.models) - len(looks)
    without = f", without the {left_out} that cannot be scored" if left_out else ""
    if any(model.training is not None for model in benchmark.models):
        without += ", and without what is fitted on training images"
    return Finding("duration", "threat", "ok", f"at most about {spoken}{without}: an estimate from a few images")


def _bytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{ceil(number / 1e6)} MB"


def _spoken(number: float) -> str:
    """Seconds, as precisely as an estimate has them."""
    minutes = ceil(number / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
