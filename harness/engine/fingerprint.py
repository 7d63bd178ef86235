"""Fingerprint of what a network computes: its whole state, its code, and its answers to fixed images.

The hash of the state dict misses what is no tensor in it: packed weights of quantised layers, plain attributes such as
a mean or a flag, closures of hooks, and the code of ``forward``. All of it is hashed here, when a network has just been
built. What neither shows (a file read in ``forward``, a package edited in place) its answers show.
"""

from __future__ import annotations

import functools
import hashlib
import os
import types
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from harness.engine.numerics import reproducible
from harness.util.hashing import sha256
from harness.util.randomness import seeded
from harness.util.source_code import code_of

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout, Enum, range, slice)
INTERNAL = frozenset(vars(nn.Module()))
"""Attributes that torch gives every module."""
COMPUTING = ("_parameters", "_buffers", "_modules", "_forward_pre_hooks", "_forward_hooks")
"""Those among them that change what it computes."""
DEEPEST = 40

NOISE = 4
"""Images of noise that a network is asked about."""
GREY = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Levels of grey ones, whose mean has no rounding: what divides by their deviation gets the same anywhere."""
BLOBS = 4
"""Blobs along each side of the dark and the bright one."""
PIECES = 4
"""Batches in which it is asked: a few images at a time, whatever its memory."""
NUMBERS = 16
"""Numbers into which its answers to an image are summed up, with fixed weights."""
ROUNDING = 1e-3
"""Largest difference of answers that is rounding (another machine, another number of threads), as a share."""

Answers = tuple[tuple[float, ...], ...]


def fingerprint(network: nn.Module, sources: Iterable[str] = ()) -> str:
    """Return a hash of a network's state and code.

    Args:
        network: network that was just built, and has not run.
        sources: names of modules by whose code it was built.
    """
    state = _State()
    state.add(network)
    state.add({key: value for key, value in network.state_dict().items() if not isinstance(value, Tensor)})
    return sha256([state.digest.hexdigest(), code_of({*state.modules, *sources})])


class _State:
    """Hashes whatever a network holds on to, and collects the modules whose code it runs.

    Text that is an absolute path is left out, like `harness.api.part.Part.location_fields`, and random generators and
    objects of C libraries count by their type alone.
    """

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.modules: set[str] = set()
        self._seen: dict[int, tuple[int, object]] = {}
        self._depth = 0

    def add(self, value: object) -> None:
        """Hash a value with all that it holds."""
        if isinstance(value, PLAIN):
            self._write(repr(value) if not _is_path(value) else "path")
        elif id(value) in self._seen:
            self._write(f"again {self._seen[id(value)][0]}")
        elif self._depth < DEEPEST:
            self._seen[id(value)] = len(self._seen), value  # kept, so that no other object gets its id
            self._depth += 1
            self._add_new(value)
            self._depth -= 1

    def _add_new(self, value: object) -> None:
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray):
            self._write(f"array {value.dtype} {value.shape}")
            self.digest.update(value.tobytes() if value.dtype != object else repr(value.tolist()).encode())
        elif isinstance(value, np.generic):
            self._write(repr(value.item()))
        elif isinstance(value, Mapping):
            self._write(f"mapping {len(value)}")
            for key in value:
                self.add(key)
                self.add(value[key])
        elif isinstance(value, (set, frozenset)):
            self._write(" ".join(sorted(repr(one) if isinstance(one, PLAIN) else type(one).__name__ for one in value)))
        elif isinstance(value, (list, tuple)):
            self._write(f"{type(value).__name__} {len(value)}")
            for one in value:
                self.add(one)
        else:
            self._object(value)

    def _object(self, value: Any) -> None:
        """Hash a module, a callable or any other object by its name and its attributes."""
        if isinstance(value, types.ModuleType):
            self._named(value.__name__, value.__name__)
        elif isinstance(value, type):
            self._named(value.__qualname__, value.__module__)
        elif isinstance(value, types.FunctionType):
            self._named(value.__qualname__, value.__module__)
            for part in (value.__defaults__, value.__kwdefaults__, _cells(value)):
                self.add(part)
        elif isinstance(value, types.MethodType):
            self.add(value.__func__)
            self.add(value.__self__)
        elif isinstance(value, functools.partial):
            self.add([value.func, value.args, value.keywords])
        else:
            for base in type(value).__mro__:
                self._named(base.__qualname__, base.__module__)
            for name, one in sorted(_attributes(value).items()):
                self._write(name)
                self.add(one)

    def _named(self, name: str, module: str | None) -> None:
        self._write(name)
        self.modules |= {module} if module else set()

    def _tensor(self, tensor: Tensor) -> None:
        self._write(f"tensor {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.is_quantized:
            self.add([str(tensor.qscheme()), tensor.int_repr(), tensor.dequantize()])
        elif tensor.layout == torch.strided and tensor.device.type != "meta":
            content = tensor.detach().cpu().contiguous().flatten()
            self.digest.update(content.view(dtype=torch.uint8).numpy().tobytes())
        elif tensor.layout != torch.strided:
            self.add(tensor.to_dense())

    def _write(self, text: str) -> None:
        self.digest.update(text.encode("utf-8", "surrogatepass") + b"\n")


def _is_path(value: object) -> bool:
    return isinstance(value, str) and os.path.isabs(value)


def _cells(function: types.FunctionType) -> list[object]:
    """Return the values that a function has closed over."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    return found


