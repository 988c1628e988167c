"""What calls took that became known after a run's end, over the real service."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from fathom.gateway.v1.gateway_service_pb2 import SettleCallsResponse
from fathom.orchestrator.v1 import operations_service_pb2 as operations_pb
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.operations_service_pb2_grpc import OperationsServiceStub
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Run
from sqlalchemy import select

from common.config import Secret
from common.database import Database
from common.run_token import RUN_TOKEN_METADATA, RunToken, RunTokenSigner
from orchestrator import tables
from orchestrator.tables import MIGRATIONS
from tests.support.ended_runs import away, booked
from tests.support.eventually import eventually
from tests.support.fake_gateway import TOKEN_KEY
from tests.support.orchestrator import TIMEOUT_S, Stack, orchestrator


async def test_a_gateway_that_comes_back_completes_what_a_run_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the real service: the run says that something is missing, and then it does not."""
    monkeypatch.setattr("orchestrator.assembly._BOOKING_S", 0.0)
    monkeypatch.setattr("orchestrator.operations.assembly._USAGE_EVERY_S", 0.1)
    monkeypatch.setattr("orchestrator.operations.usage_sweep._PAUSES_S", (0.1, 0.1))
    async with orchestrator(tmp_path, executor_lease_s=0.1) as stack:
        stack.gateway.settle_failure = away()
        stack.gateway.replies = ["```repl\nhang()\n```"]
        run = await stack.create()
        await eventually(lambda: bool(stack.sandbox.executed))
        await stack.runs.CancelRun(pb.CancelRunRequest(name=run.name), timeout=TIMEOUT_S)
        ended = (await stack.watch(run))[-1].run_changed
        assert ended.usage_incomplete
        usage = await usage_of(stack, run)
        assert (usage.total, usage.incomplete) == (ended.usage, True)

        run_id = run.name.removeprefix("runs/")
        stack.gateway.settled = SettleCallsResponse(calls=[booked(run_id, 9, 700)])
        stack.gateway.settle_failure = None

        async def is_settled() -> bool:
            return not (await get(stack, run)).usage_incomplete

        await eventually(is_settled)
        settled = await get(stack, run)
        assert settled.usage.cost_usd_nanos == ended.usage.cost_usd_nanos + 700
        usage = await usage_of(stack, run)
        assert (usage.total, usage.incomplete) == (settled.usage, False)
        assert (await stack.watch(run))[-1].run_changed == ended
        check = await OperationsServiceStub(stack.channel).VerifyAuditLog(
            operations_pb.VerifyAuditLogRequest(), timeout=TIMEOUT_S
        )
        assert not check.problems


async def test_a_call_of_a_turn_that_no_event_tells_is_counted(tmp_path: Path) -> None:
    """The call of the first turn is made while its event is being stored: where the process dies
    between, and the run is called off meanwhile, the ledger alone knows of it."""
    async with orchestrator(tmp_path) as stack:
        stack.gateway.hold.clear()
        run = await stack.create()
        await asyncio.wait_for(stack.gateway.asked.wait(), TIMEOUT_S)
    run_id = run.name.removeprefix("runs/")
    await forget_turns(tmp_path, run_id)

    async with orchestrator(tmp_path, runs_running_max=0) as stack:
        stack.gateway.settled = SettleCallsResponse(calls=[booked(run_id, 1, 700)])
        await stack.runs.CancelRun(pb.CancelRunRequest(name=run.name), timeout=TIMEOUT_S)
        ended = (await stack.watch(run))[-1].run_changed

    assert (ended.state, ended.usage.cost_usd_nanos) == (Run.STATE_CANCELLED, 700)


async def test_a_run_that_was_never_driven_asks_for_nothing(tmp_path: Path) -> None:
    """Whoever calls many waiting runs off waits for no gateway."""
    async with orchestrator(tmp_path, runs_running_max=0) as stack:
        stack.gateway.settle_failure = away()
        run = await stack.create()
        await stack.runs.CancelRun(pb.CancelRunRequest(name=run.name), timeout=TIMEOUT_S)
        ended = (await stack.watch(run))[-1].run_changed

    assert (ended.state, ended.usage_incomplete) == (Run.STATE_CANCELLED, False)


