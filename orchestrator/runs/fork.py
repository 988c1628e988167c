"""Forks: a run that takes over the turns of another one, up to a certain turn, and goes on by
itself. Its log begins with what it takes over, so that driving it is driving a run again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import RunSpec

from common.errors import InvalidFieldError, NotFoundError
from orchestrator.errors import ForkTurnUnknownError
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.store import RunStore

_PAGE_EVENTS = 200
_NOT_TAKEN = frozenset(
    {
        *("run_changed", "limit_reached", "child_run_changed"),
        *("sub_call_started", "host_tool_called", "usage_settled"),
    }
)
"""What is the other run's own, or was spent by it."""
_WITH_USAGE = ("model_replied", "model_call_failed", "history_compacted", "sub_call_finished")


@dataclasses.dataclass(frozen=True)
class TakenOver:
    """What a fork takes over."""

    run: str
    """`runs/{run}` that it is forked from."""
    after_turn: int
    """The last turn of that which it has."""
    events: Sequence[RunEvent]
    """The events of those turns, without what they cost."""
    profile_version: str = ""
    """Of the profile that it works with; empty for none."""
    origins: Sequence[str] = ()
    """What the run is below, and what it and those were forked from, `runs/{run}` each: to stop
    one of them is to stop what goes on from it."""

    def begin(self, record: RunRecord) -> RunEvent:
        """Make a new record that of the fork, give the events their places in its log, and return
        the one before them."""
        record.head.forked_from = self.run
        record.head.forked_after_turn = self.after_turn
        first = record.state_event()
        for event in self.events:
            record.progress.last_sequence += 1
            event.sequence = record.progress.last_sequence
            if event.HasField("checkpoint_stored"):
                record.progress.checkpoint_turns.append(event.turn)
        record.progress.turns = self.after_turn
        return first


class Forks:
    """Finds what forks take over."""

    def __init__(self, runs: RunStore) -> None:
        self._runs = runs

    async def taken_over(self, tenant: str, run_id: str, *, after_turn: int) -> TakenOver:
        """Return what a fork takes over that goes on after a turn of a run, in whatever state.

        Raises NotFoundError, InvalidFieldError, and ForkTurnUnknownError where the run has not
        gone on after that turn.
        """
        if after_turn < 1:
            raise InvalidFieldError("after_turn", "must be 1 or larger")
        record = await self._runs.get(tenant, run_id)
        events, newest_turn = await self._events(run_id, after_turn)
        if newest_turn <= after_turn:
            raise ForkTurnUnknownError(record.head.name, after_turn, max(newest_turn - 1, 0))
        return TakenOver(
            record.head.name,
            after_turn,
            events,
            record.head.profile_version,
            await self._origins(tenant, record),
        )

    async def spec(self, tenant: str, run_id: str, changes: RunSpec) -> RunSpec:
        """Return a run's spec with the fields replaced that are set in `changes`, limits one by
        one. A fork is in no conversation, and has no parent. Raises NotFoundError, and
        InvalidFieldError for what a fork cannot change."""
        for field in ("context", "conversation", "profile"):
            if getattr(changes, field):
                raise InvalidFieldError(f"changes.{field}", "must not be set: a fork keeps it")
        record = await self._runs.get(tenant, run_id)
        spec = RunSpec()
        spec.CopyFrom(record.head.spec)
        spec.ClearField("conversation")
        for descriptor, _ in changes.ListFields():
            if descriptor.name != "limits":
                spec.ClearField(descriptor.name)  # type: ignore[arg-type]  # a field's name
        limits = changes.limits
        spec.MergeFrom(changes)
        if limits.HasField("time_max"):
            spec.limits.time_max.CopyFrom(limits.time_max)
        return spec

    async def _origins(self, tenant: str, record: RunRecord) -> list[str]:
        """Return what a run is below or was forked from, and what those are, also runs that are
        deleted, as far as is known."""
        names, due = {record.head.name}, [record.head]
        while due:
            head = due.pop()
            for name in {head.root, head.parent, head.forked_from} - names - {""}:
                names.add(name)
                with contextlib.suppress(NotFoundError):
                    origin = await self._runs.get(tenant, name.removeprefix("runs/"))
                    due.append(origin.head)
        return sorted(names - {record.head.name})

    async def _events(self, run_id: str, after_turn: int) -> tuple[list[RunEvent], int]:
        """Return the events to take over, and the newest turn that was seen beyond them: what is
        told of a turn may come during the next one."""
        taken: list[RunEvent] = []
        newest_turn, after = 0, 0
        while events := await self._runs.events(run_id, after=after, count=_PAGE_EVENTS):
            after = events[-1].sequence
            for event in events:
                newest_turn = max(newest_turn, event.turn)
                if newest_turn > after_turn + 1:
                    return taken, newest_turn
                if event.turn <= after_turn and _is_taken(event):
                    taken.append(_without_cost(event))
        return taken, newest_turn


def _is_taken(event: RunEvent) -> bool:
    """Whether a fork has an event: of sub-calls only those that failed, since a cell that is run
    again gets the others from the gateway's ledger."""
    if event.HasField("sub_call_finished"):
        return event.sub_call_finished.HasField("error")
    return event.WhichOneof("event") not in _NOT_TAKEN


def _without_cost(event: RunEvent) -> RunEvent:
    """Take out what a step cost, and which limit it ran into: both are the other run's."""
    case = event.WhichOneof("event")
    if event.HasField("cell_finished"):
        event.cell_finished.ClearField("limit_reached")
    if case in _WITH_USAGE:
        message = getattr(event, case)
        message.ClearField("usage")
        if case != "sub_call_finished":
            message.ClearField("run_usage")
    return event
