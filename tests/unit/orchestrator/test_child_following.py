"""A call that waits for a child run: what it tells, and what it costs while nothing happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec

from common.run_token import RunToken
from orchestrator.runs.children.child_runs import ChildOrder, ChildRuns
from orchestrator.runs.children.store import Known
from orchestrator.runs.log.record import RunRecord
from tests.support.eventually import eventually

TOKEN = RunToken(
    tenant="t",
    run="runs/root",
    depth=0,
    tiers=(),
    tokens_max=1,
    cost_usd_nanos_max=1,
    tokens_spent=0,
    cost_usd_nanos_spent=0,
    expires_at=0.0,
)
ORDER = ChildOrder(request_id="root/1/1/c1", question="q", given=None, limits=RunSpec().limits)


class Child:
    """A child run that is under way, and whose events a test tells; it counts who looks at it."""

    def __init__(self) -> None:
        self.record = RunRecord(Run(name="runs/child"), Run(state=Run.STATE_RUNNING))
        self.events: asyncio.Queue[RunEvent | None] = asyncio.Queue()
        self.looks = 0

    async def find(self, _tenant: str, _request_id: str) -> Known:
        return Known(run_id="child", root_id="root")

    async def get(self, _tenant: str, _run_id: str) -> RunRecord:
        self.looks += 1
        return self.record

    async def follow(self, _run_id: str, *, after: int) -> AsyncIterator[RunEvent]:
        while event := await self.events.get():
            yield event


async def test_a_call_that_waits_looks_at_its_child_only_where_something_has_happened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hundreds of them wait for minutes, and each look is one at the database."""
    monkeypatch.setattr("orchestrator.runs.children.child_runs._TOLD_S", 0.001)
    child, nothing = Child(), Any
    fake: Any = child
    runs = ChildRuns(fake, fake, nothing, fake, nothing)  # type: ignore[arg-type]
    told: list[int] = []

    async def wait() -> None:
        async for run in runs.run(TOKEN, ORDER):
            told.append(run.usage.cost_usd_nanos)  # noqa: PERF401 - seen while it goes on

    waiting = asyncio.create_task(wait())
    await eventually(lambda: told == [0])
    child.record.progress.usage.cost_usd_nanos = 7
    child.events.put_nowait(RunEvent(sequence=2))
    await eventually(lambda: told == [0, 7])
    child.events.put_nowait(RunEvent(sequence=3))
    await eventually(lambda: child.looks == 3)
    child.record.progress.state = Run.STATE_ANSWERED
    child.events.put_nowait(None)
    await waiting

    assert told == [0, 7, 7]
    assert child.looks == 4  # looking every time made dozens