async def forget_turns(folder: Path, run_id: str) -> None:
    """Leave of a run's log what was stored before its first turn."""
    database = await Database.open(f"sqlite+aiosqlite:///{folder}/orchestrator.sqlite", MIGRATIONS)
    runs, events = tables.runs, tables.run_events.c
    async with database.writing() as connection:
        query = select(events.sequence, events.event).where(events.run_id == run_id)
        log = [
            (row.sequence, RunEvent.FromString(row.event))
            for row in await connection.execute(query.order_by(events.sequence))
        ]
        first = next(sequence for sequence, event in log if event.turn)
        (kept,) = (event.run_changed for sequence, event in log if sequence == first - 1)
        assert kept.state == Run.STATE_RUNNING
        later = (events.run_id == run_id) & (events.sequence >= first)
        await connection.execute(tables.run_events.delete().where(later))
        change = runs.update().where(runs.c.run_id == run_id)
        await connection.execute(change.values(progress=kept.SerializeToString()))
    await database.close()


async def test_a_run_says_that_a_child_which_did_not_stop_is_not_counted_and_counts_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.assembly._BOOKING_S", 0.0)
    monkeypatch.setattr("orchestrator.runs.children.told._PATIENCE_S", 0.0)
    # Whether it stops before it is looked at is the machine's choice.
    monkeypatch.setattr("orchestrator.runs.children.told._is_live", lambda _: True)
    monkeypatch.setattr("orchestrator.operations.assembly._USAGE_EVERY_S", 0.1)
    monkeypatch.setattr("orchestrator.operations.usage_sweep._PAUSES_S", (0.1, 0.1))
    async with orchestrator(tmp_path, executor_lease_s=0.1) as stack:
        stack.gateway.hold.clear()
        run = await stack.create(depth_max=1, children_live_max=1)
        await asyncio.wait_for(stack.gateway.asked.wait(), TIMEOUT_S)
        child = await begin_child(stack, run)

        await stack.runs.CancelRun(pb.CancelRunRequest(name=run.name), timeout=TIMEOUT_S)

        assert (await stack.watch(run))[-1].run_changed.usage_incomplete
        assert (await stack.watch(child))[-1].run_changed.state == Run.STATE_CANCELLED

        async def is_counted() -> bool:
            return not (await get(stack, run)).usage_incomplete

        await eventually(is_counted)
        stack.gateway.hold.set()


async def begin_child(stack: Stack, run: Run) -> Run:
    """Have a run's code ask for a child, and wait for it no longer than until it is there."""
    token = RunToken(
        tenant="default",
        run=run.name,
        depth=0,
        tiers=("sub", "root"),
        tokens_max=10**6,
        cost_usd_nanos_max=10**9,
        tokens_spent=0,
        cost_usd_nanos_spent=0,
        expires_at=time.time() + 3600,
    )
    text = RunTokenSigner(Secret(TOKEN_KEY)).mint(token)
    request_id = f"{run.name.removeprefix('runs/')}/1/1/c1"
    call = stack.runs.RunChild(
        pb.RunChildRequest(request_id=request_id, question="low"),
        metadata=((RUN_TOKEN_METADATA, text),),
        timeout=TIMEOUT_S,
    )
    begun: Any = await call.read()
    call.cancel()
    child: Run = begun.run
    return child


async def get(stack: Stack, run: Run) -> Run:
    return (await stack.runs.GetRun(pb.GetRunRequest(name=run.name), timeout=TIMEOUT_S)).run


async def usage_of(stack: Stack, run: Run) -> pb.GetRunUsageResponse:
    request = pb.GetRunUsageRequest(name=run.name)
    response: pb.GetRunUsageResponse = await stack.runs.GetRunUsage(request, timeout=TIMEOUT_S)
    return response
