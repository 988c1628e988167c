"""What happens in one live run, written down: each step's event, and the run's own counts."""

from __future__ import annotations

from fathom.gateway.v1.generation_pb2 import Usage
from fathom.orchestrator.v1.run_event_pb2 import LimitReached, Notice, RunEvent
from fathom.orchestrator.v1.run_pb2 import Run

from orchestrator.runs.event_log import EventLog
from orchestrator.runs.record import RunRecord


class RunJournal:
    """The journal of one run."""

    def __init__(self, record: RunRecord, log: EventLog) -> None:
        self._record = record
        self._log = log

    @property
    def run(self) -> Run:
        """The changing part of the run; changes are stored with the next event."""
        return self._record.progress

    def add(self, event: RunEvent, *, may_wait: bool = False) -> None:
        """Write an event down. One that `may_wait` is stored within some 20 ms, with others."""
        self._log.append(self._record, self._record.next_event(event), may_wait=may_wait)

    def add_state(self) -> None:
        """Write down that the run's state changed, as it is set."""
        self._log.append(self._record, self._record.state_event())

    def set_usage(self, usage: Usage) -> None:
        """Set the run's running total."""
        self.run.usage.CopyFrom(usage)

    def notice(self, kind: str, text: str, *, turn: int = 0, cell: int = 0) -> None:
        """Write down something that a person should know."""
        notice = Notice(kind=kind, text=text)
        self.add(RunEvent(turn=turn, cell=cell, notice=notice), may_wait=True)

    def limit_reached(self, limit: str, *, value: int, spent: int, turn: int) -> None:
        """Write down that a limit stopped the work."""
        reached = LimitReached(limit=limit, value=value, spent=spent)
        self.add(RunEvent(turn=turn, limit_reached=reached))
