"""``ct-harness doctor``: will this benchmark run, and what will it take? Answered in seconds, before hours are spent.

Nothing is downloaded; the files that are present are recorded in ``models.lock``, as by a run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator, Sequence
from math import ceil
from pathlib import Path

import torch

from harness.api.records import Batch, Preprocessing
from harness.checks.cost import available_memory, memory, process_memory, seconds, trials
from harness.checks.findings import Finding, problem
from harness.checks.model_checks import ModelCosts, check_model
from harness.config.benchmark import Benchmark
from harness.engine.acceleration import wants_compiling
from harness.engine.apart import Call, apart
from harness.engine.images import open_data, source
from harness.engine.numerics import resolve
from harness.engine.prepare import check_number_of_images, passes_of_a_run
from harness.engine.provenance import provenance
from harness.engine.session import model_session
from harness.errors import ModelError, SpecError
from harness.leaderboard import flags
from harness.util.foreign import ANYTHING
from harness.util.gpus import gpus_of, visible_gpus

IMAGES = 64
"""Images that are read, evenly spaced among the chosen ones."""
USABLE = 0.8
"""Share of the free memory that a run may plan with."""


def doctor(benchmark: Benchmark, *, runs: Path, out: Sequence[Path]) -> Iterator[Finding]:
    """Check everything that ``ct-harness run`` needs. A model that cannot be scored does not hide the others.

    Args:
        benchmark: the benchmark to check.
        runs: directory of the ledgers.
        out: paths of the files of the leaderboard, its CSV first.

    Yields:
        The finding of each check, as soon as it is known.
    """
    model_session.cache_clear()  # files may have changed since an earlier check in this process
    source.cache_clear()
    seen: set[Finding] = set()
    with apart(benchmark.executor) as call:
        for finding in _findings(benchmark, runs, out, call):
            if finding not in seen:  # the data are checked once for each preprocessing
                seen.add(finding)
                yield finding


def _findings(benchmark: Benchmark, runs: Path, out: Sequence[Path], call: Call) -> Iterator[Finding]:
    device = yield from _device(benchmark)
    opened: dict[Preprocessing, tuple[Batch, int] | None] = {}
    scorable: list[ModelCosts] = []
    for model in benchmark.models:
        try:
            preprocessing = model.preprocessing(offline=True)
        except ANYTHING as error:
            yield problem("weights", model.label, error)
            continue
        if preprocessing not in opened:
            opened[preprocessing] = yield from _data(benchmark, preprocessing)
            yield from _threat(benchmark, opened[preprocessing])
        data = opened[preprocessing]
        images, n = data or (None, 0)
        share = ceil(n / benchmark.executor.capacity(device))
        try:
            findings, costs = call(model.label, check_model, benchmark, model, images, device, share)
        except ModelError as error:  # it has ended the process
            findings, costs = [problem("weights", model.label, error)], None
        yield from findings
        scorable += [costs] if costs else []
    yield _folder("runs", runs / benchmark.name, "--runs")
    unfit = [path for path in out if not _can_be_a_file(path)]
    yield _unwritable("out", unfit[0], "--out") if unfit else _folder("out", out[0].parent, "--out")
    if scorable:
        n = next(data[1] for data in opened.values() if data)
        yield _disk(benchmark, scorable, n, runs)
        yield _memory(benchmark, scorable, device)
        yield _duration(benchmark, scorable, n, device)


def _device(benchmark: Benchmark) -> Generator[Finding, None, str]:
    """Check the device, and return the one to check the models on: the CPU if no GPU is here, or needs to be."""
    executor, device, workers = benchmark.executor, "cpu", "no workers"
    try:
        asked = executor.worker_device(benchmark.device)
        workers = f"{executor.capacity(asked)} workers"
        device = "cpu" if executor.elsewhere else _of_this_process(asked)
    except SpecError as error:
        yield problem("device", "device", error)
    known = provenance(device)
    versions = ", ".join(f"{name} {known[name]}" for name in ("python", "torch", "pyautoattack", "robustbench"))
    text = f"{device} ({known['device_name']}), {workers}"
    if executor.elsewhere:
        text += f" of kind {executor.kind} elsewhere: models are checked on this machine's CPU"
    yield Finding("device", "device", "ok", f"{text}; {versions}")
    return device


def _of_this_process(device: str) -> str:
    """Return a device of this machine as this process names it, which cannot tell MIG instances apart.

    Raises:
        SpecError: there is no such GPU.
    """
    device = resolve(device)
    if device == "cpu":
        return device
    gpus_of(device, visible_gpus())
    return device if int(device.partition(":")[2] or 0) < torch.cuda.device_count() else "cuda"


def _data(benchmark: Benchmark, preprocessing: Preprocessing) -> Generator[Finding, None, tuple[Batch, int] | None]:
    """Read a few images, and return them with the number of all chosen ones; None if they cannot be used."""
    dataset = benchmark.dataset
    try:
        opened = source(dataset, preprocessing, True)
        chosen = dataset.chosen(opened)
        check_number_of_images(benchmark, len(chosen))
        number = min(IMAGES, len(chosen))
        few = tuple(chosen[position * len(chosen) // number] for position in range(number))
        read = open_data(dataset.model_copy(update={"n": None, "per_class": None, "indices": few}), True, preprocessing)
        batch = opened.read(few)
    except ANYTHING as error:  # also what a library raises on a damaged file
        yield problem("data", dataset.label, error)
        return None
    if dataset.target == "class":
        low, high = int(batch.y.min()), int(batch.y.max())
        if low < 0:
            text = f"image {few[int(batch.y.argmin())]} has the label {low}"
            yield Finding("data", dataset.label, "problem", text, "number the classes from 0 on")
            return None
        labels = f"labels {low} … {high}"
    else:
        labels = f"{batch.y.shape[1]} {dataset.target} each"
    shape = "×".join(map(str, batch.x.shape[1:]))
    text = f"{len(chosen)} images of {shape}; {len(few)} were read, with {labels}"
    if flags.of_images(len(read.pixels), len(few)):
        text += f", but only {len(read.pixels)} are different pixel by pixel"
        yield Finding("data", dataset.label, "warning", text, "look at the images, and drop the repetitions")
    else:
        yield Finding("data", dataset.label, "ok", text)
    return batch, len(chosen)


def _threat(benchmark: Benchmark, data: tuple[Batch, int] | None) -> Iterator[Finding]:
    """Check what the threat's stages need besides the images."""
    try:
        benchmark.threat.prepare(data[0] if data else None, offline=True)
    except ANYTHING as error:  # also what a library raises on a damaged file
        yield problem("threat", benchmark.threat.kind, error)


