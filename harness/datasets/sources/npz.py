"""Arrays of .npz files. What a header promises is held against the file before memory is taken for it."""

from __future__ import annotations

import math
import os
import zipfile
from typing import IO, TYPE_CHECKING, Any

from harness.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DENSEST = 1032
"""Most bytes that one byte of a deflated file can stand for."""
LARGE, DENSEST_LARGE = 100_000_000, 300
"""Bytes of a large array, of which one compressed byte stands for fewer: black and white shapes need one for 110."""


def read_array(archive: zipfile.ZipFile, key: str, where: str, remedy: str) -> NDArray[Any]:
    """Read one array of an opened .npz file.

    Args:
        archive: the file.
        key: name of the array.
        where: path of the file, for error messages.
        remedy: what to do about a damaged file.

    Raises:
        DataError: it is damaged, holds Python objects, or is larger than this machine's memory.
    """
    from numpy.lib import format as npy

    try:
        with archive.open(f"{key}.npy") as stream:
            shape, dtype = _header(stream)
            start = stream.tell()
        if dtype.hasobject:
            raise DataError(f"{where}: {key} holds Python objects; save numbers, all of one shape")
        _refuse_promises(archive.getinfo(f"{key}.npy"), start, math.prod(shape) * dtype.itemsize)
        with archive.open(f"{key}.npy") as stream:
            array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
            return array
    except DataError:
        raise
    except Exception as error:  # those of zipfile, zlib, numpy and the tokenizer that it calls have no common base
        raise DataError(f"{where}: {key} is damaged ({_brief(error)}); {remedy}") from error


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    from numpy.lib import format as npy

    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format is {'.'.join(map(str, version))}, expected 1.0 or 2.0")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, _, dtype = read(stream)
    except Exception as error:  # of numpy and of the parser of Python that it calls
        raise ValueError("its header is none that numpy writes") from error
    return shape, dtype


def _refuse_promises(entry: zipfile.ZipInfo, start: int, size: int) -> None:
    """Refuse an array of another size than its file holds, or than can be held here."""
    if size != entry.file_size - start:
        raise ValueError(f"its header promises {size:,} bytes, and {entry.file_size - start:,} follow")
    densest = DENSEST if size <= LARGE else DENSEST_LARGE
    if entry.file_size > densest * entry.compress_size + 1000:
        raise ValueError(f"{entry.file_size:,} bytes cannot come of {entry.compress_size:,} compressed ones")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ValueError(f"it takes {size / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB of memory")


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
