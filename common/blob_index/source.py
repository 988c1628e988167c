"""The bytes of a blob from its first to its last, for what indexes it: of a stored file, or as they
come through a pipe.
"""

from __future__ import annotations

import os
from typing import BinaryIO, Protocol

PIECE_BYTES = 1 << 20


class UnindexableError(ValueError):
    """A blob cannot be indexed; the message says why."""


class Source(Protocol):
    """A blob that is read once, front to back."""

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is left."""

    def read(self, size_bytes: int) -> bytes:
        """Return the next bytes: as many as asked for, fewer only at the end.

        Raises UnindexableError or OSError.
        """


class StoredSource:
    """A file of known size, whose own position is neither used nor moved."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        """Read a file that the caller closes."""
        self._fd = fd
        self._size_bytes = size_bytes
        self._position = 0

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is left."""
        return self._position == self._size_bytes

    def read(self, size_bytes: int) -> bytes:
        """Return the next bytes; UnindexableError where the file is shorter than it was said."""
        pieces: list[bytes] = []
        stop = min(self._position + size_bytes, self._size_bytes)
        while self._position < stop:
            piece = os.pread(self._fd, stop - self._position, self._position)
            if not piece:
                left = self._size_bytes - self._position
                raise UnindexableError(f"the blob ends {left} bytes early")
            self._position += len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class StreamSource:
    """A stream that ends when its writer closes it."""

    def __init__(self, stream: BinaryIO) -> None:
        """Read a blocking, buffered stream, of which a `read` is short at its end alone."""
        self._stream = stream
        self._ahead = stream.read(PIECE_BYTES)

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is left."""
        return not self._ahead

    def read(self, size_bytes: int) -> bytes:
        """Return the next bytes."""
        data = self._ahead
        if len(data) < size_bytes:
            data += self._stream.read(size_bytes - len(data))
        data, self._ahead = data[:size_bytes], data[size_bytes:]
        if not self._ahead:
            self._ahead = self._stream.read(PIECE_BYTES)
        return data