def _folder(subject: str, folder: Path, option: str) -> Finding:
    """Check that a directory can be written, or created."""
    existing = _existing(folder)
    if existing.is_dir() and os.access(existing, os.W_OK):
        return Finding("folder", subject, "ok", f"{folder} can be written")
    return _unwritable(subject, folder, option)


def _can_be_a_file(path: Path) -> bool:
    """Return whether a name is none of a directory, and no longer than names may be."""
    try:
        return not path.is_dir()
    except OSError:
        return False


def _unwritable(subject: str, path: Path, option: str) -> Finding:
    return Finding("folder", subject, "problem", f"{path} cannot be written", f"choose another place with {option}")


def _existing(folder: Path) -> Path:
    """Return ``folder``, or its nearest parent that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _disk(benchmark: Benchmark, models: Sequence[ModelCosts], n: int, runs: Path) -> Finding:
    """Check the disk space for adversarial images: one for each steering and each image that can be fooled."""
    attacked = n if benchmark.threat.attacks else 0
    needed = sum(model.steerings * attacked * model.correct * model.costs.image for model in models)
    free = shutil.disk_usage(_existing(runs)).free
    text = f"at most about {_bytes(needed)} of adversarial images; {_bytes(free)} are free"
    if needed <= free:
        return Finding("disk", "runs", "ok", text)
    return Finding("disk", "runs", "problem", text, "choose a larger disk with --runs, or fewer images or β")


def _memory(benchmark: Benchmark, models: Sequence[ModelCosts], device: str) -> Finding:
    """Check the memory for the model that needs most, in all the workers that share the device."""
    batch, gpus = max(model.costs.width for model in models), len(visible_gpus()) or 1 if device == "cuda" else 1
    workers, own = ceil(benchmark.executor.capacity(device) / gpus), process_memory(device)

    def needed(images: int) -> int:
        most = max(memory(model.costs, min(images, model.costs.width)) for model in models)
        return workers * (own + most)

    free = available_memory(device)
    text = f"about {_bytes(needed(batch))} for {workers} workers, in batches of {batch}"
    if free is None:
        return Finding("memory", "batch_size", "ok", f"{text}; this system does not say how much is free")
    text += f"; {_bytes(free)} are free"
    if needed(batch) <= USABLE * free:
        return Finding("memory", "batch_size", "ok", text)
    fitting = [images for images in range(1, batch) if needed(images) <= USABLE * free]
    remedy = (
        f"set batch_size: {fitting[-1]}"
        if fitting
        else "set executor: {kind: local, workers: 1}, or use a smaller model"
    )
    return Finding("memory", "batch_size", "problem" if needed(batch) > free else "warning", text, remedy)


def _duration(benchmark: Benchmark, models: Sequence[ModelCosts], n: int, device: str) -> Finding:
    """Estimate the duration as if no image were ever fooled, and the trials a second from which it follows."""
    threat, capacity = benchmark.threat, benchmark.executor.capacity(device)
    known = [(model, each) for model in models if (each := seconds(threat, model.costs)) is not None]
    if len(known) < len(models):
        return Finding("duration", "threat", "ok", f"not known beforehand for the threat {threat.kind}")
    of_a_steering = [each * n * (model.correct if threat.attacks else 1) / capacity for model, each in known]
    least = sum(own * model.finished for own, model in zip(of_a_steering, models, strict=True))
    most = sum(own * model.steerings for own, model in zip(of_a_steering, models, strict=True))
    rate = sum(trials(threat, model.costs) for model in models) / sum(each for _, each in known)
    will_compile = any(_will_compile(benchmark, model, n, device) for model in models)
    uncompiled = ", not compiled" if will_compile else ""
    text = (
        f"{_range(least, most)}{_left_out(benchmark, models)}: {_number(rate)} trials a second a worker, in batches of "
        f"{_widths(models)} (an estimate from a few images{uncompiled})"
    )
    return Finding("duration", "threat", "ok", text)


def _will_compile(benchmark: Benchmark, model: ModelCosts, n: int, device: str) -> bool:
    """Return whether a run compiles a model, which its measurement does not."""
    work = passes_of_a_run(benchmark.threat, model.costs.classes, n) * model.costs.kept
    return wants_compiling(benchmark.compile, torch.device(device).type, work)


def _range(least: float, most: float) -> str:
    """Return between which durations a run ends, in seconds; best-first takes longer the closer the best β are."""
    low, high = _minutes(least), _minutes(most)
    from_low = "" if low == high else f"about {low} if search: best_first finds a clear winner, "
    return f"{from_low}at most {'about ' * (not from_low)}{high}"


def _left_out(benchmark: Benchmark, models: Sequence[ModelCosts]) -> str:
    """Return what an estimate leaves out."""
    left_out = len(benchmark.models) - len(models)
    without = f", without the {left_out} that cannot be scored" if left_out else ""
    if any(model.training is not None for model in benchmark.models):
        without += ", without the fits on training images"
    return without


def _widths(models: Sequence[ModelCosts]) -> str:
    """Return the number of images in a batch, from the narrowest to the widest."""
    widths = [model.costs.width for model in models]
    return f"{min(widths)}" if min(widths) == max(widths) else f"{min(widths)} to {max(widths)}"


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _bytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{ceil(number / 1e6)} MB"


def _minutes(duration: float) -> str:
    minutes = ceil(duration / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
