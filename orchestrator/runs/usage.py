"""What each call took of a run and all below it, from the logs of all of them and what became known
after their ends, summed up by what is asked for.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from fathom.gateway.v1.generation_pb2 import Usage
from fathom.orchestrator.v1.run_event_pb2 import RunEvent, UsageSettled

from orchestrator.runs.amounts import add_usage
from orchestrator.runs.children.store import ChildStore
from orchestrator.runs.late_usage import LateUsage
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.store import RunStore
from orchestrator.runs.log.told_calls import ToldCall, ToldCalls

_PAGE_EVENTS = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """A call to a model that took something, or several that were cut off."""

    run: str
    """`runs/{run}` that made it."""
    depth: int
    """Of that run."""
    turn: int
    """Of the run that is asked about: a child's calls are of the turn that started it."""
    tier: str
    """The tier that was asked."""
    model: str
    """The deployment that answered; empty where none did."""
    usage: Usage
    """What it took."""


class GroupBy(enum.Enum):
    """What calls are summed up by."""

    NOTHING = "nothing"
    TURN = "turn"
    DEPTH = "depth"
    MODEL = "model"
    TIER = "tier"
    RUN = "run"


_KEYS: Mapping[GroupBy, Callable[[Call], int | str]] = {
    GroupBy.NOTHING: lambda _: "",
    GroupBy.TURN: lambda call: call.turn,
    GroupBy.DEPTH: lambda call: call.depth,
    GroupBy.MODEL: lambda call: call.model,
    GroupBy.TIER: lambda call: call.tier,
    GroupBy.RUN: lambda call: call.run,
}


@dataclasses.dataclass(frozen=True)
class UsageSums:
    """Calls summed up."""

    groups: list[tuple[str, Usage]]
    """Key and sum of each group, in the order of the keys."""
    total: Usage
    """Of all of them."""
    is_incomplete: bool
    """Whether some calls of runs that have ended are missing."""


class RunUsage:
    """Sums up usage, of every tenant."""

    def __init__(self, runs: RunStore, children: ChildStore, late: LateUsage) -> None:
        self._runs = runs
        self._children = children
        self._late = late

    async def sums(self, tenant: str, run_id: str, group_by: GroupBy) -> UsageSums:
        """Return what a run and all below it took; raises NotFoundError."""
        sums: dict[int | str, Usage] = {}
        total = Usage()
        records = await self._children.tree(tenant, run_id)
        async for call in self._calls(tenant, run_id, records):
            add_usage(sums.setdefault(_KEYS[group_by](call), Usage()), call.usage)
            add_usage(total, call.usage)
        is_incomplete = any(record.progress.usage_incomplete for record in records)
        return UsageSums([(str(key), sums[key]) for key in sorted(sums)], total, is_incomplete)

    async def _calls(
        self, tenant: str, run_id: str, records: Sequence[RunRecord]
    ) -> AsyncIterator[Call]:
        turns = await self._children.turns_below(tenant, run_id)
        late = await self._late.settled([record.run_id for record in records])
        for record in records:
            async for told in self._told_of(record, late.get(record.run_id)):
                yield Call(
                    run=record.head.name,
                    depth=record.head.depth,
                    turn=turns.get(record.run_id, told.turn),
                    tier=told.tier,
                    model=told.model,
                    usage=told.usage,
                )

    async def _told_of(
        self, record: RunRecord, late: UsageSettled | None
    ) -> AsyncIterator[ToldCall]:
        """Yield what a run's events tell, and what became known after its end."""
        after, calls, is_more = 0, ToldCalls(record.head.spec), True
        while is_more:
            events = await self._runs.events(record.run_id, after=after, count=_PAGE_EVENTS)
            for event in events:
                for told in calls.take(event):
                    yield told
                after = event.sequence
            is_more = len(events) == _PAGE_EVENTS
        if late is not None:
            for told in calls.take(RunEvent(usage_settled=late)):
                yield told
