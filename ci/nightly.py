#!/usr/bin/env python3
"""Hold every committed leaderboard against a fresh run, go on after a failure, and sum up.

A board is run when its benchmark is there and its data are at hand; the others are named. Exit 0 when every board that
was run held, 1 when one failed, 2 when one could not be compared or none was run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from harness.config.benchmark import load_benchmark
from harness.engine.images import open_data
from harness.errors import DataMissing, HarnessError
from harness.report.site import boards_of

HELD, FAILED, UNDONE = 0, 1, 2


def missing(benchmark: Path, overrides: list[str]) -> str | None:
    """Return why the benchmark of a board cannot be run here; None if it can."""
    if not benchmark.exists():
        return f"no benchmark {benchmark}"
    loaded = load_benchmark(benchmark, overrides)
    fitted_on = {model.training for model in loaded.models if model.training is not None}
    try:
        for dataset in (loaded.dataset, *fitted_on):
            open_data(dataset, offline=True)
    except DataMissing as error:
        return f"its data are not at hand: {error}"
    return None


def main() -> int:
    """Run the boards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boards", type=Path, default=Path("leaderboards"))
    parser.add_argument("--benchmarks", type=Path, default=Path("benchmarks"))
    parser.add_argument("--report", type=Path, default=Path("nightly"), help="folder of the summary and JUnit files")
    parser.add_argument("--set", action="append", default=[], metavar="BOARD:KEY=VALUE", help="a key of one benchmark")
    options = parser.parse_args()
    options.report.mkdir(parents=True, exist_ok=True)
    codes, lines = {}, []
    for board in boards_of(options.boards):
        name, benchmark = board.stem, options.benchmarks / f"{board.stem}.yaml"
        overrides = [text.partition(":")[2] for text in options.set if text.partition(":")[0] == name]
        try:
            why = missing(benchmark, overrides)
        except HarnessError as error:
            codes[name] = UNDONE
            lines.append(f"### {name}: could not be compared\n\n{error}\n")
            continue
        if why:
            lines.append(f"### {name}: not run\n\n{why}\n")
            continue
        summary = options.report / f"{name}.md"
        command = [sys.executable, "-m", "harness", "check", str(benchmark), "--against", str(board)]
        command += ["--summary", str(summary), "--junit", str(options.report / f"{name}.xml")]
        command += [word for text in overrides for word in ("--set", text)]
        summary.unlink(missing_ok=True)
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        print(done.stderr, file=sys.stderr, end="")
        codes[name] = done.returncode
        last = done.stderr.strip().splitlines()[-1:] or [""]
        lines.append(summary.read_text() if summary.exists() else f"### {name}: could not be compared\n\n{last[0]}\n")
    verdict = FAILED if FAILED in codes.values() else UNDONE if not codes or any(codes.values()) else HELD
    title = {HELD: "held", FAILED: "FAILED", UNDONE: "could not be compared"}[verdict]
    text = f"# Nightly: {title}\n\nBoards run: {len(codes)}\n\n" + "\n".join(lines)
    (options.report / "summary.md").write_text(text)
    print(text)
    return verdict


if __name__ == "__main__":
    sys.exit(main())
