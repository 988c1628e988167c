"""Pieces of code that a run has executed: what it takes to run them again, with the same effect
and at no cost.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

from fathom.orchestrator.v1.run_event_pb2 import ExecutionRecord
from fathom.sandbox.v1.execution_pb2 import ExecutionEvent, ExecutionResult
from google.rpc.status_pb2 import Status

from orchestrator.runs.log.recorded import Place

_DIGEST_BYTES = 16
_FAILURES_MAX = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionNature:
    """What makes a session do the same whenever it is made."""

    clock_ns: int
    """What its clocks show at first, in nanoseconds of Unix time."""
    seed: int
    """Of all its randomness."""

    @classmethod
    def of_run(cls, run_id: str, *, started_ns: int) -> SessionNature:
        """Return that of a run's session; each run has a seed of its own."""
        digest = hashlib.blake2b(run_id.encode(), digest_size=8).digest()
        return cls(clock_ns=started_ns, seed=int.from_bytes(digest, "big", signed=True))

    @classmethod
    def of_record(cls, record: ExecutionRecord) -> SessionNature:
        """Return that of the session in which something was executed."""
        return cls(clock_ns=record.clock_time.ToNanoseconds(), seed=record.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PastExecution:
    """An execution whose effects the session has."""

    place: Place
    """Turn and cell."""
    code: str
    """Python source."""
    ending: str
    """As in CellFinished; empty where that is not known."""
    record: ExecutionRecord
    """Where and how it ran."""
    sub_calls: int
    """Sub-calls that it made, with those of its child runs."""
    failed_sub_calls: Mapping[int, Status]
    """Those that failed, by their position in it, from 1."""


class Transcript:
    """What an execution writes and is answered, while it runs."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        self._first = 0
        self.session_execution = 0
        """Position among the session's executions; 0 before it begins."""
        self.sub_calls = 0
        """Sub-calls made, with those of child runs."""
        self.failed_sub_calls: dict[int, Status] = {}
        """Those that failed, by position."""

    def take(self, event: ExecutionEvent) -> None:
        """Note an event."""
        if event.HasField("start"):
            self.session_execution = event.start.execution
        elif event.HasField("output"):
            self._digest.update(event.output.text.encode())
        elif event.HasField("sub_call_started"):
            self._first = self._first or event.sub_call_started.sub_call
            self.sub_calls += 1
        elif event.HasField("child_run_finished"):
            self.sub_calls += event.child_run_finished.run.sub_calls
        elif event.HasField("sub_call_finished") and event.sub_call_finished.HasField("error"):
            position = event.sub_call_finished.sub_call - self._first + 1
            if len(self.failed_sub_calls) < _FAILURES_MAX:
                self.failed_sub_calls[position] = event.sub_call_finished.error

    @property
    def output_digest(self) -> bytes:
        """Digest of all that was written."""
        return self._digest.digest()


def ending_word(result: ExecutionResult) -> str:
    """Return how an execution ended, as it stands in CellFinished."""
    return ExecutionResult.Ending.Name(result.ending).removeprefix("ENDING_")
