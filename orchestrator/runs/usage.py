"""What each call took of a run and all below it, from the logs of all of them, summed up by what
is asked for.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import AsyncIterator, Callable, Mapping

from fathom.gateway.v1.generation_pb2 import Usage

from orchestrator.runs.children.store import ChildStore
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.recorded import add_usage
from orchestrator.runs.log.store import RunStore
from orchestrator.runs.log.told_calls import ToldCalls

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


class RunUsage:
    """Sums up usage, of every tenant."""

    def __init__(self, runs: RunStore, children: ChildStore) -> None:
        self._runs = runs
        self._children = children

    async def sums(self, tenant: str, run_id: str, group_by: GroupBy) -> UsageSums:
        """Return what a run and all below it took; raises NotFoundError."""
        sums: dict[int | str, Usage] = {}
        total = Usage()
        async for call in self._calls(tenant, run_id):
            add_usage(sums.setdefault(_KEYS[group_by](call), Usage()), call.usage)
            add_usage(total, call.usage)
        return UsageSums([(str(key), sums[key]) for key in sorted(sums)], total)

    async def _calls(self, tenant: str, run_id: str) -> AsyncIterator[Call]:
        records = await self._children.tree(tenant, run_id)
        turns = await self._children.turns_below(tenant, run_id)
        for record in records:
            async for call in self._calls_of(record, turns.get(record.run_id)):
                yield call

    async def _calls_of(self, record: RunRecord, turn: int | None) -> AsyncIterator[Call]:
        after, calls = 0, ToldCalls(record.head.spec)
        while True:
            events = await self._runs.events(record.run_id, after=after, count=_PAGE_EVENTS)
            for event in events:
                for told in calls.take(event):
                    yield Call(
                        run=record.head.name,
                        depth=record.head.depth,
                        turn=told.turn if turn is None else turn,
                        tier=told.tier,
                        model=told.model,
                        usage=told.usage,
                    )
            if len(events) < _PAGE_EVENTS:
                return
            after = events[-1].sequence
