"""How many exchanges a deployment is given, and who is next."""

from __future__ import annotations

import asyncio

import pytest

from llm_gateway.slots import Slots


async def filled(slots_max: int) -> Slots:
    slots = Slots(slots_max)
    for _ in range(slots_max):
        await slots.acquire()
    return slots


async def test_no_more_than_the_limit_are_taken_and_the_first_to_wait_is_next() -> None:
    """Whoever came first is never overtaken."""
    slots = await filled(2)
    order: list[str] = []

    async def take(name: str) -> None:
        await slots.acquire()
        order.append(name)

    waiting = [asyncio.create_task(take(name)) for name in "ab"]
    await asyncio.sleep(0)
    assert order == []

    slots.release()
    await waiting[0]
    assert order == ["a"]
    slots.release()
    await waiting[1]
    assert order == ["a", "b"]


async def test_a_slot_given_to_somebody_who_has_just_gone_is_not_lost() -> None:
    """A caller's deadline may pass in the moment in which its slot becomes free."""
    slots = await filled(1)
    gone = asyncio.create_task(slots.acquire())
    await asyncio.sleep(0)

    slots.release()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)

    await asyncio.wait_for(slots.acquire(), 30)


async def test_one_who_stops_waiting_is_passed_over() -> None:
    """Else its slot would be held by nobody."""
    slots = await filled(1)
    gone, staying = (asyncio.create_task(slots.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)

    slots.release()

    await asyncio.wait_for(staying, 30)


async def test_a_rate_limit_halves_what_was_under_way_once_a_round() -> None:
    """Sixteen calls that are refused together are one verdict, not sixteen."""
    slots = await filled(16)

    for _ in range(16):
        slots.note_rate_limit(99.0, 100.0)
    assert slots.limit == 8
    slots.note_rate_limit(99.9, 100.5)
    assert slots.limit == 8
    slots.note_rate_limit(100.0, 100.5)
    assert slots.limit == 4


@pytest.mark.parametrize("limits", [1, 10])
async def test_one_exchange_is_always_let_through(limits: int) -> None:
    """Otherwise nobody would ever learn that the limit is over."""
    slots = await filled(1)
    for second in range(limits):
        slots.note_rate_limit(float(second), float(second))
    slots.release()

    await asyncio.wait_for(slots.acquire(), 30)


async def test_it_grows_back_by_one_a_round_up_to_what_is_configured() -> None:
    """Slowly, so that the next limit is met once and not by everybody."""
    slots = await filled(8)
    slots.note_rate_limit(0.0, 0.0)
    assert slots.limit == 4

    for _ in range(5):
        slots.note_success()
    assert slots.limit == 5
    for _ in range(100):
        slots.note_success()
    assert slots.limit == 8


@pytest.mark.parametrize(("slots_max", "limit"), [(4, 4), (16, 16)])
async def test_a_new_configuration_holds_at_once(slots_max: int, limit: int) -> None:
    """A reload must not need a restart to count."""
    slots = Slots(8)
    slots.resize(slots_max)

    assert slots.limit == limit


async def test_a_new_configuration_keeps_what_was_learnt() -> None:
    """The provider's limit has not changed with the file."""
    slots = await filled(8)
    slots.note_rate_limit(0.0, 0.0)
    slots.resize(64)

    assert slots.limit == 4
