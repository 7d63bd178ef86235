#!/usr/bin/env python3
"""Time the harness against what one would do without it: ratios, measured in one run, side by side.

The naive sweep is a script that anyone would write: for each β, registered ReLUs replaced by CT in the formula of the
paper's code, and the whole of ``pyautoattack.AutoAttack`` on the same images. Beside it the harness, every steering
finished and best-first; whole processes, from nothing. Then one AutoAttack of one network, φ alone, a ResNet-18 with
each activation, and the memory of a run on 10,000 images.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from pyautoattack import AutoAttack
from pyautoattack.examples.resnet import ResNet18
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import squeezenet1_1

import harness
from harness.api.records import Steering
from harness.config.benchmark import load_benchmark, parse_benchmark
from harness.curvature.phi import phi
from harness.curvature.shared_copy import copy_sharing_weights
from harness.engine.acceleration import compiled, to_channels_last
from harness.engine.footprint import kept_bytes
from harness.engine.numerics import reproducible, resolve
from harness.leaderboard import board_files
from harness.leaderboard.row import LeaderboardRow, attack_runs, known
from harness.models.loaded import Loaded
from harness.threats.lp import Lp

BETA = 0.9
REPEATS = 15


class Reference(nn.Module):
    """CT in the formula of the paper's code, in eager operations (Eq. 7)."""

    def __init__(self, beta: float, c: float = 0.5) -> None:
        super().__init__()
        self.beta, self.c = beta, c

    def forward(self, x: Tensor) -> Tensor:
        """φ(x)."""
        scaled = x / (1 - self.beta + 1e-6)
        swish = torch.sigmoid(self.beta * scaled) * x
        soft = F.softplus(scaled) * (1 - self.beta)
        return self.c * swish + (1 - self.c) * soft


def replaced(network: nn.Module, activation: nn.Module) -> nn.Module:
    """A copy with every registered ReLU replaced."""
    return copy_sharing_weights(network, lambda module: activation if type(module) is nn.ReLU else None)


