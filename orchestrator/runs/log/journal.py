"""What happens in one live run, written down: each step's event, and the run's own counts.

The journal knows what the log has of the run. Where the run is driven again, what is there is not
done and not written a second time.
"""

from __future__ import annotations

import collections
from collections.abc import Awaitable, Callable
from typing import Protocol

from fathom.gateway.v1.generation_pb2 import Usage
from fathom.orchestrator.v1.run_event_pb2 import (
    CheckpointStored,
    LimitReached,
    Notice,
    RunEvent,
    UsageSettled,
)
from fathom.orchestrator.v1.run_pb2 import Run

from orchestrator.runs.amounts import add_usage
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.recorded import (
    Key,
    Place,
    RecordedEvents,
    RecordedSubCalls,
    key_of,
    noticed,
)
from orchestrator.runs.log.steps import Steps


class Log(Protocol):
    """Where events are stored."""

    def append(self, record: RunRecord, event: RunEvent, *, may_wait: bool = False) -> None:
        """Add an event that has its sequence."""

    async def stored(self, run_id: str) -> None:
        """Return once all that was appended of a run is stored."""


class RunJournal:
    """The journal of one run, while it is driven."""

    def __init__(self, record: RunRecord, log: Log, recorded: RecordedEvents, steps: Steps) -> None:
        self._record = record
        self._log = log
        self._recorded = recorded
        self._steps = steps
        self._told: collections.Counter[Key] = collections.Counter()
        self._newest_turn_before = recorded.newest_turn

    @property
    def run(self) -> Run:
        """The changing part of the run; changes are stored with the next event."""
        return self._record.progress

    @property
    def recorded(self) -> RecordedEvents:
        """What the log has, with what was added since."""
        return self._recorded

    async def step(
        self,
        name: str,
        key: Key,
        work: Callable[[], Awaitable[RunEvent]],
        *,
        is_kept: Callable[[RunEvent], bool] | None = None,
    ) -> RunEvent:
        """Return the event that tells what a step came to: the recorded one, else that of `work`,
        which is stored by then.

        `key` is the event's. The n-th step of a key has the n-th event of it. `is_kept` tells of
        events that others keep too: to do the step again gives the same, and costs nothing. What
        follows from such a one need not wait for its commit; it is stored with or before the next.
        """
        ordinal = self._told[key]
        self._told[key] += 1

        async def once() -> int:
            event = self._recorded.find(key, ordinal)
            if event is None:
                event = await work()
                assert key_of(event) == key
                self._append(event, may_wait=False)
                if is_kept is None or not is_kept(event):
                    await self._log.stored(self._record.run_id)
            return event.sequence

        await self._steps.step(name, once)
        event = self._recorded.find(key, ordinal)
        if event is None:
            # The engine remembers a step that the log has lost, as after a power cut or from an
            # older backup: the log counts.
            await once()
            event = self._recorded.find(key, ordinal)
            assert event is not None, "a step that was done just now is in the log"
        return event

    def add(self, event: RunEvent, *, may_wait: bool = False) -> None:
        """Write an event down, unless this is where the log has it. One that `may_wait` is stored
        within some 20 ms, with others."""
        key = key_of(event)
        self._told[key] += 1
        if self._told[key] > self._recorded.count(key):
            self._append(event, may_wait=may_wait)

    def has(self, event: RunEvent) -> bool:
        """Whether the log has an event about the same."""
        return self._recorded.count(key_of(event)) > 0

    def add_once(self, event: RunEvent, *, may_wait: bool = False) -> None:
        """Write an event down where the log has none about the same, wherever that is."""
        if not self.has(event):
            self._append(event, may_wait=may_wait)

    def add_state(self) -> None:
        """Write down that the run's state changed, as it is set."""
        event = self._record.state_event()
        self._recorded.take(event)
        self._log.append(self._record, event)

    def set_usage(self, usage: Usage) -> None:
        """Set the run's running total."""
        self.run.usage.CopyFrom(usage)

    def settle_usage(self, settled: UsageSettled) -> None:
        """Add what the log misses of the run's calls; the running total is then all that the log
        tells."""
        self.run.usage_incomplete |= settled.incomplete
        if settled.usages or settled.incomplete:
            for each in settled.usages:
                add_usage(settled.run_usage, each.usage)
            add_usage(settled.run_usage, self._recorded.usage)
            self._append(RunEvent(usage_settled=settled), may_wait=True)
        self.set_usage(self._recorded.usage)

    def notice(self, kind: str, text: str, *, turn: int = 0, cell: int = 0) -> None:
        """Write down something that a person should know."""
        notice = Notice(kind=kind, text=text)
        self.add(RunEvent(turn=turn, cell=cell, notice=notice), may_wait=True)

    def notice_of(self, kind: str, *, turn: int) -> str:
        """Return what the log says of a kind for a turn; empty for nothing."""
        found = self._recorded.find(noticed(kind, turn), 0)
        return found.notice.text if found is not None else ""

    def limit_reached(self, limit: str, *, value: int, spent: int, turn: int) -> None:
        """Write down that a limit stopped the work."""
        reached = LimitReached(limit=limit, value=value, spent=spent)
        self.add(RunEvent(turn=turn, limit_reached=reached))

    def sub_calls(self, place: Place) -> RecordedSubCalls:
        """Return the sub-calls of a cell that the log has."""
        return self._recorded.sub_calls(place)

    def limit_after(self, turn: int) -> LimitReached | None:
        """Return the limit that the log says was reached in or right after a turn."""
        return self._recorded.limit_at(turn)

    def checkpoint_after(self, turn: int) -> CheckpointStored | None:
        """Return the checkpoint that the log has of a turn's end."""
        return self._recorded.checkpoint_at(turn)

    def went_beyond(self, turn: int) -> bool:
        """Whether the run had gone on to a later turn when it was driven before."""
        return self._newest_turn_before > turn

    def _append(self, event: RunEvent, *, may_wait: bool) -> None:
        event = self._record.next_event(event)
        self._recorded.take(event)
        self._log.append(self._record, event, may_wait=may_wait)
