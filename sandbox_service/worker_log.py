"""What a worker writes to its standard error, carried into the service's log.

A worker never has the log itself: whoever took it over could wipe that, or write lines of others
into it. What comes through here is quoted, marked as the worker's, and limited.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

_log = logging.getLogger(__name__)
_READ_BYTES = 16 << 10
_PAUSE_S = 0.1
"""Between readings, so that a worker that never stops writing takes no more than its share."""
_BYTES_MAX = 256 << 10
"""Of one worker; what it writes beyond that is dropped."""
_LINE_CHARACTERS = 2_000


class WorkerLog:
    """Reads one worker's standard error until that ends, or is closed."""

    def __init__(self, fd: int, pid: int) -> None:
        """Take over the reading end of a pipe; call `start` where a loop runs."""
        self._fd = fd
        self._pid = pid
        self._rest = b""
        self._left_bytes = _BYTES_MAX
        self._pause: asyncio.TimerHandle | None = None
        os.set_blocking(fd, False)

    def start(self) -> None:
        """Begin to read."""
        asyncio.get_running_loop().add_reader(self._fd, self._on_readable)

    def close(self) -> None:
        """Log what the worker wrote last, and read no more; may be called again."""
        if self._fd < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._fd)
        self._note(self._read() + b"\n")
        os.close(self._fd)
        self._fd = -1

    def _on_readable(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._fd)
        if data := self._read():
            self._note(data)
            self._pause = loop.call_later(_PAUSE_S, self.start)

    def _read(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._fd, _READ_BYTES)
        return b""

    def _note(self, data: bytes) -> None:
        if not self._left_bytes:
            return
        kept = data[: self._left_bytes]
        self._left_bytes -= len(kept)
        *lines, self._rest = (self._rest + kept).split(b"\n")
        if not self._left_bytes:
            lines.append(b"(no more of what it says is kept)")
        for line in lines:
            if line:
                text = line.decode("utf-8", "replace")[:_LINE_CHARACTERS]
                _log.warning("worker %d says: %r", self._pid, text)
