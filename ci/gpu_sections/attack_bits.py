"""Do attacks give the same bits every time? Hashes of what each attack finds, in this process and in another.

python attack_bits.py DEVICE IMAGES COMPILE        # prints them as JSON
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

from gpu_sections.section import Finding, Miss, Place, Skipped, expect, table
from gpu_sections.subjects import portion, question, results
from harness.attacks.autoattack import TARGETED, Name
from harness.attacks.norms import Norm
from harness.engine import evaluate as evaluation
from harness.engine.numerics import is_nondeterministic

EPS = {"Linf": {True: 1 / 255, False: 0.1}, "L2": {True: 0.15, False: 0.5}, "L1": {True: 2.0, False: 3.0}}
"""Radius at which some images survive, by norm: of CIFAR images, and of digits."""
IMAGES = 16
BUDGET = {"iterations": 6, "queries": 30, "targets": 1}

RAISED = "it raised"

Bits = dict[str, list[str]]
"""The answer on each image and a hash of what fooled the network, or the error that was raised, by attack."""


def attacks(place: Place) -> Iterator[Finding]:
    """Run every attack under every norm twice in this process and once in another, eager and compiled."""
    eager: Bits = {}
    with _warnings_kept() as warned:
        for compile in _compilations(place):
            if place.is_late:
                yield Skipped(f"compile={compile}, as the time is up")
                break
            first, again = bits(place, compile), bits(place, compile)
            eager = eager or first
            yield from _compared(compile, first, again, _in_another_process(place, compile), eager)
    yield from (f"Warned: {message}" for message in sorted(warned))


def _compared(compile: str, first: Bits, again: Bits, elsewhere: Bits, eager: Bits) -> Iterator[Finding]:
    rows = []
    for name, found in first.items():
        if found[0].startswith(RAISED):
            yield Miss(f"{name}, compile={compile}: {found[0]}")
            continue
        same = {"here": again[name] == found, "in another process": elsewhere[name] == found}
        row = {"attack": name, "compile": compile, "images": len(found), "fooled": _fooled(found)} | same
        rows.append(row | {"verdicts of eager": _agreeing(found, eager[name])})
        yield from expect(all(same.values()), f"{name}, compile={compile}: expected the same bits, found {same}")
    yield table(rows)


def _fooled(found: Sequence[str]) -> int:
    return sum(not one.startswith("1") for one in found)


def _agreeing(found: Sequence[str], other: Sequence[str]) -> int:
    """Return the number of images with the same verdict."""
    return sum(one[0] == another[0] for one, another in zip(found, other, strict=True))


def _compilations(place: Place) -> Sequence[str]:
    """Return the ways of compiling that are compared; compiling for a CPU takes longer than all the rest."""
    return ("never", "always") if place.is_gpu else ("never",)


def bits(place: Place, compile: str) -> Bits:
    """Run every attack under every norm, and return what it finds."""
    return {
        f"{stage}, {norm}": _bits_of(place, stage, norm, compile) for norm in get_args(Norm) for stage in get_args(Name)
    }


def _bits_of(place: Place, stage: str, norm: str, compile: str) -> list[str]:
    asked: dict[str, Any] = question(place, IMAGES, compile=compile, batch_size=IMAGES)
    cifar = asked["dataset"]["kind"] == "arrays"
    asked["threat"] = {"kind": norm, "eps": EPS[norm][cifar], "attack": {"stages": [stage]} | BUDGET}
    try:
        found, _ = results(portion(asked, stage, range(IMAGES), target=3 if stage in TARGETED else -1))
    except Exception as error:  # whatever an attack raises: the others go on
        return [f"{RAISED} {type(error).__name__}: {str(error).splitlines()[0]}"]
    return [f"{result.answer.value:g} {_hash(result.adversarial)}" for result in found]


def _hash(image: Any) -> str:
    return "" if image is None else hashlib.sha256(image.cpu().numpy().tobytes()).hexdigest()[:16]


def _in_another_process(place: Place, compile: str) -> Bits:
    command = [sys.executable, __file__, place.device, str(place.images or ""), compile]
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=os.environ | path, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the other process ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: Bits = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def _warnings_kept() -> Iterator[set[str]]:
    """Collect what torch warns of where an operation has no deterministic kernel; the harness makes a flag of it."""
    texts: set[str] = set()

    def noted(message: str) -> bool:
        if is_nondeterministic(message):
            texts.add(message.partition(". ")[0])
            return True
        return False

    with patch.object(evaluation, "is_nondeterministic", noted):
        yield texts


if __name__ == "__main__":
    _, device, images, way = sys.argv
    here = Place(device, Path.cwd(), Path(images) if images else None)
    print(json.dumps(bits(here, way)))
