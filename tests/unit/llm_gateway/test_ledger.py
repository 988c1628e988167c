"""Repeats of a call are one call, whoever else makes it and whatever becomes of the first."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common.errors import RequestIdReusedError
from llm_gateway.answers import Booked, Spend, Tokens
from llm_gateway.calls import Call
from llm_gateway.demands import Demand
from llm_gateway.errors import AnswerUnreadableError, LedgerUnavailableError
from llm_gateway.ledger.books import Books
from llm_gateway.ledger.claim import Claim, ClaimLostError
from llm_gateway.ledger.entries import CallKey, CallState, RecordedAnswer
from llm_gateway.ledger.ledger import Ledger
from llm_gateway.ledger.operations import KeepLease, LookUp, StoreUnavailableError, SumRun
from llm_gateway.meter import Meter
from llm_gateway.reservation import Reservation
from tests.support.eventually import eventually
from tests.support.gateway import PRICE, completion, memory_books, prompt, token
from tests.support.memory_ledger import MemoryCallStore

KEY = CallKey("acme", "runs/1", "a")
TOOK = Spend(tokens=Tokens(input=10, output=3), cost_usd_nanos=16_000)


class Process:
    """One gateway's ledger; several may share a store and a clock."""

    def __init__(
        self, store: MemoryCallStore, *, owner: str = "here", now: list[float] | None = None
    ) -> None:
        self.now = [1000.0] if now is None else now
        self.books: Books = memory_books(store, owner=owner, now=lambda: self.now[0])
        self.slept: list[float] = []
        self.ledger = Ledger(self.books, lease_s=15.0, sleep=self._sleep)

    async def enter(self, **changes: Any) -> Claim | RecordedAnswer:
        return await self.ledger.enter(call(**changes))

    async def claim(self, **changes: Any) -> Claim:
        entered = await self.enter(**changes)
        assert isinstance(entered, Claim)
        return entered

    async def answer(self, text: str = "first", **changes: Any) -> None:
        claim = await self.claim(**changes)
        await answer(claim, text)

    async def live(self) -> None:
        await self.books.commits.post(KeepLease(self.books.owner, int(self.now[0] * 1e6) + 1))

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


def call(**changes: Any) -> Call:
    values: dict[str, Any] = {
        "prompt": prompt(),
        "token": token(),
        "request_id": "a",
        "arrived": 0.0,
    }
    return Call(**values | changes)


async def reservation() -> Reservation:
    demand = Demand(input_tokens_max=100, output_tokens_max=50, output_tokens_min=50, price=PRICE)
    return await Meter().reserve(token(), demand)


async def answer(claim: Claim, text: str = "first") -> None:
    exchange = await claim.hold(await reservation(), "small")
    await claim.settle(exchange, "small", TOOK, completion(text))
    claim.leave()


async def test_a_repeat_gets_the_recorded_answer() -> None:
    here = Process(MemoryCallStore())
    await here.answer("first")

    again = await here.enter()

    assert isinstance(again, RecordedAnswer)
    assert (again.completion.text, again.model) == ("first", "small")


async def test_a_repeat_waits_for_the_first() -> None:
    here = Process(MemoryCallStore())
    first = await here.claim()
    repeats = [asyncio.create_task(here.enter()) for _ in range(3)]
    await asyncio.sleep(0)

    await answer(first, "only")

    texts = [each.completion.text for each in await asyncio.gather(*repeats)]  # type: ignore[union-attr]
    assert texts == ["only"] * 3


async def test_a_repeat_after_a_failure_is_a_call_of_its_own() -> None:
    """A failed call is no answer; of those who wait, one tries and the others wait for it."""
    store = MemoryCallStore()
    here = Process(store)
    first = await here.claim()
    second, third = (asyncio.create_task(here.enter()) for _ in range(2))
    await asyncio.sleep(0)

    exchange = await first.hold(await reservation(), "small")
    await first.settle(exchange, "small", TOOK, None)
    first.leave()

    retrying = await second
    assert isinstance(retrying, Claim)
    assert not third.done()
    await answer(retrying, "at last")
    assert isinstance(await third, RecordedAnswer)
    assert len(store.exchanges) == 2, "the failed attempt stays in the books"
    assert retrying.has_past
    assert await here.ledger.booked(call()) == Booked(TOOK + TOOK, answers=1)