class Registered(nn.Module):
    """A CIFAR ResNet-18 whose ReLUs are modules, so that replacing them is possible."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ResNet18()
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(17))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        relus = iter(self.relus)
        net = self.net
        out = next(relus)(net.bn1(net.conv1(x)))
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            for block in layer:
                inner = block.bn2(block.conv2(next(relus)(block.bn1(block.conv1(out)))))
                out = next(relus)(inner + block.shortcut(out))
        logits: Tensor = net.linear(F.avg_pool2d(out, 4).flatten(1))
        return logits


# --- the sweep ---

DIGITS = """
models: [{kind: demo, name: digits_plain}]
dataset: {kind: digits, n: 100}
threat: {kind: Linf, eps: 0.1}
steering: {beta: {from: 0.70, to: 1.0, step: 0.01}}
"""
"""The benchmark that is timed where none is given."""


@dataclass(frozen=True)
class Run:
    """A finished run of the harness.

    Args:
        seconds: of the whole process, from nothing.
        rows: its leaderboard.
    """

    seconds: float
    rows: list[LeaderboardRow]

    @property
    def grid(self) -> dict[float, LeaderboardRow]:
        """Rows of the grid, by β."""
        return {known(row.beta): row for row in self.rows if not row.is_headline}

    @property
    def finished(self) -> int:
        """Number of finished rows: the baseline and the winners."""
        return sum(row.is_finished for row in self.grid.values())


def harness_run(question: dict[str, Any], workers: int, **changes: Any) -> Run:
    """Run a benchmark in a process of its own, with an empty ledger."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        asked = question | {"executor": {"kind": "local", "workers": workers}} | changes
        (home / "speed.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
        command = [sys.executable, "-m", "harness", "run", str(home / "speed.yaml"), "--offline"]
        command += ["--runs", str(home / "runs"), "--out", str(home / "speed.csv")]
        started = perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = perf_counter() - started
        return Run(seconds, board_files.read(home / "speed.csv").rows)


def naive_run(question: dict[str, Any], betas: Sequence[float]) -> tuple[float, dict[float, float]]:
    """Run the naive sweep in a process of its own; seconds, and robust accuracy at each β."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "speed.yaml").write_text(yaml.safe_dump(question), encoding="utf-8")
        command = [sys.executable, __file__, "naive", str(home / "speed.yaml"), *map(str, betas)]
        started = perf_counter()
        subprocess.run(command, check=True, cwd=Path.cwd(), stdout=(home / "out").open("w"))
        seconds = perf_counter() - started
        return seconds, json.loads((home / "out").read_text().splitlines()[-1], object_hook=by_beta)


def by_beta(found: dict[str, float]) -> dict[float, float]:
    """Return accuracies with their β as numbers again."""
    return {float(beta): robust for beta, robust in found.items()}


def naive(path: Path, betas: Sequence[float]) -> None:
    """Print the robust accuracy at each β, as the naive sweep finds it, one thread."""
    torch.set_num_threads(1)
    question = load_benchmark(path)
    threat = question.threat
    assert isinstance(threat, Lp)
    network = question.models[0].load(offline=True).network
    opened = question.dataset.open(offline=True)
    batch = opened.read(question.dataset.chosen(opened))
    found = {}
    for beta in betas:
        tuned = network if beta == 1.0 else tuned_by_hand(network, beta)
        tool = AutoAttack(tuned, norm=threat.norm, eps=threat.eps, version="standard", device="cpu", seed=0)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            images, _ = tool.run_standard_evaluation(batch.x, batch.y, batch_size=100)
        with torch.no_grad():
            found[beta] = float((tuned(images).argmax(1) == batch.y).float().mean())
    print(json.dumps(found))


def tuned_by_hand(network: nn.Module, beta: float) -> nn.Module:
    """Return a copy with every registered ReLU replaced; where none is registered, the harness steers the network."""
    if any(type(module) is nn.ReLU for module in network.modules()):
        return replaced(network, Reference(beta))
    return harness.steer(network, beta)


def sweep(question: dict[str, Any], with_naive: bool) -> pd.DataFrame:
    """Time every way of finding the best β."""
    rows: list[dict[str, Any]] = []
    grid = parse_benchmark(question | {"name": "speed"}).steering.beta
    assert grid != "auto"
    betas = [1.0, *(beta for beta in grid if beta < 1)]

    def add(way: str, seconds: float, runs: float, best: float, robust: float, **more: Any) -> None:
        first = rows[0]["seconds"] if rows else seconds
        rows.append(
            {"way": way, "seconds": round(seconds, 1), "autoattack_runs": round(runs, 2)}
            | {"speed_up": round(first / seconds, 2), "best_beta": best, "robust": round(robust, 4)}
            | more
        )
        print(rows[-1], flush=True)

    if with_naive:
        seconds, found = naive_run(question, betas)
        best = max(found, key=lambda beta: (found[beta], beta))
        add("naive sweep", seconds, len(found), best, found[best])
    full = None
    ways: list[tuple[str, int, dict[str, Any]]] = [
        ("full, 1 worker", 1, {"search": {"kind": "full"}}),
        ("best-first, 1 worker", 1, {}),
        ("best-first, 2 workers", 2, {}),
        (f"best-first, {10 * len(betas) - 9} β, 1 worker", 1, {"steering": {"beta": finer(betas)}}),
    ]
    for way, workers, changes in ways:
        run = harness_run(question, workers, **changes)
        full = full or run
        gaps = [run.grid[beta].robust - full.grid[beta].robust for beta in full.grid if beta in run.grid]  # type: ignore[operator]
        first = min(run.grid.values(), key=lambda row: known(row.rank))
        add(
            way, run.seconds, known(attack_runs(run.rows)), known(first.beta), known(first.robust),
            finished=run.finished, widest_gap=round(max(gaps) * known(first.n)),
        )  # fmt: skip
    return pd.DataFrame(rows)


def finer(betas: Sequence[float]) -> list[float]:
    """Return a grid ten times as fine between the ends."""
    low, high = min(betas), max(betas)
    count = 10 * (len(betas) - 1)
    return [round(low + (high - low) * step / count, 6) for step in range(count + 1)]


def attack(question: dict[str, Any], repeats: int) -> pd.DataFrame:
    """Time one AutoAttack of the untouched network, by the library and by the harness: medians, and images lost."""
    rows = []
    untouched = question | {"steering": {"beta": [1.0]}}
    found = [naive_run(untouched, [1.0]) for _ in range(repeats)]
    runs = [harness_run(untouched, 1) for _ in range(repeats)]
    library, own = (median(seconds for seconds, _ in found), median(run.seconds for run in runs))
    rows.append(
        {"way": "pyautoattack", "seconds": round(library, 1), "speed_up": 1.0, "robust": round(found[0][1][1.0], 4)}
    )
    robust = next(row.robust for row in runs[0].rows if row.kind == "baseline")
    rows.append({"way": "harness", "seconds": round(own, 1), "speed_up": round(library / own, 2), "robust": robust})
    return pd.DataFrame(rows)


# --- memory ---


def memory() -> pd.DataFrame:
    """The most that a process of a run holds, for 1,000 and for 10,000 images of 3×32×32."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        torch.manual_seed(0)
        network = squeezenet1_1().eval()
        save_file(network.state_dict(), home / "network.safetensors")
        for n in (1000, 10_000):
            x = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8)
            with torch.no_grad():
                y = torch.cat([network(part / 255).argmax(1) for part in torch.split(x, 500)])
            np.savez(home / "images.npz", x=x.numpy(), y=y.numpy())
            (home / f"memory{n}.yaml").write_text(MEMORY.format(n=n), encoding="utf-8")
            command = [sys.executable, "-m", "harness", "run", f"memory{n}.yaml", "--offline"]
            peak, most, process = 0, 0, subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL)
            while process.poll() is None:
                peaks = [_peak(pid) for pid in (process.pid, *_children(process.pid))]
                peak, most = max(peak, peaks[0]), max(most, *peaks[1:], 0)
                sleep(0.2)
            assert process.returncode == 0
            rows.append({"images": n, "main_mib": peak >> 20, "worker_mib": most >> 20})
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


