"""Child runs in the database: when none is stored, and whose end is told by whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1.run_pb2 import Limits, Run, RunSpec
from sqlalchemy import select, update

from common.database import Database
from orchestrator import tables
from orchestrator.durable.turnstile import Turnstile
from orchestrator.errors import ChildRunRefusedError
from orchestrator.runs.children.carving import Part
from orchestrator.runs.children.lineage import Lineage
from orchestrator.runs.children.store import ChildStore, NewChild
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.store import Appendage, RunStore
from orchestrator.tables import MIGRATIONS


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/runs.sqlite", MIGRATIONS)
    yield opened
    await opened.close()


async def parent(database: Database) -> RunRecord:
    """Store a run that is under way."""
    record = RunRecord.queued(RunSpec(question="q", limits=Limits(tokens_max=10, depth_max=1)))
    record.progress.state = Run.STATE_RUNNING
    return await RunStore(database).create("t", record, record.state_event(), None)


async def child(database: Database, above: RunRecord, number: int) -> RunRecord:
    """Store a child run of a run, without a part of anything."""
    lineage = Lineage(
        root=above.head.name,
        tokens_max=10,
        cost_usd_nanos_max=0,
        tokens_spent=0,
        cost_usd_nanos_spent=0,
        subtrees=(),
    )

    def record(limits: Limits) -> RunRecord:
        made = RunRecord.queued(RunSpec(question="q", limits=limits))
        made.head.parent = above.head.name
        return made

    new = NewChild(
        request_id=f"{above.run_id}/1/1/c{number}",
        lineage=lineage,
        sub_calls_left=0,
        part=lambda _limits, _left: Part(limits=Limits(), live=1),
        record=record,
    )
    made = await ChildStore(database, per_tree_max=2).add("t", new)
    assert made is not None
    return made


async def test_a_run_that_is_to_stop_takes_no_child(database: Database) -> None:
    """It may take seconds to stop, in which its code must not start what costs more."""
    above = await parent(database)
    await child(database, above, 1)
    async with database.writing() as connection:
        await connection.execute(update(tables.runs).values(is_stop_wished=True))

    with pytest.raises(ChildRunRefusedError) as caught:
        await child(database, above, 2)

    assert caught.value.reason == ErrorReason.ERROR_REASON_CHILD_RUN_REFUSED
    assert caught.value.metadata["run"] == above.head.name


async def test_the_turn_of_a_grandchild_is_found_whatever_the_order_of_ids(
    database: Database,
) -> None:
    """Ids begin with the time, and the clocks of two processes differ."""
    above = await parent(database)
    between = await child(database, above, 1)
    below = await child(database, between, 1)
    early = "0" * len(below.run_id)
    async with database.writing() as connection:
        table = tables.child_runs
        await connection.execute(
            update(table).where(table.c.run_id == below.run_id).values(run_id=early)
        )

    turns = await ChildStore(database, per_tree_max=2).turns_below("t", above.run_id)

    assert turns == {between.run_id: 1, early: 1}


async def test_the_end_of_a_child_is_told_by_its_own_parent_alone(database: Database) -> None:
    """What is kept for it is free from then on: no other run may say so."""
    above, other = await parent(database), await parent(database)
    below = await child(database, above, 1)
    booked = select(tables.child_runs.c.is_booked)

    for teller, is_booked in ((other, False), (above, True)):
        told = Appendage(
            run_id=teller.run_id,
            epoch=0,
            state=int(teller.progress.state),
            progress=teller.progress.SerializeToString(),
            events=[],
            ended_children=[below.run_id],
        )
        assert not await RunStore(database).append([told])
        async with database.reading() as connection:
            assert (await connection.execute(booked)).scalar() is is_booked


async def test_a_tree_has_so_many_child_runs_in_its_whole_life(database: Database) -> None:
    """Also of those that have ended: code that starts one after the other leaves rows for all."""
    above = await parent(database)
    for number in (1, 2):
        await end(database, await child(database, above, number))
    other = await parent(database)

    with pytest.raises(ChildRunRefusedError) as caught:
        await child(database, above, 3)

    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.metadata["limit"] == "children_per_tree_max"
    assert "llm_query" in caught.value.message
    await child(database, other, 1)


async def test_to_stop_a_run_is_to_stop_all_below_it_at_once(database_url: str) -> None:
    """Runs that are told one after the other start others meanwhile."""
    database = await Database.open(database_url, MIGRATIONS)
    above, other = await parent(database), await parent(database)
    between = await child(database, above, 1)
    below = await child(database, between, 1)
    turnstile = Turnstile(database, "here", per_tenant_max=1)

    assert await turnstile.wish_stop(below.run_id, only_below=True) == []
    assert await turnstile.wish_stop(between.run_id, only_below=True) == [below.run_id]
    stopped = await turnstile.wish_stop(above.run_id)
    again = await turnstile.wish_stop(above.run_id)
    with pytest.raises(ChildRunRefusedError):
        await child(database, between, 2)
    await child(database, other, 1)
    await database.close()

    assert sorted(stopped) == sorted([above.run_id, between.run_id])
    assert again == []


async def test_to_stop_a_tree_waits_for_its_runs_in_the_order_of_all(database_url: str) -> None:
    """Events of several runs are stored in that order; in two orders, each waits for the other."""
    database = await Database.open(database_url, MIGRATIONS)
    above = await parent(database)
    below = [await child(database, above, number) for number in (1, 2)]
    ids = sorted([above.run_id, *(each.run_id for each in below)])
    turnstile = Turnstile(database, "here", per_tenant_max=1)
    runs = tables.runs.c
    for run_id in reversed(ids):  # so that they stand in the other order
        async with database.writing() as connection:
            change = update(tables.runs).where(runs.run_id == run_id)
            await connection.execute(change.values(priority=1))

    async with asyncio.TaskGroup() as tasks:
        async with database.writing() as connection:
            for run_id in ids:
                await connection.execute(
                    update(tables.runs).where(runs.run_id == run_id).values(priority=2)
                )
                if run_id == ids[0]:
                    stopping = tasks.create_task(turnstile.wish_stop(above.run_id))
                    await asyncio.wait({stopping}, timeout=0.3)
                    assert not stopping.done()

    await database.close()
    assert sorted(stopping.result()) == ids


async def end(database: Database, run: RunRecord) -> None:
    """Store the end of a run."""
    change = update(tables.runs).where(tables.runs.c.run_id == run.run_id)
    async with database.writing() as connection:
        await connection.execute(change.values(state=int(Run.STATE_ANSWERED)))
