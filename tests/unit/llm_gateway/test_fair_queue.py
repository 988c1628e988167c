"""Turns between parties."""

from __future__ import annotations

import asyncio

import pytest

from llm_gateway.fair_queue import FairQueue
from llm_gateway.slots import Slots


def test_a_thousand_of_one_party_delay_another_by_one_turn() -> None:
    queue = FairQueue[str]()
    for number in range(1_000):
        queue.push("many", f"many-{number}")
    queue.push("one", "one-0")

    assert [queue.pop() for _ in range(3)] == ["many-0", "one-0", "many-1"]


def test_the_items_of_a_party_stay_in_order() -> None:
    queue = FairQueue[int]()
    for number in range(6):
        queue.push("ab"[number % 2], number)

    assert [queue.pop() for _ in range(6)] == [0, 1, 2, 3, 4, 5]


def test_a_party_that_comes_back_has_no_turn_saved_up() -> None:
    queue = FairQueue[str]()
    for party in ("a", "a", "b"):
        queue.push(party, party)
    assert queue.pop() == "a"
    assert queue.pop() == "b"
    queue.push("b", "b again")

    assert [queue.pop(), queue.pop()] == ["a", "b again"]


def test_an_empty_queue_has_nothing() -> None:
    queue = FairQueue[str]()
    assert not queue
    with pytest.raises(KeyError):
        queue.pop()


async def test_a_single_call_gets_the_next_slot_before_a_fan_out() -> None:
    """One tenant's fan-out of a thousand must not starve another's single call."""
    slots, served = Slots(1), list[str]()

    async def call(tenant: str) -> None:
        await slots.acquire(tenant)
        served.append(tenant)
        await asyncio.sleep(0)
        slots.release()

    calls = [asyncio.create_task(call("many")) for _ in range(1_000)]
    await asyncio.sleep(0)
    calls.append(asyncio.create_task(call("one")))
    await asyncio.gather(*calls)

    assert served.index("one") <= 3
    assert len(served) == 1_001
