"""Slices: fewer questions to the store, and the same promises."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llm_gateway.accounts.caps import NOTHING, Amounts, Cap, Holding, Shortage, State
from llm_gateway.accounts.memory_store import MemoryAccountStore
from llm_gateway.accounts.slices import SlicedAccountStore
from llm_gateway.errors import LedgerUnavailableError
from tests.support.account_store_contract import (
    NOW_US,
    ONE,
    AccountStoreContract,
    cap,
    holding,
)
from tests.support.eventually import eventually

WIDE = cap(tokens_max=100_000, cost_usd_nanos_max=1_000_000)


class CountedStore(MemoryAccountStore):
    """Counts what it is asked, and fails where a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.is_away = False

    async def reserve(self, holding: Holding) -> Shortage | None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.is_away:
            raise LedgerUnavailableError
        return await super().reserve(holding)

    def settle(self, hold_id: str, taken: Amounts, now_us: int) -> asyncio.Future[None]:
        if not self.is_away:
            return super().settle(hold_id, taken, now_us)
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        failed.set_exception(LedgerUnavailableError())
        return failed


class TestSlicedAccountStore(AccountStoreContract):
    """In front of a store in memory."""

    @pytest.fixture
    async def store(self) -> SlicedAccountStore:
        return SlicedAccountStore(MemoryAccountStore())


async def call(store: SlicedAccountStore, number: int, *caps: Cap, **changes: Any) -> bool:
    wanted = holding(f"here-{number}", *(caps or (WIDE,)), **changes)
    if await store.reserve(wanted) is not None:
        return False
    await store.settle(wanted.hold_id, Amounts(1, 10, 100), NOW_US)
    return True


async def test_calls_one_after_the_other_ask_the_store_seldom() -> None:
    inner = CountedStore()
    store = SlicedAccountStore(inner)

    assert all([await call(store, number) for number in range(200)])

    assert inner.asked < 40
    assert await store.states([WIDE], NOW_US) == [State(taken=Amounts(200, 2_000, 20_000))]


async def test_a_slice_that_nobody_uses_comes_back() -> None:
    """Other gateways must not wait for it."""
    inner = CountedStore()
    store = SlicedAccountStore(inner)
    for number in range(20):
        await call(store, number)

    async def is_back() -> bool:
        return (await inner.states([WIDE], NOW_US))[0].held == NOTHING

    await eventually(is_back)
    assert (await inner.states([WIDE], NOW_US))[0].taken.calls == 20


async def test_beyond_half_of_a_limit_each_call_is_held_for_itself() -> None:
    """Else the last calls would be refused for what nobody uses."""
    inner = CountedStore()
    store = SlicedAccountStore(inner)
    await store.reserve(holding("large", WIDE, amounts=Amounts(1, 50_000, 0)))
    for number in range(30):
        await call(store, number)

    assert inner.asked > 30, "and now and then for a slice that is not given"
    assert (await inner.states([WIDE], NOW_US))[0].held.calls == 1


@pytest.mark.parametrize(("parts", "calls"), [(16 * 5, 5), (16 * 4, 4), (16 * 4 - 1, 0)])
async def test_a_slice_is_a_small_part_of_every_limit(parts: int, calls: int) -> None:
    """A process that dies loses no more; a call takes 100 tokens at worst."""
    inner = CountedStore()
    store = SlicedAccountStore(inner)
    for number in range(10):
        await call(store, number, cap(tokens_max=100 * parts))

    assert (await inner.states([cap()], NOW_US))[0].held.calls == calls


async def test_a_limit_of_concurrency_is_never_sliced() -> None:
    inner = CountedStore()
    store = SlicedAccountStore(inner)
    for number in range(20):
        await call(store, number, WIDE, cap("acme/other", concurrency_max=100))

    assert inner.asked == 20


async def test_a_slice_whose_calls_go_on_is_held_until_they_end() -> None:
    inner = CountedStore()
    store = SlicedAccountStore(inner)
    for number in range(12):
        await call(store, number)
    await store.reserve(holding("long", WIDE))

    held = (await store.states([WIDE], NOW_US))[0].held
    await store.settle("long", ONE, NOW_US)

    assert held == Amounts(32, 3_200, 32_000)
    assert (await store.states([WIDE], NOW_US))[0] == State(taken=Amounts(12, 120, 1_200).plus(ONE))


async def test_a_slice_that_cannot_be_settled_is_settled_later() -> None:
    inner = CountedStore()
    store = SlicedAccountStore(inner)
    for number in range(12):
        await call(store, number)
    inner.is_away = True
    await store.states([WIDE], NOW_US)
    assert (await inner.states([WIDE], NOW_US))[0].held != NOTHING

    inner.is_away = False
    await store.keep_lease("here", NOW_US)

    assert (await inner.states([WIDE], NOW_US))[0].held == NOTHING
