"""Host tool calls on both databases: as many as may be made, each once, and told as they were."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fathom.orchestrator.v1.run_pb2 import Run
from google.rpc.status_pb2 import Status
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from common.database import Database
from orchestrator import tables
from orchestrator.errors import HostToolRefusedError
from orchestrator.operations.audit_log import AuditLog, Deed
from orchestrator.profiles.tool_calls import NewCall, ToolCalls
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.store import RunStore
from orchestrator.tables import MIGRATIONS
from tests.support.durable import waiting_run

TENANT = "acme"
DEED = Deed(tenant=TENANT, actor="", action="host_tool.called", subject="runs/0a")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url, MIGRATIONS)
    yield opened
    await opened.close()


async def running(database: Database) -> RunRecord:
    """Store a run that is under way."""
    record = waiting_run()
    await RunStore(database).create(TENANT, record, record.state_event(), None)
    await set_state(database, record, Run.STATE_RUNNING)
    return record


async def set_state(database: Database, record: RunRecord, state: Run.State.ValueType) -> None:
    change = update(tables.runs).where(tables.runs.c.run_id == record.run_id)
    async with database.writing() as connection:
        await connection.execute(change.values(state=state))


def call(run: RunRecord, position: int, *, root: RunRecord | None = None) -> NewCall:
    """Return a call of a run; of a child's, where a root is named."""
    return NewCall(
        request_id=f"{run.run_id}/1/1/t{position}",
        run=run.head.name,
        root=(root or run).head.name,
        tool="lookup",
        digest=b"d",
    )


async def test_a_tree_makes_as_many_calls_as_it_may_however_many_ask_at_once(
    database: Database,
) -> None:
    """Two runs of one tree, as on two replicas; what was refused takes no place."""
    calls, root, child = (
        ToolCalls(database, AuditLog(database)),
        await running(database),
        await running(database),
    )
    asked = [call(root, n) for n in range(6)] + [call(child, n, root=root) for n in range(6)]

    begun = await asyncio.gather(
        *(calls.begin(TENANT, each, calls_max=3) for each in asked), return_exceptions=True
    )
    refused = [error for error in begun if isinstance(error, HostToolRefusedError)]
    for each, error in zip(asked, begun, strict=True):
        if isinstance(error, HostToolRefusedError):
            await calls.refuse(TENANT, each, error.to_status())

    assert begun.count(None) == 3
    assert len(refused) == 9
    assert {error.metadata["why"] for error in refused} == {"calls_max"}
    with pytest.raises(HostToolRefusedError):
        await calls.begin(TENANT, call(root, 7), calls_max=3)
    await calls.begin(TENANT, call(root, 8), calls_max=4)


async def test_an_outcome_is_not_stored_without_its_audit_entry(database: Database) -> None:
    """Whoever hears of a call's outcome can rely on the log to tell of the call."""
    audit = AuditLog(database)
    calls, run = ToolCalls(database, audit), await running(database)
    made = call(run, 1)
    await calls.begin(TENANT, made, calls_max=5)
    unwritable = Deed(tenant=TENANT, actor="", action="host_tool.called", subject=None)  # type: ignore[arg-type]

    with pytest.raises(IntegrityError):
        await calls.end(TENANT, made.request_id, "1", unwritable)
    found = await calls.find(TENANT, made.request_id)
    assert found is not None
    assert found.outcome is None

    await calls.end(TENANT, made.request_id, "1", DEED)
    entries = await audit.page(tenant=TENANT, subject="", after=0, count=10)
    assert [entry.deed.action for entry in entries] == ["host_tool.called"]


async def test_a_call_is_begun_once_and_its_first_outcome_stays(database: Database) -> None:
    """Two connections bring the same call where one broke off."""
    calls, run = ToolCalls(database, AuditLog(database)), await running(database)
    made = call(run, 1)
    begun = await asyncio.gather(
        *(calls.begin(TENANT, made, calls_max=5) for _ in range(3)), return_exceptions=True
    )

    told = [
        await calls.end(TENANT, made.request_id, '{"state": "open"}', DEED),
        await calls.end(TENANT, made.request_id, Status(code=14, message="away"), DEED),
    ]
    found = await calls.find(TENANT, made.request_id)
    another = await calls.find("another", made.request_id)

    assert begun.count(None) == 1
    assert sum(isinstance(error, IntegrityError) for error in begun) == 2
    assert told == ['{"state": "open"}'] * 2
    assert found is not None
    assert (found.outcome, found.root) == ('{"state": "open"}', run.head.name)
    assert another is None


@pytest.mark.parametrize("state", [Run.STATE_QUEUED, Run.STATE_ANSWERED, Run.STATE_CANCELLED])
async def test_only_a_run_that_is_under_way_calls(
    database: Database, state: Run.State.ValueType
) -> None:
    """A token outlives its run by a little."""
    run = await running(database)
    await set_state(database, run, state)

    with pytest.raises(HostToolRefusedError) as refused:
        await ToolCalls(database, AuditLog(database)).begin(TENANT, call(run, 1), calls_max=5)

    assert refused.value.metadata["why"] == "run_ended"
