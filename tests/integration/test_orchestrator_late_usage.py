"""What calls took that became known after a run's end: added once, wherever the run is counted, and
to no event. On both databases, and over the real service.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1.gateway_service_pb2 import SettleCallsResponse
from fathom.gateway.v1.generation_pb2 import CallUsage, Usage
from fathom.orchestrator.v1 import operations_service_pb2 as operations_pb
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.conversation_service_pb2 import Conversation
from fathom.orchestrator.v1.operations_service_pb2_grpc import OperationsServiceStub
from fathom.orchestrator.v1.run_event_pb2 import CutOffUsage, RunEvent, UsageSettled
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from sqlalchemy import select

from common.config import Secret
from common.database import Database
from common.errors import ReceivedError, ServiceError
from common.run_token import RUN_TOKEN_METADATA, RunToken, RunTokenSigner
from orchestrator import tables
from orchestrator.conversations.request import new_conversation
from orchestrator.conversations.store import ConversationStore
from orchestrator.operations.audit_log import AuditLog
from orchestrator.operations.run_books import RunBooks
from orchestrator.operations.usage_sweep import UsageSweep
from orchestrator.runs.children.lineage import Lineage
from orchestrator.runs.children.store import ChildStore
from orchestrator.runs.late_usage import DueRun, LateUsage
from orchestrator.runs.log.event_log import EventLog
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.store import Appendage, RunStore
from orchestrator.runs.ports import SettledCalls
from orchestrator.runs.settlement import Settlement
from orchestrator.runs.usage import GroupBy, RunUsage
from orchestrator.tables import MIGRATIONS
from tests.support.eventually import eventually
from tests.support.fake_gateway import TOKEN_KEY, ScriptedError
from tests.support.orchestrator import TIMEOUT_S, Stack, orchestrator

DAY_US = 86_400 * 1_000_000
TIERS: dict[str, Any] = {"root_tier": "root", "sub_tier": "sub"}


def away() -> ServiceError:
    return ScriptedError(grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_SERVICE_UNREACHABLE)


def booked(run_id: str, turn: int, cost: int) -> CallUsage:
    usage = Usage(input_tokens=cost // 10, cost_usd_nanos=cost, calls=1)
    return CallUsage(request_id=f"{run_id}/{turn}", tier="root", model="models/a", usage=usage)


@dataclasses.dataclass
class Books:
    """A ledger that says this of each run, of whichever has something."""

    calls: dict[str, list[CallUsage]] = dataclasses.field(default_factory=dict)
    open_calls: int = 0
    failure: Exception | None = None
    asked: list[str] = dataclasses.field(default_factory=list)

    async def settle_calls(self, prefix: str, **_: Any) -> SettledCalls:
        self.asked.append(prefix)
        if self.failure is not None:
            raise self.failure
        return SettledCalls(self.calls.get(prefix.removesuffix("/"), []), self.open_calls)


class Place:
    """A database with runs, and what looks at them again."""

    def __init__(self, database: Database) -> None:
        self.database, self.books = database, Books()
        self.runs, self.late = RunStore(database), LateUsage(database)
        self.children = ChildStore(database, per_tree_max=9)
        self.now_us = time.time_ns() // 1000
        settlement = Settlement(books=self.books, signer=RunTokenSigner(Secret(TOKEN_KEY)))
        self.sweep = UsageSweep(
            self.late, settlement, EventLog(self.runs), self, now_us=lambda: self.now_us
        ).sweep

    async def lineage(self, record: RunRecord) -> Lineage | None:
        return await self.children.lineage(record.run_id) if record.head.parent else None

    async def run(self, *, above: RunRecord | None = None, **spec: Any) -> RunRecord:
        """Store a run that is under way."""
        record = RunRecord.queued(RunSpec(question="q", **TIERS, **spec))
        record.progress.state, record.progress.turns = Run.STATE_RUNNING, 1
        record.progress.start_time.GetCurrentTime()
        if above is not None:
            record.head.parent, record.head.root = above.head.name, above.head.root
            lineage = Lineage(
                root=above.head.root,
                tokens_max=None,
                cost_usd_nanos_max=None,
                tokens_spent=0,
                cost_usd_nanos_spent=0,
                subtrees=(),
            )
            async with self.database.writing() as connection:
                await connection.execute(
                    tables.child_runs.insert().values(
                        run_id=record.run_id,
                        tenant="t",
                        parent_id=above.run_id,
                        root_id=above.head.root.removeprefix("runs/"),
                        request_id=f"{above.run_id}/1/1/c{record.run_id}",
                        lineage=lineage.to_json(),
                        tokens_reserved=0,
                        cost_usd_nanos_reserved=0,
                        sub_calls_reserved=0,
                        live_reserved=0,
                    )
                )
        return await self.runs.create("t", record, record.state_event(), None)

    async def end(self, record: RunRecord, *, cost: int, ended: tuple[RunRecord, ...] = ()) -> None:
        """End a run whose usage is doubtful, with what it knows of, and with children that it has
        counted in that."""
        progress = record.progress
        progress.state, progress.usage_incomplete = Run.STATE_ANSWERED, True
        progress.usage.cost_usd_nanos = cost
        progress.end_time.FromMicroseconds(self.now_us)
        event = record.state_event()
        told = Appendage(
            run_id=record.run_id,
            epoch=0,
            state=progress.state,
            progress=progress.SerializeToString(),
            events=[(event.sequence, event.SerializeToString())],
            ended_children=[child.run_id for child in ended],
            usage_due_s=20.0,
        )
        assert await self.runs.append([told]) == frozenset()

    async def due(self) -> None:
        """Keep the books, and let the time go by after which runs are looked at again."""
        while await RunBooks(self.database, AuditLog(self.database)).book():
            pass
        self.now_us += 60 * 1_000_000

    async def cost(self, record: RunRecord) -> tuple[int, bool]:
        """Return what a run says that it took, and whether that is not all."""
        progress = (await self.runs.get("t", record.run_id)).progress
        return progress.usage.cost_usd_nanos, progress.usage_incomplete

    async def looked_at_later(self) -> list[str]:
        """Return the runs that are not settled."""
        table = tables.late_usage.c
        query = select(table.run_id).where(table.due_us.is_not(None))
        async with self.database.reading() as connection:
            return list((await connection.execute(query)).scalars())


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


async def test_a_gateway_that_comes_back_completes_what_a_run_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the real service: the run says that something is missing, and then it does not."""
    monkeypatch.setattr("orchestrator.assembly._BOOKING_S", 0.0)
    monkeypatch.setattr(UsageSweep.keep, "__defaults__", (0.1,))
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
    monkeypatch.setattr(UsageSweep.keep, "__defaults__", (0.1,))
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