async def test_a_key_that_was_spent_under_stays_so_until_it_is_answered() -> None:
    """Whoever comes last tells of all that was spent, however many gave up in between."""
    here = Process(MemoryCallStore())
    failed = await here.claim()
    exchange = await failed.hold(await reservation(), "small")
    await failed.settle(exchange, "small", TOOK, None)
    failed.leave()
    for _ in range(2):
        given_up = await here.claim(prompt=prompt("another"))
        assert given_up.has_past
        await given_up.hold(await reservation(), "small")
        given_up.leave()

    await here.answer("at last")
    again = await here.enter()

    assert isinstance(again, RecordedAnswer)
    assert await here.ledger.booked(call()) == Booked(TOOK + TOOK, answers=1)


async def test_a_claim_on_a_key_that_was_spent_under_is_lost_once() -> None:
    """A call is taken for a new one at first; it must learn of its past before it is made."""
    here = Process(MemoryCallStore())
    failed = await here.claim()
    exchange = await failed.hold(await reservation(), "small")
    await failed.settle(exchange, "small", TOOK, None)
    failed.leave()
    await here.books.commits.flush()
    unaware = here.ledger.enter_new(call())
    assert unaware is not None

    with pytest.raises(ClaimLostError):
        await unaware.hold(await reservation(), "small")
    unaware.leave()

    await here.answer("at last")
    assert await here.ledger.booked(call()) == Booked(TOOK + TOOK, answers=1)


async def test_another_prompt_under_one_id_is_refused() -> None:
    here = Process(MemoryCallStore())
    first = await here.claim()
    changes = [{"prompt": prompt("other")}, {"prompt": prompt(temperature=0.0)}]

    for changed in changes:
        with pytest.raises(RequestIdReusedError):
            await here.enter(**changed)
    await answer(first)
    for changed in changes:
        with pytest.raises(RequestIdReusedError):
            await here.enter(**changed)


async def test_the_same_id_in_another_run_or_tenant_is_another_call() -> None:
    here = Process(MemoryCallStore())
    await here.answer()

    for other in (token(run="runs/2"), token(tenant="zeta")):
        assert isinstance(await here.enter(token=other), Claim)


async def test_calls_without_an_id_never_wait() -> None:
    store = MemoryCallStore()
    here = Process(store)
    claims = [await here.claim(request_id="") for _ in range(2)]

    for claim in claims:
        await answer(claim)

    assert len(store.exchanges) == 2
    assert not store.calls, "an answer that nobody can ask for is not kept"


async def test_an_answer_of_another_process_is_found() -> None:
    store = MemoryCallStore()
    await Process(store, owner="there").answer("from there")

    found = await Process(store).enter()

    assert isinstance(found, RecordedAnswer)
    assert found.completion.text == "from there"


async def test_a_call_of_a_living_process_is_waited_for() -> None:
    store, now = MemoryCallStore(), [1000.0]
    there, here = Process(store, owner="there", now=now), Process(store, now=now)
    await there.live()
    claim = await there.claim()
    exchange = await claim.hold(await reservation(), "small")
    waiting = asyncio.create_task(here.enter())
    await eventually(lambda: len(here.slept) > 3)

    await claim.settle(exchange, "small", TOOK, completion("from there"))

    found = await waiting
    assert isinstance(found, RecordedAnswer)
    assert here.slept == sorted(here.slept), "it asks less and less often"


async def test_a_call_of_a_dead_process_is_taken_over_and_booked_at_worst() -> None:
    """What it cost nobody knows; the run's limit must hold all the same."""
    store, now = MemoryCallStore(), [1000.0]
    there, here = Process(store, owner="there", now=now), Process(store, now=now)
    told: list[tuple[str, str]] = []
    here.ledger.on_unknown(lambda tenant, run: told.append((tenant, run)))
    await there.live()
    await (await there.claim()).hold(await reservation(), "small")
    now[0] += 1

    claim = await here.claim()

    assert told == [("acme", "runs/1")]
    (booked,) = store.exchanges.values()
    assert (booked.spend.tokens.total, booked.spend.cost_usd_nanos) == (150, 200_000)
    assert booked.spend.is_estimated
    await answer(claim, "at last")
    assert (await here.ledger.run_sum("acme", "runs/1")).cost_usd_nanos == 216_000