def _attributes(value: Any) -> dict[str, object]:
    """Return the attributes of an object that can change what it computes."""
    own = dict(getattr(value, "__dict__", {}))
    if not isinstance(value, nn.Module):
        of_torch = type(value).__module__.partition(".")[0] == "torch"
        return {name: held for name, held in own.items() if isinstance(held, PLAIN) or not of_torch}
    hooks = {name: list(held.values()) if "hooks" in name else held for name, held in own.items() if name in COMPUTING}
    return {name: held for name, held in own.items() if name not in INTERNAL} | hooks


def answers(network: nn.Module, shape: Sequence[int]) -> Answers:
    """Return what a network answers to a few fixed images, summed up; empty where it answers by chance.

    Args:
        network: network from images [n, c, h, w] to a tensor, or to several.
        shape: shape of an image: c, h, w.
    """
    images = fixed_images(shape)
    first, second = (_sums(network, images) for _ in range(2))
    return first if alike(first, second) else ()


def fixed_images(shape: Sequence[int]) -> Tensor:
    """Return the images that a network is asked about, in [0, 1]: noise, and smooth, dark, bright and stark ones.

    A threshold on brightness or contrast lies between two of them.

    Args:
        shape: shape of an image: c, h, w.
    """
    drawn = torch.Generator().manual_seed(0)
    noise = torch.rand(NOISE, *shape, generator=drawn)
    ramp = torch.linspace(0, 1, shape[-1]).expand(shape)
    blobs = nn.functional.interpolate(
        torch.rand(1, shape[0], BLOBS, BLOBS, generator=drawn), list(shape[1:]), mode="bilinear"
    )[0]
    smooth = [ramp, ramp.round(), 0.25 * blobs, 0.75 + 0.25 * blobs]
    return torch.cat([noise, torch.stack([*(torch.full(tuple(shape), level) for level in GREY), *smooth])])


def _outputs(network: nn.Module, images: Tensor) -> Tensor:
    """Return all that a network answers to each image, float64 [n, k]."""
    leaves = [leaf for leaf in tree_leaves(network(images)) if isinstance(leaf, Tensor) and len(leaf) == len(images)]
    return torch.cat([leaf.double().flatten(1) for leaf in leaves], 1)


def _sums(network: nn.Module, images: Tensor) -> Answers:
    with torch.no_grad(), reproducible(), seeded(0):
        flat = torch.cat([_outputs(network, few) for few in torch.tensor_split(images, PIECES)])
    places = torch.arange(1, flat.shape[1] + 1, dtype=torch.float64)
    weights = torch.cos(torch.outer(places, torch.arange(1, NUMBERS + 1, dtype=torch.float64)))
    return tuple(
        tuple(float(f"{number:.6g}") for number in row) for row in (flat @ weights).nan_to_num(0, 0, 0).tolist()
    )


def alike(first: Iterable[Iterable[float]], second: Iterable[Iterable[float]]) -> bool:
    """Return whether two networks' answers are the same but for rounding."""
    a, b = (np.array([list(row) for row in answers], np.float64) for answers in (first, second))
    return a.shape == b.shape and (a.size == 0 or bool(np.abs(a - b).max() <= ROUNDING * np.abs(a).max()))
