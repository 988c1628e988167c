"""A second look at what runs took that were disturbed or cut off, once they have ended: calls that
were still under way then, or a gateway that was away, would else never be counted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import grpc
from fathom.orchestrator.v1.run_event_pb2 import RunEvent, UsageSettled

from common.errors import NotFoundError, ReceivedError
from orchestrator.runs.children.lineage import Lineage
from orchestrator.runs.late_usage import DueRun, LateUsage
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.recorded import RecordedEvents
from orchestrator.runs.settlement import Settlement

_AT_ONCE = 10
_CLAIM_S = 20.0
"""How long a process has for those that it looks at; one that died is followed after that."""
_PAUSES_S = (10.0, 3600.0)
"""Until a run is looked at again, the shortest and the longest: a quarter of the time since its
end lies between."""
_GIVEN_UP_S = 30 * 86_400.0
"""The ledger keeps no call for longer."""
_GRACE_S = 0.3
_TIMEOUT_S = 2.0
_log = logging.getLogger(__name__)


class RunLogs(Protocol):
    """Where what happened in runs is read."""

    def past(self, run_id: str) -> AsyncIterator[RunEvent]:
        """Yield the events of a run."""


class Lineages(Protocol):
    """Knows what is above runs."""

    async def lineage(self, record: RunRecord) -> Lineage | None:
        """Return what is above a run; None for a run that has no parent. Raises NotFoundError."""


class UsageSweep:
    """Has usage settled."""

    def __init__(
        self,
        late: LateUsage,
        settlement: Settlement,
        logs: RunLogs,
        lineages: Lineages,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._late = late
        self._settlement = settlement
        self._logs = logs
        self._lineages = lineages
        self._now_us = now_us

    async def sweep_all(self) -> None:
        """Sweep until nothing is due."""
        while await self.sweep() == _AT_ONCE:
            pass

    async def sweep(self) -> int:
        """Look at some runs that are due; return how many."""
        now_us = self._now_us()
        until_us = now_us + int(_CLAIM_S * 1e6)
        due = await self._late.claim(now_us=now_us, until_us=until_us, count=_AT_ONCE)
        is_away = False
        for each in due:
            try:
                is_done = not is_away and await self._look_at(each)
            except ReceivedError as error:
                _log.warning("usage was not settled", extra={"reason": error.reason_name})
                is_away = error.code in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                )
                is_done = False
            if not is_done:
                at_us = self._next_us(each.record)
                await self._late.look_again(each.record.run_id, at_us=at_us)
        return 0 if is_away else len(due)

    async def _look_at(self, due: DueRun) -> bool:
        """Settle a run's usage; return whether it is settled."""
        if not await self._late.is_at_rest(due):
            return False
        settled = UsageSettled()
        if due.record.progress.HasField("start_time"):
            settled = await self._missing(due)
        if settled.incomplete:
            return False
        added = await self._late.add(due, settled)
        if added is not None and added.cost_usd_nanos:
            facts = {"run": due.record.head.name, "cost_usd_nanos": added.cost_usd_nanos}
            _log.info("a run's usage was settled after its end", extra=facts)
        return True

    async def _missing(self, due: DueRun) -> UsageSettled:
        record = due.record
        recorded = RecordedEvents(record.head.spec)
        async for event in self._logs.past(record.run_id):
            recorded.take(event)
        try:
            lineage = await self._lineages.lineage(record)
        except NotFoundError:  # deleted just then
            return UsageSettled()
        return await self._settlement.missing(
            due.tenant, record, recorded, lineage, grace_s=_GRACE_S, timeout_s=_TIMEOUT_S
        )

    def _next_us(self, record: RunRecord) -> int | None:
        """Return when a run is looked at again; None for never."""
        now_us = self._now_us()
        age_s = (now_us - record.progress.end_time.ToMicroseconds()) / 1e6
        if record.progress.HasField("end_time") and age_s > _GIVEN_UP_S:
            return None
        shortest_s, longest_s = _PAUSES_S
        return now_us + int(min(max(age_s / 4, shortest_s), longest_s) * 1e6)