MEMORY = """
models: [{{kind: checkpoint, builder: "torchvision.models:squeezenet1_1", weights: network.safetensors}}]
dataset: {{kind: arrays, path: images.npz, n: {n}}}
threat: {{kind: Linf, eps: 8/255, attack: {{stages: [apgd-ce], iterations: 3}}}}
steering: {{beta: [0.9]}}
"""


def _children(parent: int) -> list[int]:
    """All processes below ``parent``."""
    direct = [int(child) for path in Path(f"/proc/{parent}/task").glob("*/children") for child in _text(path).split()]
    return direct + [below for child in direct for below in _children(child)]


def _peak(pid: int) -> int:
    """The most bytes that a process has held in memory."""
    lines = _text(Path(f"/proc/{pid}/status")).splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ""


# --- the activation ---


def timed(step: Callable[[], object], device: str) -> float:
    """Seconds of one step, the least of a few."""
    best = float("inf")
    for _ in range(REPEATS + 1):
        started = perf_counter()
        step()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, perf_counter() - started)
    return best


def ways(network: nn.Module | None, x: Tensor) -> Iterator[tuple[str, nn.Module]]:
    """The activation alone, or ``network``, which takes ``x``, with it."""
    yield "relu", nn.ReLU() if network is None else network
    for name, activation in (("silu", nn.SiLU()), ("reference", Reference(BETA))):
        yield name, activation if network is None else replaced(network, activation)
    steered = Phi() if network is None else Loaded(network, "").steered(Steering(BETA), x[:1])
    yield "harness", steered
    yield "harness, compiled", compiled(steered)


