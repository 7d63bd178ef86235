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
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_sections.report import Outcome
    from gpu_sections.section import Place, Section

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


class Undone(Exception):
    """What was asked for could not be done; the text says why."""


def main() -> int:
    """Run the sections, print and write what they find, and return the exit code."""
    asked = options()
    try:
        prepare(asked.bundle, gpu=not asked.pretend)
        sections, place = chosen(asked.sections), where(asked)
    except Undone as error:
        print(f"error: {error}", file=sys.stderr)
        return UNDONE
    from gpu_sections import report

    stream = sys.__stderr__
    assert stream is not None
    faulthandler.dump_traceback_later(60 * asked.minutes + GRACE, exit=True, file=stream)
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / report.file_name(place)
    ended: list[Outcome] = []
    for outcome in report.outcomes(sections, place):
        ended.append(outcome)
        print(outcome.text, flush=True)
        file.write_text(report.report(ended, place), encoding="utf-8")
    print(f"Report: {file}")
    faulthandler.cancel_dump_traceback_later()
    return MISSED if any(outcome.misses for outcome in ended) else GOOD


def prepare(bundle: Path | None, gpu: bool) -> None:
    """Make the checkout and the bundle importable, here and in workers, and set what must be set before torch loads.

    Raises:
        Undone: something cannot be imported.
    """
    if bundle is not None and not bundle.is_dir():
        raise Undone(f"--bundle: no folder {bundle}; python ci/gpu_bundle.py --out {bundle} makes it")
    folders = [str(folder.resolve()) for folder in (ROOT / "ci", ROOT / "tests", ROOT, bundle) if folder is not None]
    sys.path[:0] = folders
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*folders, os.environ.get("PYTHONPATH")]))
    try:
        from harness.executors.placement import environment
        from harness.util.threads import available_cores

        os.environ.update(environment(gpu, available_cores(), os.environ))
        import gpu_sections.catalogue  # noqa: F401
    except ImportError as error:
        raise Undone(f"{error}; install what is missing, or bring it along: python ci/gpu_bundle.py") from error


def chosen(names: Sequence[str]) -> list[Section]:
    """Return the sections of these names, in their own order; all where none is named.

    Raises:
        Undone: there is no such section.
    """
    from gpu_sections.catalogue import SECTIONS

    known = [section.name for section in SECTIONS]
    if unknown := [name for name in names if name not in known]:
        raise Undone(f"unknown section {', '.join(unknown)}; known: {', '.join(known)}")
    return [section for section in SECTIONS if not names or section.name in names]


def where(asked: argparse.Namespace) -> Place:
    """Return where the sections run.

    Raises:
        Undone: there is no GPU, or no file with the images.
    """
    import torch
    from gpu_sections.section import Place

    if not asked.pretend and not torch.cuda.is_available():
        raise Undone("torch sees no GPU here; --pretend runs on the CPU what needs none")
    images: Path | None = asked.images or (asked.bundle / IMAGES if asked.bundle else None)
    if images is not None and not images.is_file():
        raise Undone(f"--images: no file {images}")
    until = perf_counter() + 60 * asked.minutes
    return Place("cpu" if asked.pretend else "cuda", Path(), None if images is None else images.resolve(), until)


if __name__ == "__main__":
    sys.exit(main())
