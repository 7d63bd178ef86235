"""The adversarial images of a ledger: one file that only grows, each image found again by its offset."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

FLOAT = np.dtype("<f4")


class AdversarialFile:
    """Images as float32, one after another; no other content.

    Nothing is ever overwritten: what a killed run left at the end is skipped, be it a part of an image.

    Args:
        path: path of the file, which is made if it is missing.

    Raises:
        OSError: it cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._written = False

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._file).st_size

    def append(self, images: Sequence[np.ndarray]) -> list[int]:
        """Write images, so that they survive the end of this process, and return the offset of each.

        Raises:
            OSError: they cannot be written.
        """
        offset, offsets = self.size, []
        for image in images:
            offsets.append(offset)
            content = memoryview(np.ascontiguousarray(image, FLOAT).tobytes())
            offset += len(content)
            while content:
                content = content[os.write(self._file, content) :]
            self._written = True
        return offsets

    def sync(self) -> None:
        """Force what was written to the disk, so that it survives a power failure as well.

        Raises:
            OSError: the disk refuses.
        """
        if self._written:
            os.fsync(self._file)
            self._written = False

    def read(self, offset: int, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return the image at ``offset``, float32 of the given shape; None if the file ends before it does.

        Raises:
            OSError: it cannot be read.
        """
        size = math.prod(shape) * FLOAT.itemsize
        content = os.pread(self._file, size, offset)
        return np.frombuffer(content, FLOAT).reshape(shape).copy() if len(content) == size else None

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
