"""Server-sent events from bytes as they arrive: only the `data` of each event, which is all that
chat streams use. Neither JSON nor the meaning of `[DONE]` is known here.
"""

from __future__ import annotations

import re

EVENT_BYTES_MAX = 4 << 20
_LINE_END = re.compile(rb"\r\n|\n|\r")


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
        buffer, self._rest = self._rest + chunk, b""
        events: list[bytes] = []
        start = 0
        for end in _LINE_END.finditer(buffer):
            # A CR at the very end may be half of a CRLF.
            if end[0] == b"\r" and end.end() == len(buffer):
                break
            events.extend(self._take(buffer[start : end.start()]))
            start = end.end()
        self._rest = buffer[start:]
        self._check_size()
        return events

    def finish(self) -> list[bytes]:
        """Return what the end of the stream completes: some servers leave out the last blank."""
        events = [*self._take(self._rest.rstrip(b"\r")), *self._take(b"")]
        self._rest = b""
        return events

    def _take(self, line: bytes) -> list[bytes]:
        if line:
            field, _, value = line.removeprefix(b"\xef\xbb\xbf").partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
                self._data_bytes += len(value)
                self._check_size()
            return []
        event, self._data, self._data_bytes = self._data, [], 0
        return [b"\n".join(event)] if event else []

    def _check_size(self) -> None:
        if self._data_bytes + len(self._rest) > EVENT_BYTES_MAX:
            raise EventTooLargeError(f"an event has more than {EVENT_BYTES_MAX} bytes")
