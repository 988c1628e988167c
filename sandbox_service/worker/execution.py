"""One execution inside a worker: its time, its output, and the reasons to stop it.

Used by the session's own thread, but for `interrupt`, which any thread may call.
"""

from __future__ import annotations

import codecs
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from sandbox_service.frames import OUTPUT_TEXT_MAX
from sandbox_service.limits import Limits
from sandbox_service.worker.surroundings import HostSurroundings, Surroundings
from sandbox_service.worker.turns import Turn, Turns

_FLUSH_BYTES = 16 << 10
_SWITCHES_MAX = 500
"""Changes of stream that are kept in their order; after these, each stream is joined alone."""
_SHORT_SLEEP_S = 0.001
"""Not worth sending output before: the next tick does."""
Stream = Literal["stdout", "stderr"]
_STREAMS: dict[int, Stream] = {1: "stdout", 2: "stderr"}


class StopError(Exception):
    """The execution must end here: its time is up, or someone interrupted it."""

    def __init__(self, ending: Literal["timed_out", "interrupted"]) -> None:
        super().__init__(ending)
        self.ending = ending


class Execution:
    """What is measured and limited while a cell runs."""

    def __init__(
        self,
        number: int,
        limits: Limits,
        send: Callable[[Stream, str], None],
        surroundings: Surroundings | None = None,
        turns: Turns | None = None,
    ) -> None:
        """Begin; without `surroundings` they are the host's own, without `turns` it is alone."""
        self.number = number
        self.surroundings = surroundings or HostSurroundings()
        """Time and randomness as the code finds them."""
        self.turn = Turn(turns or Turns(1))
        """Its share of the processors."""
        self.output = OutputBuffer(limits.output_bytes_max, limits.output_lines_max, send)
        self.wait_time_s = 0.0
        """Spent waiting for sub-calls so far."""
        self._time_max_s = limits.execute_time_max_s
        self._started = time.monotonic()
        self._interrupted = threading.Event()

    @property
    def own_time_s(self) -> float:
        """Wall time so far, waits for sub-calls left out."""
        return max(time.monotonic() - self._started - self.wait_time_s, 0.0)

    def interrupt(self) -> None:
        """Stop at the next tick."""
        self._interrupted.set()
        self.turn.hurry()

    @property
    def is_interrupted(self) -> bool:
        """Whether it was asked to stop."""
        return self._interrupted.is_set()

    def on_tick(self) -> None:
        """Send what is waiting, let others run; raises StopError when it is time to stop."""
        self.output.flush()
        self._stop_in_time()
        self.turn.on_tick()
        self._stop_in_time()

    def _stop_in_time(self) -> None:
        if self._interrupted.is_set():
            raise StopError("interrupted")
        if self.own_time_s > self._time_max_s:
            raise StopError("timed_out")

    def sleep(self, duration_s: float) -> None:
        """Let time pass, at most until it is time to stop."""
        duration_s = self.surroundings.sleep(duration_s)
        if duration_s > _SHORT_SLEEP_S:
            self.output.flush()
        self._stop_in_time()
        with self.turn.waiting():
            self._interrupted.wait(min(duration_s, self._time_max_s - self.own_time_s + 0.001))
        self._stop_in_time()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block's time as waiting; raises StopError where there is none left.

        Nothing is held back: the peer takes no output while it is being waited for.
        """
        self.output.finish()
        self._stop_in_time()
        started = time.monotonic()
        try:
            with self.turn.waiting():
                yield
        finally:
            self.wait_time_s += time.monotonic() - started


class OutputBuffer:
    """Output of one execution: joined into pieces worth sending, cut at the limits."""

    def __init__(self, bytes_max: int, lines_max: int, send: Callable[[Stream, str], None]) -> None:
        self.written_bytes = 0
        """Bytes that the code wrote, kept or dropped."""
        self.dropped_bytes = 0
        """Bytes dropped at the limits."""
        self._bytes_left = bytes_max
        self._lines_left = lines_max
        self._send = send
        self._stream: Stream = "stdout"
        self._switches = 0
        self._pending: dict[Stream, bytearray] = {name: bytearray() for name in _STREAMS.values()}
        self._decoders = {
            name: codecs.getincrementaldecoder("utf-8")("replace") for name in _STREAMS.values()
        }

    @property
    def room_bytes(self) -> int:
        """Bytes that are still kept, if there are not too many lines in them."""
        return self._bytes_left if self._lines_left else 0

    def write(self, stream_number: int, data: bytes, size_bytes: int) -> None:
        """Take a write: `data` is the part of its `size_bytes` that there was room for."""
        stream = _STREAMS[stream_number]
        if stream != self._stream:
            self._switches += 1
            if self._switches <= _SWITCHES_MAX:
                self.flush()
            self._stream = stream
        data = self._within_lines(data)
        self.written_bytes += size_bytes
        self.dropped_bytes += size_bytes - len(data)
        # What comes after a gap is never kept.
        self._bytes_left = self._bytes_left - len(data) if len(data) == size_bytes else 0
        self._pending[stream] += data
        if len(self._pending[stream]) >= _FLUSH_BYTES:
            self.flush()

    def _within_lines(self, data: bytes) -> bytes:
        """Return the part of the data that ends with the last line that is kept."""
        lines = data.count(b"\n")
        if lines < self._lines_left:
            self._lines_left -= lines
            return data
        end = 0
        for _ in range(self._lines_left):
            end = data.index(b"\n", end) + 1
        self._lines_left = 0
        return data[:end]

    def flush(self) -> None:
        """Send what is waiting, but for a character whose end has not come yet."""
        for stream, pending in self._pending.items():
            if pending:
                self._emit(stream, self._decoders[stream].decode(bytes(pending)))
                pending.clear()

    def finish(self) -> None:
        """Send the rest; a character cut in two by the limit is left out."""
        self.flush()
        if not self.dropped_bytes:
            for stream, decoder in self._decoders.items():
                self._emit(stream, decoder.decode(b"", final=True))

    def _emit(self, stream: Stream, text: str) -> None:
        for start in range(0, len(text), OUTPUT_TEXT_MAX):
            self._send(stream, text[start : start + OUTPUT_TEXT_MAX])
