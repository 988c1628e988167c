"""A run goes on from what the books have of it, and its limits with it."""

from __future__ import annotations

import asyncio

import pytest

from llm_gateway.answers import Spend, Tokens
from llm_gateway.demands import Demand
from llm_gateway.errors import LedgerUnavailableError, RunLimitExceededError
from llm_gateway.ledger.operations import RunSum
from llm_gateway.meter import Meter
from tests.support.gateway import PRICE, token

DEMAND = Demand(input_tokens_max=10, output_tokens_max=10, output_tokens_min=10, price=PRICE)


class Books:
    """What a test says that a run has taken."""

    def __init__(self, tokens: int = 0, cost_usd_nanos: int = 0) -> None:
        self.total = RunSum(tokens=tokens, cost_usd_nanos=cost_usd_nanos)
        self.reads = 0
        self.failures: list[Exception] = []

    async def run_sum(self, tenant: str, run: str) -> RunSum:
        self.reads += 1
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        return self.total


async def test_what_was_spent_before_counts() -> None:
    """On either side of the limit."""
    meter = Meter(books=Books(tokens=80))

    with pytest.raises(RunLimitExceededError):
        await meter.reserve(token(tokens_max=99), DEMAND)
    assert (await meter.reserve(token(tokens_max=100), DEMAND)).tokens == 20


async def test_money_that_was_spent_before_counts() -> None:
    meter = Meter(books=Books(cost_usd_nanos=70_000))

    with pytest.raises(RunLimitExceededError):
        await meter.reserve(token(cost_usd_nanos_max=99_999), DEMAND)
    assert await meter.reserve(token(cost_usd_nanos_max=100_000), DEMAND)


async def test_many_first_calls_read_the_books_once() -> None:
    books = Books()
    meter = Meter(books=books)

    await asyncio.gather(*(meter.reserve(token(tokens_max=1_000), DEMAND) for _ in range(10)))

    assert books.reads == 1


async def test_a_run_without_limits_needs_no_books() -> None:
    books = Books()

    await Meter(books=books).reserve(token(), DEMAND)

    assert books.reads == 0


async def test_books_that_cannot_be_read_refuse_the_call_and_are_asked_again() -> None:
    """Fail closed: nobody knows what is left."""
    books = Books(tokens=80)
    books.failures = [LedgerUnavailableError()]
    meter = Meter(books=books)

    with pytest.raises(LedgerUnavailableError):
        await meter.reserve(token(tokens_max=100), DEMAND)
    with pytest.raises(RunLimitExceededError):
        await meter.reserve(token(tokens_max=99), DEMAND)


async def test_what_others_booked_is_added_when_it_is_told() -> None:
    books = Books()
    meter = Meter(books=books)
    first = await meter.reserve(token(tokens_max=100), DEMAND)
    first.settle(Spend(tokens=Tokens(input=10, output=5)))
    books.total = RunSum(tokens=15 + 70, cost_usd_nanos=0)

    meter.read_again("acme", "runs/1")
    meter.read_again("acme", "runs/unknown")

    with pytest.raises(RunLimitExceededError) as caught:
        await meter.reserve(token(tokens_max=100), DEMAND)
    assert caught.value.metadata["spent"] == "85"
