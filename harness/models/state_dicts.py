"""Search for the state dict of a network in a checkpoint: under any key, and behind any prefix.

Trainers save a state dict under a key of theirs (``net``, ``model_state_dict``, ``ema``), and wrappers put their name
before each of its keys (``module.`` of DataParallel, ``_orig_mod.`` of torch.compile, ``model.`` of Lightning).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from harness.models.checkpoint_files import BadCheckpoint

USUAL = ("", "state_dict", "model")
"""Where a state dict is looked for first: at the top of a file, and under these keys."""
DEEPEST = 3
"""Levels of mappings in which a state dict is looked for."""
COUNTERS = (".num_batches_tracked",)
"""Ends of keys that older versions of torch did not save."""
COUNTED = ("total_ops", "total_params")
"""Last parts of keys that thop leaves in a network, of operations and parameters that it has counted."""
NAMED = 6
"""Keys that a message names."""


class Found(NamedTuple):
    """A state dict in a checkpoint.

    Args:
        key: the key under which it lies, such as "net"; nested ones are joined by "/", as in "state_dict/0" for the
            first of a list; empty at the top.
        prefix: what comes before each key of the network, such as "module.".
        state: its entries, by the network's keys.
    """

    key: str
    prefix: str
    state: Mapping[str, Any]

    @property
    def place(self) -> str:
        """Description of where it lies."""
        parts = [f"under {self.key!r}"] * bool(self.key) + [f"behind the prefix {self.prefix!r}"] * bool(self.prefix)
        return ", ".join(parts) or "at the top"


def own_state(content: Mapping[str, Any], network: nn.Module, key: str | None = None) -> Found:
    """Return the state dict of a network; where several fit, that at a usual place.

    Args:
        content: what a checkpoint holds.
        network: the network.
        key: the key under which it lies, where that is known; see `Found`.

    Returns:
        The state dict; where none fits, that at a usual place, which the network then refuses.

    Raises:
        BadCheckpoint: several fit there, and they differ; or its numbers are of another type.
    """
    expected = network.state_dict()
    candidates = [found for found in _candidates(content, expected) if key in (None, found.key)]
    fitting = [found for found in candidates if _fits(found.state, expected)]
    if not fitting:
        return _usual(content, expected)
    usual = next((place for place in USUAL if any(found.key == place for found in fitting)), None)
    chosen = [found for found in fitting if usual in (None, found.key)]
    chosen = [found for found in chosen if not found.prefix] or chosen
    if not all(_same(found, chosen[0], expected) for found in chosen[1:]):
        places = "; ".join(found.place for found in chosen)
        raise BadCheckpoint(f"holds several state dicts that fit ({places}); save the one that is meant")
    _check_types(chosen[0].state, expected)
    return chosen[0]


def _check_types(state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse numbers that torch would convert to others, such as quantised weights without their scale.

    Raises:
        BadCheckpoint: a tensor is not of floating point where the network's is.
    """
    for key, value in state.items():
        wanted = expected[key]
        both = isinstance(wanted, Tensor) and isinstance(value, Tensor)
        if both and wanted.is_floating_point() and not value.is_floating_point():
            raise BadCheckpoint(
                f"holds {key!r} as {str(value.dtype).removeprefix('torch.')}, where the network has "
                f"{str(wanted.dtype).removeprefix('torch.')}: the weights of another network, perhaps a quantised one"
            )


def keys_of(content: Mapping[str, Any]) -> str:
    """Return the first keys of a checkpoint, for a message; of the mapping inside where there is but one."""
    inside = [value for value in content.values() if isinstance(value, Mapping) and value]
    keys = list(map(str, content))
    if inside and len(inside[0]) > len(keys):
        outer, keys = next(key for key, value in content.items() if value is inside[0]), list(map(str, inside[0]))
        return f"the file has {', '.join(map(repr, map(str, content)))}; {outer!r} holds {_some(keys)}"
    return f"the file has {_some(keys)}"


def _some(keys: list[str]) -> str:
    if not keys:
        return "no keys"
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(map(repr, keys[:NAMED])) + more


def _candidates(content: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[Found]:
    """Yield everything in a checkpoint that could be a network's state dict."""
    for key, mapping in _mappings(content):
        prefixes = _prefixes(mapping, expected)
        for prefix in prefixes:
            longer = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
            names = [name for name in mapping if name.startswith(prefix) and not name.startswith(longer)]
            own = {name[len(prefix) :]: mapping[name] for name in names}
            yield Found(key, prefix, {name: value for name, value in own.items() if not _is_of_no_network(name, value)})


def _mappings(content: Mapping[Any, Any], path: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a mapping and those inside of it, outermost first, with the keys that lead there."""
    yield path, {key: value for key, value in content.items() if isinstance(key, str)}
    if depth < DEEPEST:
        for key, value in content.items():
            inside = dict(enumerate(value)) if isinstance(value, list | tuple) else value
            if isinstance(inside, Mapping):
                yield from _mappings(inside, f"{path}/{key}".lstrip("/"), depth + 1)


def _prefixes(mapping: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return what comes before the network's first key wherever a mapping has it, the shortest first."""
    first = next((key for key in expected if not key.endswith(COUNTERS)), "")
    found = {key.removesuffix(first) for key in mapping if key == first or key.endswith(f".{first}")}
    return sorted(found, key=len)


def _is_of_no_network(name: str, value: object) -> bool:
    """Return whether an entry was left there by a counter of operations, or is none of a state dict."""
    return name.rpartition(".")[2] in COUNTED or not ("." in name or isinstance(value, Tensor))


def _fits(state: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Return whether a state dict has the network's keys and no others, with tensors of the same shapes."""
    missing = [key for key in expected.keys() - state.keys() if not key.endswith(COUNTERS)]
    return not missing and not state.keys() - expected.keys() and all(
        _same_shape(state[key], value) for key, value in expected.items() if key in state
    )  # fmt: skip


def _same_shape(found: object, expected: object) -> bool:
    if not isinstance(expected, Tensor) or is_lazy(expected):
        return True
    return isinstance(found, Tensor) and found.shape == expected.shape


def _same(one: Found, other: Found, expected: Mapping[str, Any]) -> bool:
    """Return whether two state dicts hold the same tensors."""
    return all(
        torch.equal(one.state[key], other.state[key])
        for key in expected
        if isinstance(one.state.get(key), Tensor) and isinstance(other.state.get(key), Tensor)
    )


def _usual(content: Mapping[str, Any], expected: Mapping[str, Any]) -> Found:
    """Return the state dict at the first usual place below the top that there is, otherwise all that there is."""
    key = next((key for key in USUAL if isinstance(content.get(key), Mapping)), "")
    state = content[key] if key else content
    return Found(
        key, "", {name if name in expected else str(name).removeprefix("module."): state[name] for name in state}
    )