async def test_a_process_that_was_only_late_books_what_it_really_took() -> None:
    store, now = MemoryCallStore(), [1000.0]
    there, here = Process(store, owner="there", now=now), Process(store, now=now)
    late = await there.claim()
    exchange = await late.hold(await reservation(), "small")
    await here.answer("taken over")

    await late.settle(exchange, "small", TOOK, completion("late"))
    late.leave()

    assert (await here.ledger.run_sum("acme", "runs/1")).cost_usd_nanos == 32_000
    kept = await here.enter()
    assert isinstance(kept, RecordedAnswer)
    assert kept.completion.text == "taken over"


async def test_who_was_slower_to_hold_loses_the_claim() -> None:
    """Both found the key free; only one may ask a provider."""
    store, now = MemoryCallStore(), [1000.0]
    there, here = Process(store, owner="there", now=now), Process(store, now=now)
    await there.live()
    faster, slower = await there.claim(), await here.claim()
    await faster.hold(await reservation(), "small")

    with pytest.raises(ClaimLostError):
        await slower.hold(await reservation(), "small")
    slower.leave()
    await answer(faster, "faster")

    found = await here.enter()
    assert isinstance(found, RecordedAnswer)


async def test_a_second_exchange_of_a_lost_call_does_not_begin() -> None:
    store, now = MemoryCallStore(), [1000.0]
    there, here = Process(store, owner="there", now=now), Process(store, now=now)
    late = await there.claim()
    exchange = await late.hold(await reservation(), "small")
    await late.settle(exchange, "small", TOOK, None)
    await here.claim()

    with pytest.raises(ClaimLostError):
        await late.hold(await reservation(), "small")


async def test_a_caller_who_leaves_an_exchange_behind_keeps_the_call() -> None:
    """What is under way will be paid, so its answer is what a repeat gets."""
    here = Process(MemoryCallStore())
    claim = await here.claim()
    exchange = await claim.hold(await reservation(), "small")
    claim.join()
    claim.leave()
    repeat = asyncio.create_task(here.enter())
    await asyncio.sleep(0)
    assert not repeat.done()

    await claim.settle(exchange, "small", TOOK, completion("drained"))
    claim.leave()

    found = await repeat
    assert isinstance(found, RecordedAnswer)
    assert found.completion.text == "drained"


async def test_a_caller_who_goes_away_while_a_hold_is_written_leaves_nothing_open() -> None:
    store = MemoryCallStore()
    here = Process(store)
    claim = await here.claim()
    holding = asyncio.create_task(claim.hold(await reservation(), "small"))
    await asyncio.sleep(0)

    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)
    claim.leave()
    await here.books.commits.flush()

    assert not store.calls
    assert not store.exchanges


async def test_a_caller_who_goes_away_while_it_waits_takes_nothing_along() -> None:
    here = Process(MemoryCallStore())
    first = await here.claim()
    waiting = asyncio.create_task(here.enter())
    await asyncio.sleep(0)

    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    await answer(first)
    assert isinstance(await here.enter(), RecordedAnswer)


async def test_large_answers_are_kept_elsewhere_and_read_back() -> None:
    store = MemoryCallStore()
    here = Process(store)
    for size, is_inline in ((60_000, True), (70_000, False)):
        await here.answer("x" * size, request_id=f"{size}")

        entry = store.calls[CallKey("acme", "runs/1", f"{size}")].answer
        assert entry is not None
        assert (entry.data is not None, entry.key is None) == (is_inline, is_inline)
        found = await here.enter(request_id=f"{size}")
        assert isinstance(found, RecordedAnswer)
        assert len(found.completion.text) == size


async def test_an_answer_that_cannot_be_read_back_is_not_paid_again() -> None:
    store = MemoryCallStore()
    here = Process(store)
    await here.answer()
    entry = store.calls[KEY].answer
    assert entry is not None
    object.__setattr__(entry, "data", b"damaged")

    with pytest.raises(AnswerUnreadableError) as caught:
        await here.enter()

    assert caught.value.metadata == {"request_id": "a"}


