#!/usr/bin/env python3
"""Time the harness against what one would do without it: ratios, measured in one run, side by side.

The naive sweep is a script that anyone would write: for each β, registered ReLUs replaced by CT in the formula of the
paper's code, and the whole of ``pyautoattack.AutoAttack`` on the same images. Beside it the harness, every steering
finished and best-first. Then φ alone, a ResNet-18 with each activation, and the memory of a run on 10,000 images.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from pyautoattack.examples.resnet import ResNet18
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import squeezenet1_1

import harness
from harness.api.records import Steering
from harness.attacks.autoattack import configured
from harness.config.benchmark import Benchmark, parse_benchmark
from harness.curvature.phi import phi
from harness.curvature.shared_copy import copy_sharing_weights
from harness.engine.acceleration import compiled, to_channels_last
from harness.engine.numerics import reproducible, resolve
from harness.models.loaded import Loaded
from harness.threats.lp import Linf

GRID = {"from": 0.70, "to": 0.99, "step": 0.01}
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


@dataclass(frozen=True)
class Question:
    """Images and attack that every way is timed on.

    Args:
        data: an .npz of CIFAR-10 images for the ResNet-18 of pyautoattack; None for a demo network on its digits.
        n: images.
        batch_size: of the attacks.
        attack: as in a benchmark.
    """

    data: str | None
    n: int
    batch_size: int
    attack: Any

    @property
    def eps(self) -> str:
        """In pixels."""
        return "1/255" if self.data else "0.1"


def benchmark(asked: Question, workers: int, search: str, replay_first: bool = False) -> Benchmark:
    """Return the benchmark that asks the harness this question."""
    data, n = asked.data, asked.n
    return parse_benchmark({
        "name": "speed",
        "models": [{"kind": "demo", "name": "digits_plain"}] if data is None else [{
            "kind": "checkpoint", "name": "ResNet-18", "builder": "pyautoattack.examples.resnet:ResNet18",
            "weights": "pkg:pyautoattack/examples/model_test.pt",
        }],
        "dataset": {"kind": "digits", "n": n} if data is None else {"kind": "arrays", "path": data, "n": n},
        "threat": {"kind": "Linf", "eps": asked.eps, "attack": asked.attack},
        "steering": {"beta": GRID},
        "batch_size": asked.batch_size,
        "search": {"kind": search},
        "replay_first": replay_first,
        "executor": {"kind": "local", "workers": workers},
    })  # fmt: skip


def naive(asked: Question) -> tuple[float, dict[float, float]]:
    """Seconds of the script, one thread, and the robust accuracy it finds at each β."""
    question = benchmark(asked, 1, "full")
    threat = question.threat
    assert isinstance(threat, Linf)
    network = question.models[0].load(offline=True).network
    if asked.data:  # its ReLUs are no modules: make them such, with the same weights
        plain, network = network, Registered().eval()
        network.net.load_state_dict(plain.state_dict())
    opened = question.dataset.open(offline=True)
    batch = opened.read(question.dataset.chosen(opened))
    found = {}
    torch.set_num_threads(1)
    started = perf_counter()
    for beta in (1.0, *question.steering.beta):
        tuned = network if beta == 1.0 else replaced(network, Reference(beta))
        tool = configured(threat.attack, tuned, 10, "Linf", threat.eps, "cpu")
        tool.seed = 0
        with contextlib.redirect_stdout(io.StringIO()):
            images, _ = tool.run_standard_evaluation(batch.x, batch.y, batch_size=asked.batch_size)
        with torch.no_grad():
            found[beta] = float((tuned(images).argmax(1) == batch.y).float().mean())
        print(f"naive β={beta:g}: {found[beta]:.1%}, {perf_counter() - started:.0f} s", flush=True)
    return perf_counter() - started, found


def swept(question: Benchmark) -> tuple[float, pd.DataFrame]:
    """Seconds of the harness from nothing, and its board."""
    with tempfile.TemporaryDirectory() as runs:
        started = perf_counter()
        board = harness.run(question, runs=runs, offline=True)
        return perf_counter() - started, board


def sweep(asked: Question, skip_naive: bool) -> pd.DataFrame:
    """A row for each way of finding the best of 31 β."""
    network = "ResNet-18, CIFAR-10" if asked.data else "digits_plain"
    rows: list[dict[str, Any]] = []

    def add(way: str, seconds: float, attacks: float, best: float, robust: float) -> None:
        first = rows[0]["seconds"] if rows else seconds
        rows.append({
            "network": network, "n": asked.n, "way": way, "seconds": round(seconds, 1),
            "autoattack_runs": round(attacks, 1), "speed_up": round(first / seconds, 2),
            "best_beta": best, "robust": round(robust, 4),
        })  # fmt: skip
        print(rows[-1], flush=True)

    if not skip_naive:
        took, found = naive(asked)
        best = max(found, key=lambda beta: (found[beta], beta))
        add("naive sweep", took, len(found), best, found[best])
    one = None
    for way, workers, search, replay_first in (
        ("harness, full, 1 worker", 1, "full", False),
        ("harness, best-first, 1 worker", 1, "best_first", False),
        ("harness, best-first, 2 workers", 2, "best_first", False),
        ("harness, best-first, replay_first, 1 worker", 1, "best_first", True),
        ("harness, best-first, replay_first, 2 workers", 2, "best_first", True),
    ):
        took, board = swept(benchmark(asked, workers, search, replay_first))
        grid = board[board["status"].isin(["ok", "bounded"])]
        attacked = grid["seconds"].sum()
        one = one or attacked / len(grid)
        best, robust = grid.sort_values("rank").iloc[0][["beta", "robust"]]
        add(way, took, attacked / one, best, robust)
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


def kept(module: nn.Module, x: Tensor) -> int:
    """Bytes that are saved for the backward pass, the weights aside."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = module(x.detach().clone().requires_grad_())
    del result
    return sum(found.values())


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
                held = kept(flat, x)
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="activations, sweep, memory; all by default")
    parser.add_argument("--data", help="an .npz of CIFAR-10 images (x uint8, y), for the ResNet-18 of pyautoattack")
    parser.add_argument("--n", type=int, help="images of the sweep (100 digits, 16 of --data)")
    parser.add_argument("--batch-size", type=int, help="of the attacks (25 digits, 4 of --data)")
    parser.add_argument("--attack", type=yaml.safe_load, default="standard", help="as in a benchmark")
    parser.add_argument("--skip-naive", action="store_true", help="leave out the slowest")
    parser.add_argument("--out", type=Path, default=Path("speed"), help="folder of the CSV and Markdown tables")
    options = parser.parse_args()
    device = resolve("auto")
    n, size = (100, 25) if options.data is None else (16, 4)
    asked = Question(options.data, options.n or n, options.batch_size or size, options.attack)
    parts: dict[str, Callable[[], pd.DataFrame]] = {
        "activations": lambda: activations(device, 64 if device == "cuda" else 8),
        "sweep": lambda: sweep(asked, options.skip_naive),
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
