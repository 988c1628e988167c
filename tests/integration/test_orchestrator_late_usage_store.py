"""What calls took that became known after a run ended: added once, wherever the run is counted, and
to no event. On both databases.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fathom.gateway.v1.generation_pb2 import Usage
from fathom.orchestrator.v1.conversation_service_pb2 import Conversation
from fathom.orchestrator.v1.run_event_pb2 import CutOffUsage, UsageSettled
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from sqlalchemy import select

from common.database import Database
from common.errors import ReceivedError
from orchestrator import tables
from orchestrator.conversations.request import new_conversation
from orchestrator.conversations.store import ConversationStore
from orchestrator.operations.audit_log import AuditLog
from orchestrator.runs.late_usage import DueRun
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.usage import GroupBy, RunUsage
from orchestrator.tables import MIGRATIONS
from tests.support.ended_runs import TIERS, Place, away, booked

DAY_US = 86_400 * 1_000_000


@pytest.fixture
async def place(database_url: str) -> AsyncIterator[Place]:
    database = await Database.open(database_url, MIGRATIONS)
    yield Place(database)
    await database.close()


async def test_what_the_ledger_has_beyond_the_events_is_added_once(place: Place) -> None:
    """To the run as it is stored, to what statistics have of it, and to the sums by turn and
    model. Its events stay, and with them what the audit log has of them."""
    run = await place.run()
    await place.end(run, cost=0)
    await place.due()
    place.books.calls[run.run_id] = [booked(run.run_id, 1, 70), booked(run.run_id, 2, 30)]
    events = await place.runs.events(run.run_id, after=0, count=9)

    assert await place.sweep() == 1
    assert await place.sweep() == 0

    assert await place.cost(run) == (100, False)
    assert await place.runs.events(run.run_id, after=0, count=9) == events
    sums = await RunUsage(place.runs, place.children, place.late).sums(
        "t", run.run_id, GroupBy.TURN
    )
    assert [(turn, usage.cost_usd_nanos) for turn, usage in sums.groups] == [("1", 70), ("2", 30)]
    assert (sums.total.cost_usd_nanos, sums.is_incomplete) == (100, False)
    async with place.database.reading() as connection:
        facts = (await connection.execute(select(tables.run_facts))).one()
    assert (facts.cost_usd_nanos, facts.input_tokens) == (100, 10)
    entries = await AuditLog(place.database).page(
        tenant="t", subject=run.head.name, after=0, count=9
    )
    assert [entry.deed.action for entry in entries] == [
        *("run.created", "run.ended", "run.usage_settled")
    ]
    assert entries[-1].deed.details == {"added_usd_nanos": "100", "cost_usd_nanos": "100"}


async def test_several_processes_add_it_once(place: Place) -> None:
    run = await place.run()
    await place.end(run, cost=0)
    await place.due()
    due = DueRun("t", run)
    found = UsageSettled(usages=[CutOffUsage(turn=1, usage=Usage(cost_usd_nanos=5))])

    added = await asyncio.gather(*(place.late.add(due, found) for _ in range(4)))

    assert [each is not None for each in added].count(True) == 1
    assert await place.cost(run) == (5, False)


async def test_a_run_that_is_looked_at_is_nobody_elses_for_a_while(place: Place) -> None:
    run = await place.run()
    await place.end(run, cost=0)
    await place.due()
    until_us = place.now_us + 1_000_000

    claims = await asyncio.gather(
        *(place.late.claim(now_us=place.now_us, until_us=until_us, count=9) for _ in range(3))
    )

    assert sorted(len(each) for each in claims) == [0, 0, 1]
    assert len(await place.late.claim(now_us=until_us, until_us=until_us + 1, count=9)) == 1


async def test_the_runs_above_count_what_a_run_took(place: Place) -> None:
    """As far as each of them has counted the one below it."""
    root = await place.run()
    child = await place.run(above=root)
    leaf = await place.run(above=child)
    await place.end(leaf, cost=1)
    await place.end(child, cost=1, ended=(leaf,))
    await place.end(root, cost=1, ended=(child,))
    await place.due()
    place.books.calls[leaf.run_id] = [booked(leaf.run_id, 1, 40)]

    await place.sweep()

    assert [await place.cost(run) for run in (leaf, child, root)] == [(41, False)] * 3


async def test_a_child_that_outlived_its_parent_is_counted_in_the_end(place: Place) -> None:
    """With what it was found to have taken itself, and its sub-calls, whichever is looked at
    first."""
    root = await place.run()
    child = await place.run(above=root)
    await place.end(root, cost=10)
    await place.due()
    assert await place.sweep() == 1
    assert await place.cost(root) == (10, True)  # the child is under way
    child.progress.sub_calls = 3
    await place.end(child, cost=5)
    await place.due()
    place.books.calls[child.run_id] = [booked(child.run_id, 1, 40)]

    await place.sweep()

    assert [await place.cost(run) for run in (child, root)] == [(45, False), (55, False)]
    assert (await place.runs.get("t", root.run_id)).progress.sub_calls == 3
    async with place.database.reading() as connection:
        is_booked = (await connection.execute(select(tables.child_runs.c.is_booked))).scalar_one()
    assert is_booked


async def test_a_gateway_that_is_away_is_asked_again_less_and_less_often(place: Place) -> None:
    """Until the ledger keeps no call of the run any more."""
    run, other = await place.run(), await place.run()
    for each in (run, other):
        await place.end(each, cost=0)
    await place.due()
    place.books.failure = ReceivedError(away().to_status())
    place.books.calls[run.run_id] = [booked(run.run_id, 1, 40)]

    assert await place.sweep() == 0
    assert len(place.books.asked) == 1  # it is away for the other one too
    assert await place.sweep() == 0
    assert sorted(await place.looked_at_later()) == sorted([run.run_id, other.run_id])
    assert len(place.books.asked) == 1
    place.books.failure = None
    place.now_us += 3_600 * 1_000_000
    assert await place.sweep() == 2
    assert await place.cost(run) == (40, False)
    assert await place.looked_at_later() == []

    late = await place.run()
    await place.end(late, cost=0)
    place.books.failure = ReceivedError(away().to_status())
    await place.due()
    place.now_us += 31 * DAY_US
    await place.sweep()
    assert await place.looked_at_later() == []
    assert await place.cost(late) == (0, True)


async def test_calls_that_are_open_still_are_waited_for(place: Place) -> None:
    run = await place.run()
    await place.end(run, cost=0)
    await place.due()
    place.books.calls[run.run_id], place.books.open_calls = [booked(run.run_id, 1, 40)], 1

    await place.sweep()
    assert await place.cost(run) == (0, True)
    place.books.open_calls = 0
    place.now_us += 3_600 * 1_000_000
    await place.sweep()
    assert await place.cost(run) == (40, False)


async def test_a_run_is_not_looked_at_before_its_books_are_kept(place: Place) -> None:
    """What is added before that would be missing in the statistics."""
    run = await place.run()
    await place.end(run, cost=0)
    place.now_us += 60 * 1_000_000

    await place.sweep()

    assert place.books.asked == []
    assert await place.looked_at_later() == [run.run_id]


@pytest.mark.parametrize("is_newest", [True, False])
async def test_a_conversation_counts_it_once(place: Place, is_newest: bool) -> None:
    """In its newest run, which is counted with it, else in what it has of earlier ones."""
    conversations = ConversationStore(place.database)
    made = await conversations.create(
        new_conversation("t", Conversation(context="contexts/c")), None
    )
    run = RunRecord.queued(RunSpec(question="q", conversation=made.name, **TIERS))
    run.progress.state, run.progress.turns = Run.STATE_RUNNING, 1
    run.progress.start_time.GetCurrentTime()
    await place.runs.create("t", run, run.state_event(), None, made.seat())
    await place.end(run, cost=1)
    if not is_newest:
        made = await conversations.get("t", made.conversation_id)
        following = RunRecord.queued(RunSpec(question="q", conversation=made.name, **TIERS))
        await place.runs.create("t", following, following.state_event(), None, made.seat())
    await place.due()
    place.books.calls[run.run_id] = [booked(run.run_id, 1, 40)]

    await place.sweep()

    found = await conversations.get("t", made.conversation_id)
    assert found.usage.cost_usd_nanos == 41
