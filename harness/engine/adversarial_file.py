"""The adversarial images of a ledger: one file that only grows, each image found again by its offset and checksum."""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

FLOAT = np.dtype("<f4")


class ImageAt(NamedTuple):
    """Place of an image, and its checksum.

    Args:
        offset: its place in the file.
        size: its bytes.
        checksum: 8 bytes of its BLAKE2b hash, as a number.
    """

    offset: int
    size: int
    checksum: int


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

    def append(self, images: Sequence[np.ndarray]) -> list[ImageAt]:
        """Write images, so that they survive the end of this process, and return the place of each.

        Raises:
            OSError: they cannot be written.
        """
        offset, places = self.size, []
        for image in images:
            content = memoryview(np.ascontiguousarray(image, FLOAT).tobytes())
            places.append(ImageAt(offset, len(content), _checksum(content)))
            offset += len(content)
            while content:
                content = content[os.write(self._file, content) :]
            self._written = True
        return places

    def sync(self) -> None:
        """Force what was written to the disk, so that it survives a power failure as well.

        Raises:
            OSError: the disk refuses.
        """
        if self._written:
            os.fsync(self._file)
            self._written = False

    def read(self, where: ImageAt) -> np.ndarray | None:
        """Return an image, float32 [size / 4]; None if it is not there as it was written.

        Raises:
            OSError: it cannot be read.
        """
        content = os.pread(self._file, where.size, where.offset)
        sound = len(content) == where.size and _checksum(content) == where.checksum
        return np.frombuffer(content, FLOAT).copy() if sound else None

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _checksum(content: bytes | memoryview) -> int:
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
