"""Checkpoint files: reading them without running their code, and explaining why one does not fit its network."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from harness.errors import ModelError
from harness.util.downloads import BadFile, Remote
from harness.util.lockfile import fingerprint

LFS_POINTER = b"version https://git-lfs"
"""Start of the file that Git LFS leaves in place of a large one."""
MOST_UNPACKED = 10
"""How many times larger than its file a checkpoint may be; torch.save does not compress."""


class BadCheckpoint(ValueError):
    """A file is not a checkpoint; the message is a predicate, to which the caller adds the file and the remedy."""


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read the mapping in a checkpoint, with its tensors on the CPU; pickled code is never run.

    Args:
        path: existing file, read as safetensors if its suffix says so, otherwise by ``torch.load``.

    Raises:
        BadCheckpoint: the file is a web page, truncated, not a checkpoint, or holds more than tensors.
    """
    with path.open("rb") as file:
        head = file.read(512)
    _check_format(path, head)
    if head.startswith(b"PK"):
        _check_archive(path)
    try:
        content = _read(path)
    except Exception as error:  # a damaged pickle can raise anything
        raise BadCheckpoint(_reason(path, error)) from error
    if not isinstance(content, Mapping):
        raise BadCheckpoint(f"holds a {type(content).__name__}, where a state dict was expected")
    return content


def _check_format(path: Path, head: bytes) -> None:
    """Refuse a file that is something else than its name says.

    Raises:
        BadCheckpoint: it is a web page, a pointer of Git LFS, or a checkpoint of the other format.
    """
    is_safetensors = head[8:10] == b'{"'  # after the length of its header
    if head.lstrip().startswith(b"<"):
        start = head.lstrip().splitlines()[0][:40].decode(errors="replace")
        raise BadCheckpoint(f"is a web page (it starts with {start!r}), not a checkpoint")
    if head.startswith(LFS_POINTER):
        raise BadCheckpoint("is a pointer of Git LFS, not the file itself; run `git lfs pull`")
    if is_safetensors and path.suffix != ".safetensors":
        raise BadCheckpoint(f"is a safetensors file; name it {path.stem}.safetensors")
    if path.suffix == ".safetensors" and head.startswith((b"PK", b"\x80")):
        raise BadCheckpoint(f"is a torch checkpoint, not a safetensors file; name it {path.stem}.pt")


def _check_archive(path: Path) -> None:
    """Refuse an archive that is cut short, that is a program, or that unpacks to far more than it is.

    Raises:
        BadCheckpoint: it is one of these.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise BadCheckpoint(f"is cut short: a checkpoint without its end, {size:,} bytes") from error
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise BadCheckpoint(
            "is a TorchScript program, not a state dict; save torch.jit.load(path).state_dict() into a new file"
        )
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        inside = f"its first is {entries[0].filename!r}" if entries else "it has none"
        raise BadCheckpoint(f"is a zip archive of other files than a checkpoint's ({inside})")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MOST_UNPACKED * size:
        raise BadCheckpoint(
            f"is an archive of {size:,} bytes that unpacks to {unpacked:,}, which torch.save, that does not compress, "
            "never writes"
        )


def check_checkpoint(path: Path) -> None:
    """Check that ``path`` is a complete checkpoint.

    Raises:
        BadFile: it is not.
    """
    try:
        read_checkpoint(path)
    except BadCheckpoint as bad:
        raise BadFile(str(bad)) from bad


def hub_file(url: str) -> Remote:
    """Describe the checkpoint at ``url``, stored where ``torch.hub`` looks for it.

    If the name ends with the first digits of a hash, as in ``resnet18-f37072fd.pth``, the content must match it.
    """
    from torch import hub

    name = Path(urlparse(url).path).name
    stated = re.search(r"-([0-9a-f]{8,})\.", name)

    def check(path: Path) -> None:
        check_checkpoint(path)
        if stated and not (found := fingerprint(path).sha256).startswith(stated[1]):
            raise BadFile(f"is not the file of that name: its SHA-256 starts with {found[: len(stated[1])]}")

    return Remote(Path(hub.get_dir()).absolute() / "checkpoints" / name, url, check)


@contextmanager
def loading(path: Path, name: str, library: str) -> Iterator[None]:
    """Turn errors that ``library`` raises within the block into explanations of why it cannot load a checkpoint.

    Args:
        path: checkpoint, as given by the key ``file``.
        name: name of the model whose weights it should hold.
        library: name of the library that loads it.

    Raises:
        ModelError: the file is missing, not a checkpoint, or of another architecture.
    """
    if not path.is_file():
        raise ModelError(f"file: no file {path}; give the path of a checkpoint of {name}")
    try:
        yield
    except BadCheckpoint as bad:
        raise ModelError(f"{path} {bad}; get the file again, or name another under file") from bad
    except Exception as error:  # torch raises RuntimeError; builders, and timm's checkpoint filters, may raise anything
        fault = mismatch(error) or f"cannot be loaded by {library} ({error!r})"
        raise ModelError(f"{path} {fault}; give a checkpoint of {name}") from error


def mismatch(error: Exception) -> str | None:
    """Summarise how a checkpoint does not fit its network: for each kind of fault, the number of keys and the first.

    Args:
        error: error raised by ``load_state_dict``.

    Returns:
        The summary as a predicate; None for any other error.
    """
    faults: list[str] = []
    for word in ("Missing", "Unexpected"):
        line = re.search(rf"{word} key\(s\) in state_dict: (.*)", str(error))
        keys = re.findall(r'"([^"]+)"', line[1]) if line else []
        if keys:
            faults.append(f"{len(keys)} {word.lower()}, such as {keys[0]!r}")
    shapes = re.findall(r"size mismatch for (\S+): .*?Size\((.*?)\).*?Size\((.*?)\)", str(error))
    if shapes:
        key, found, expected = shapes[0]
        example = f"{key!r} ({found} in the file, expected {expected})"
        faults.append(f"{len(shapes)} of another shape, such as {example}")
    return f"is a checkpoint of another architecture (keys: {'; '.join(faults)})" if faults else None


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _reason(path: Path, error: Exception) -> str:
    objects = re.search(r"GLOBAL (\S+) (was not an allowed|whose module)", str(error))
    remedy = "if you trust it, save its state dict alone into a new file"
    if objects:
        return f"holds Python objects ({objects[1]}) beside its tensors, and reading those could run code; {remedy}"
    if "Unsupported operand" in str(error):
        return f"is a Python pickle that torch.save has not written, and reading it could run code; {remedy}"
    if not path.stat().st_size:
        return "is empty"
    kind = "safetensors file" if path.suffix == ".safetensors" else "torch checkpoint"
    return f"is cut short or not a {kind} ({path.stat().st_size:,} bytes; {type(error).__name__} when read)"
