"""A run as it is kept: a head that never changes, and the progress that each step changes.

They are two parts of one Run message: the head can hold a question of 64 KiB, which is not to be
written again with every event.
"""

from __future__ import annotations

import dataclasses
import secrets
import time

from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec

TERMINAL_STATES = frozenset(
    {Run.STATE_ANSWERED, Run.STATE_PARTIAL, Run.STATE_FAILED, Run.STATE_CANCELLED}
)
_RANDOM_BYTES = 8


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One run. `progress` is mutable and belongs to whoever drives the run."""

    head: Run
    """Name, spec, depth and create_time."""
    progress: Run
    """Everything else."""

    @classmethod
    def queued(cls, spec: RunSpec) -> RunRecord:
        """Make a run that has just been accepted."""
        head = Run(name=f"runs/{_new_id()}", spec=spec)
        head.root = head.name
        head.create_time.GetCurrentTime()
        return cls(head, Run(state=Run.STATE_QUEUED))

    @property
    def run_id(self) -> str:
        """The id in the name."""
        return self.head.name.removeprefix("runs/")

    @property
    def ends_s(self) -> float:
        """When the run's wall time is over, in Unix time; infinity before it has begun."""
        limits = self.head.spec.limits
        if not self.progress.HasField("start_time") or not limits.HasField("time_max"):
            return float("inf")
        started_ns = self.progress.start_time.ToNanoseconds()
        return (started_ns + limits.time_max.ToNanoseconds()) / 1e9

    def whole(self) -> Run:
        """Return a copy of the run in one message."""
        run = Run()
        run.CopyFrom(self.head)
        run.MergeFrom(self.progress)
        return run

    def next_event(self, event: RunEvent) -> RunEvent:
        """Give an event the next sequence and the time, and return it."""
        self.progress.last_sequence += 1
        event.sequence = self.progress.last_sequence
        event.event_time.FromNanoseconds(time.time_ns())  # GetCurrentTime goes by way of datetime
        return event

    def state_event(self) -> RunEvent:
        """Return the next event, telling of the run's state as it is set."""
        event = self.next_event(RunEvent())
        event.run_changed.CopyFrom(self.whole())
        return event


def ends_run(event: RunEvent) -> bool:
    """True for the last event of a run."""
    return event.HasField("run_changed") and event.run_changed.state in TERMINAL_STATES


def _new_id() -> str:
    """Return an id that sorts by the time it was made, to the millisecond."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(_RANDOM_BYTES)}"