class Phi(nn.Module):
    """The harness's φ."""

    def forward(self, x: Tensor) -> Tensor:
        """φ(x)."""
        return phi(x, BETA)


def activations(device: str, batch_size: int) -> pd.DataFrame:
    """Forward, forward and backward, and the bytes kept between them, as ratios to ReLU's."""
    torch.manual_seed(0)
    rows = []
    network = Registered().eval().requires_grad_(False).to(device)
    for what, root, shape in (
        ("φ of 4 M numbers", None, (64, 64, 32, 32)),
        (f"ResNet-18, {batch_size} images", network, (batch_size, 3, 32, 32)),
    ):
        x = torch.rand(shape, device=device) * 2 - (1 if root is None else 0)
        if root is not None:
            to_channels_last(root, x)
        took: dict[str, dict[str, float]] = {}
        for name, module in ways(root, x):
            flat = nn.Sequential(module, nn.Flatten()) if root is None else module

            def forward(flat: nn.Module = flat, x: Tensor = x) -> object:
                with torch.no_grad():
                    return flat(x)

            def both(flat: nn.Module = flat, x: Tensor = x) -> object:
                leaf = x.detach().requires_grad_()
                return torch.autograd.grad(flat(leaf).sum(), leaf)

            with reproducible():
                took[name] = {"forward": timed(forward, device), "both": timed(both, device)}
                held = kept_bytes(flat, x) * len(x)
            rows.append({
                "what": what, "device": device, "activation": name,
                **{f"{key}_ms": round(1e3 * seconds, 2) for key, seconds in took[name].items()},
                **{f"{key}_of_relu": round(seconds / took["relu"][key], 2) for key, seconds in took[name].items()},
                "kept_mb": round(held / 1e6, 1),
            })  # fmt: skip
            print(rows[-1], flush=True)
        for row in rows:
            if row["what"] == what:
                row["both_of_reference"] = round(took[str(row["activation"])]["both"] / took["reference"]["both"], 2)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown."""
    lines = [f"| {' | '.join(table.columns)} |", f"|{'---|' * len(table.columns)}"]
    for row in table.astype(object).where(table.notna(), "").to_dict("records"):
        lines.append(f"| {' | '.join(str(value) for value in row.values())} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print and write the tables."""
    if sys.argv[1:2] == ["naive"]:
        naive(Path(sys.argv[2]), [float(beta) for beta in sys.argv[3:]])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="activations, attack, sweep, memory; all by default")
    parser.add_argument("--benchmark", type=Path, help="a benchmark of one model (31 β of a demo network by default)")
    parser.add_argument("--skip-naive", action="store_true", help="leave out the slowest")
    parser.add_argument("--repeats", type=int, default=1, help="runs whose median is reported, of one AutoAttack")
    parser.add_argument("--out", type=Path, default=Path("speed"), help="folder of the CSV and Markdown tables")
    options = parser.parse_args()
    device = resolve("auto")
    question = yaml.safe_load(options.benchmark.read_text() if options.benchmark else DIGITS)
    parts: dict[str, Callable[[], pd.DataFrame]] = {
        "activations": lambda: activations(device, 64 if device == "cuda" else 8),
        "attack": lambda: attack(question, options.repeats),
        "sweep": lambda: sweep(question, not options.skip_naive),
        "memory": memory,
    }
    if unknown := set(options.parts) - set(parts):
        parser.error(f"expected {', '.join(parts)}, found {', '.join(sorted(unknown))}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.parts or parts:
        table = parts[name]()
        table.to_csv(options.out / f"{name}.csv", index=False)
        (options.out / f"{name}.md").write_text(markdown(table), encoding="utf-8")
        print(f"\n{markdown(table)}")
    print(f"torch {torch.__version__}, {platform.machine()}, {device}")


if __name__ == "__main__":
    main()
