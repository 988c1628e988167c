"""Server-sent events from bytes as they arrive: only the `data` of each event, which is all that
chat streams use. Neither JSON nor the meaning of `[DONE]` is known here.
"""

from __future__ import annotations

import re

EVENT_BYTES_MAX = 4 << 20
_LINE_END = re.compile(rb"\r\n|\n|\r")
_MARK = b"\xef\xbb\xbf"
"""A stream may begin with it."""


class EventTooLargeError(ValueError):
    """One event has more than EVENT_BYTES_MAX bytes."""


class EventParser:
    """Cuts a byte stream into events, wherever the chunks were cut."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of each event that `chunk` completes; raises EventTooLargeError."""
        lines, self._rest = _lines(self._rest + chunk)
        events = self._take(lines)
        self._check_size()
        return events

    def finish(self) -> list[bytes]:
        """Return what the end of the stream completes: some servers leave out the last blank."""
        last, self._rest = self._rest.rstrip(b"\r"), b""
        return self._take([last, b""] if last else [b""])

    def _take(self, lines: list[bytes]) -> list[bytes]:
        events = []
        for line in lines:
            if line:
                field, _, value = line.removeprefix(_MARK).partition(b":")
                if field == b"data":
                    self._data.append(value.removeprefix(b" "))
                    self._data_bytes += len(value)
                    self._check_size()
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data, self._data_bytes = [], 0
        return events

    def _check_size(self) -> None:
        if self._data_bytes + len(self._rest) > EVENT_BYTES_MAX:
            raise EventTooLargeError(f"an event has more than {EVENT_BYTES_MAX} bytes")


def _lines(buffer: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole lines, and what follows the last of them."""
    if b"\r" not in buffer:  # nearly all servers; this takes a third of the time
        *lines, rest = buffer.split(b"\n")
        return lines, rest
    lines, start = [], 0
    for end in _LINE_END.finditer(buffer):
        # A CR at the very end may be half of a CRLF.
        if end[0] == b"\r" and end.end() == len(buffer):
            break
        lines.append(buffer[start : end.start()])
        start = end.end()
    return lines, buffer[start:]