async def test_without_the_store_no_call_begins() -> None:
    store = MemoryCallStore()
    here = Process(store)
    here.books.commits._sleep = here._sleep
    store.failures = [StoreUnavailableError("down")] * 5

    with pytest.raises(LedgerUnavailableError):
        await here.enter()

    claim = await here.claim()
    store.failures = [StoreUnavailableError("down")] * 5
    with pytest.raises(LedgerUnavailableError):
        await claim.hold(await reservation(), "small")


async def test_an_answer_that_could_not_be_recorded_is_still_this_callers_and_is_held() -> None:
    """The money is spent: its hold stays in the books in place of it."""
    store = MemoryCallStore()
    here = Process(store)
    here.books.commits._sleep = here._sleep
    claim = await here.claim()
    exchange = await claim.hold(await reservation(), "small")
    store.failures = [StoreUnavailableError("down")] * 5

    await claim.settle(exchange, "small", TOOK, completion())
    claim.leave()

    assert store.calls[KEY].hold is not None
    (held,) = await store.apply([SumRun("acme", "runs/1", "somebody else")])
    assert held.cost_usd_nanos == 200_000
    assert isinstance(await here.enter(), Claim), "nobody works on it any more"
    assert len(store.exchanges) == 1


async def test_a_process_lives_by_its_lease_and_says_when_it_ends() -> None:
    store = MemoryCallStore()
    here = Process(store)
    async with here.ledger.living():
        assert store.leases == {"here": 1_015_000_000}

    assert store.leases == {"here": 0}


async def test_an_open_call_is_held_before_its_exchange_begins() -> None:
    store = MemoryCallStore()
    here = Process(store)
    claim = await here.claim()
    await claim.hold(await reservation(), "small")

    (entry,) = await store.apply([LookUp(KEY)])

    assert entry.state is CallState.OPEN
    assert store.calls[KEY].hold is not None


async def test_an_id_is_free_for_another_prompt_while_its_failed_call_is_written_off() -> None:
    """Its caller has the error already, and may be quicker with the next prompt than the books."""
    here = Process(MemoryCallStore())
    failed = await here.claim()
    await failed.hold(await reservation(), "small")
    failed.leave()

    entered = await here.enter(prompt=prompt("mended"))

    assert isinstance(entered, Claim)


async def test_an_id_is_not_free_for_another_prompt_while_its_answer_is_written_down() -> None:
    here = Process(MemoryCallStore())
    answered = await here.claim()
    exchange = await answered.hold(await reservation(), "small")
    settling = asyncio.create_task(answered.settle(exchange, "small", TOOK, completion()))
    await asyncio.sleep(0)
    answered.leave()

    with pytest.raises(RequestIdReusedError):
        await here.enter(prompt=prompt("another"))
    await settling


async def test_a_new_call_is_claimed_without_asking_the_books() -> None:
    """Most calls are made once, and are told apart in the transaction that opens them."""
    store = MemoryCallStore()
    here = Process(store)

    claim = here.ledger.enter_new(call())

    assert isinstance(claim, Claim)
    assert store.transactions == 0
    assert here.ledger.enter_new(call()) is None, "somebody in this process makes it"


async def test_a_claim_on_a_call_that_is_in_the_books_is_lost_where_it_is_checked() -> None:
    """Who is about to wait or to fail has the recorded answer all the same."""
    store = MemoryCallStore()
    await Process(store, owner="there").answer()
    claim = Process(store).ledger.enter_new(call())
    assert claim is not None

    with pytest.raises(ClaimLostError):
        await claim.check()


async def test_the_books_are_asked_for_a_claim_once() -> None:
    store = MemoryCallStore()
    here = Process(store)
    claim = here.ledger.enter_new(call())
    assert claim is not None

    await claim.check()
    await claim.check()
    asked = store.transactions
    await claim.hold(await reservation(), "small")
    await claim.check()

    assert (asked, store.transactions) == (1, 2), "and holding tells it, too"
