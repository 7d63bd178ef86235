#!/usr/bin/env python3
"""Check and time the harness on a GPU, section by section, and write a report.

What is not as it must be is a miss, and so is a section that raises; the next one runs all the same. Times are
printed, and judged by the reader.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parents[1]
GOOD, MISSED, UNDONE = 0, 1, 2
"""Exit codes: nothing missed; something missed; could not be done."""
IMAGES = "cifar10_test.npz"
"""Name of the images in a bundle; see ``ci/gpu_bundle.py``."""
GRACE = 120
"""Seconds beyond the budget at which a section that hangs is ended, and all with it."""


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="sections to run; all by default")
    parser.add_argument("--minutes", type=float, default=9, help="time after which no section starts (9)")
    parser.add_argument("--images", type=Path, help="CIFAR-10 test images, an .npz with x and y; a bundle's by default")
    parser.add_argument("--bundle", type=Path, help="folder of packages made by ci/gpu_bundle.py")
    parser.add_argument("--pretend", action="store_true", help="run on the CPU what needs no GPU, on a smaller scale")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder of the report (gpu)")
    return parser.parse_args()


def prepare(bundle: Path | None, gpu: bool) -> None:
    """Make the checkout and the bundle importable, here and in workers, and set what must be set before torch loads."""
    folders = [str(folder.resolve()) for folder in (ROOT / "ci", ROOT / "tests", ROOT, bundle) if folder is not None]
    sys.path[:0] = folders
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*folders, os.environ.get("PYTHONPATH")]))
    from harness.executors.placement import available_cores, environment

    os.environ.update(environment(gpu, available_cores(), os.environ))


def main() -> int:
    """Run the sections, and print and write what they find; return the exit code."""
    asked = options()
    if asked.bundle is not None and not asked.bundle.is_dir():
        return undone(f"--bundle: no folder {asked.bundle}; python ci/gpu_bundle.py --out {asked.bundle} makes it")
    try:
        prepare(asked.bundle, gpu=not asked.pretend)
        import torch
        from gpu_sections import catalogue, report
        from gpu_sections.section import Place
    except ImportError as error:
        return undone(f"{error}; install what is missing, or bring it along: python ci/gpu_bundle.py")
    known = {section.name: section for section in catalogue.SECTIONS}
    if unknown := [name for name in asked.sections if name not in known]:
        return undone(f"unknown section {', '.join(unknown)}; known: {', '.join(known)}")
    if not asked.pretend and not torch.cuda.is_available():
        return undone("torch sees no GPU here; --pretend runs on the CPU what needs none")
    images = asked.images or (asked.bundle / IMAGES if asked.bundle else None)
    if images is not None and not images.is_file():
        return undone(f"--images: no file {images}")
    faulthandler.dump_traceback_later(60 * asked.minutes + GRACE, exit=True)
    until = perf_counter() + 60 * asked.minutes
    place = Place("cpu" if asked.pretend else "cuda", Path(), images and images.resolve(), until)
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / report.file_name(place)
    ended: list[report.Outcome] = []
    chosen = [section for section in catalogue.SECTIONS if not asked.sections or section.name in asked.sections]
    for outcome in report.outcomes(chosen, place):
        ended.append(outcome)
        print(outcome.text, flush=True)
        file.write_text(report.report(ended, place), encoding="utf-8")
    print(f"Report: {file}")
    faulthandler.cancel_dump_traceback_later()
    return MISSED if any(outcome.misses for outcome in ended) else GOOD


def undone(why: str) -> int:
    """Say why nothing could be done, and return the exit code."""
    print(f"error: {why}", file=sys.stderr)
    return UNDONE


if __name__ == "__main__":
    sys.exit(main())
