"""What an attempt needs before it may ask, on real databases."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from common.database import Database, DatabaseThread
from llm_gateway.accounts.caps import NOTHING, State
from llm_gateway.accounts.sql_store import SqlAccountStore
from llm_gateway.answers import Spend, Tokens
from llm_gateway.calls import Call
from llm_gateway.ledger.answer_store import FolderAnswerStore
from llm_gateway.ledger.books import Books
from llm_gateway.ledger.claim import Claim, ClaimLostError
from llm_gateway.ledger.entries import RecordedAnswer
from llm_gateway.ledger.group_commit import GroupCommit
from llm_gateway.ledger.ledger import Ledger
from llm_gateway.ledger.operations import HoldAgain, Operation
from llm_gateway.ledger.sql_store import SqlCallStore
from llm_gateway.ledger.tables import MIGRATIONS
from llm_gateway.meter import Meter
from llm_gateway.starts import Start, Starter
from tests.support.eventually import eventually
from tests.support.gateway import completion, deployment, prompt, token, upstream

TOOK = Spend(tokens=Tokens(input=10, output=3))
WORST = len("hello") + 16 + 100
"""Tokens that are held for a call of one message and at most 100 tokens of answer."""


class WatchedStore:
    """A store that keeps what each of its transactions did."""

    def __init__(self, store: SqlCallStore) -> None:
        self._store = store
        self.transactions: list[Sequence[Operation[Any]]] = []

    async def apply(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        self.transactions.append(operations)
        return await self._store.apply(operations)


@dataclasses.dataclass(frozen=True)
class Process:
    """One gateway's part of it."""

    store: WatchedStore
    ledger: Ledger
    meter: Meter
    starter: Starter

    def claim(self, **claims: Any) -> tuple[Call, Claim]:
        asking = token(tokens_max=1_000_000, **claims)
        call = Call(prompt=prompt(), token=asking, request_id="a", arrived=0.0)
        claim = self.ledger.enter_new(call)
        assert claim is not None
        return call, claim

    async def held(self, call: Call) -> State:
        (cap, *_) = (await self.meter.asking(call.token, self.starter.demand(call, MODEL))).caps
        return await self.meter.state(cap)


MODEL = deployment()


@pytest.fixture
async def thread(database_url: str) -> AsyncIterator[DatabaseThread]:
    database = await Database.open(database_url, MIGRATIONS)
    await database.close()
    thread = DatabaseThread.open(database_url)
    yield thread
    await thread.close()


@pytest.fixture
async def process(thread: DatabaseThread, tmp_path: Path) -> Process:
    return make_process(thread, tmp_path, "here")


def make_process(thread: DatabaseThread, folder: Path, owner: str) -> Process:
    store = WatchedStore(SqlCallStore(thread))
    commits = GroupCommit(store)
    answers = FolderAnswerStore(folder / owner)
    books = Books(commits, answers, owner=owner, answer_bytes_inline_max=1_000)
    meter = Meter(store=SqlAccountStore(commits), is_in_ledger=True)
    starter = Starter(meter, output_tokens_default=100)
    return Process(store, Ledger(books, lease_s=15.0), meter, starter)


async def end(claim: Claim, start: Start) -> None:
    start.reservation.settle(TOOK)
    await claim.settle(start.exchange_id, MODEL.name, TOOK, completion())
    claim.leave()


async def test_a_call_costs_two_transactions(process: Process) -> None:
    """One before the provider is asked and one before the caller is answered: there is no more to
    save, and each further one would be felt in every call."""
    call, claim = process.claim()

    start = await process.starter.start(call, claim, upstream(MODEL))
    before = len(process.store.transactions)
    await end(claim, start)

    assert (before, len(process.store.transactions)) == (1, 2)


async def test_a_call_that_was_made_before_holds_nothing(
    process: Process, thread: DatabaseThread, tmp_path: Path
) -> None:
    """Found in the transaction that would have begun it."""
    call, claim = process.claim()
    await end(claim, await process.starter.start(call, claim, upstream(MODEL)))
    other, busy = make_process(thread, tmp_path, "there"), upstream(MODEL)
    again, late = other.claim()

    with pytest.raises(ClaimLostError):
        await other.starter.start(again, late, busy)
    late.leave()

    assert (await other.held(again)).held == NOTHING
    assert busy.load.in_flight == 0
    assert isinstance(await other.ledger.enter(again), RecordedAnswer)


async def test_who_waits_for_room_holds_no_slot_and_nothing_in_the_books(
    process: Process,
) -> None:
    """What it wrote down in hope is taken back: a gateway that dies would have it booked."""
    limit = {"cost_usd_nanos_max": None, "tokens_spent": 1_000_000 - WORST}
    first, first_claim = process.claim(**limit)
    first_start = await process.starter.start(first, first_claim, upstream(MODEL))
    second = dataclasses.replace(first, request_id="b")
    second_claim, busy = process.ledger.enter_new(second), upstream(MODEL)
    assert second_claim is not None

    waiting = asyncio.create_task(process.starter.start(second, second_claim, busy))
    await eventually(lambda: process.meter.has_line(second.token))
    dropped = [
        each
        for transaction in process.store.transactions
        for each in transaction
        if isinstance(each, HoldAgain)
    ]
    in_flight = busy.load.in_flight
    first_start.reservation.release()
    second_start = await waiting
    await end(second_claim, second_start)
    booked = await process.ledger.run_sum(second.token.tenant, second.token.run)

    assert in_flight == 0
    assert booked.tokens == TOOK.tokens.total
    assert [(each.hold.input_tokens, each.hold.output_tokens) for each in dropped] == [(0, 0)]
    assert second_start.reservation.tokens == WORST
    assert busy.load.in_flight == 1
