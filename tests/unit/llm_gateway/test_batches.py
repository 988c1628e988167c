"""Working on items concurrently."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from llm_gateway.batches import work_concurrently
from tests.support.eventually import eventually


async def numbers(count: int, read: list[int] | None = None) -> AsyncIterator[int]:
    for number in range(count):
        if read is not None:
            read.append(number)
        yield number


async def test_every_item_gives_one_result() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    results = [result async for result in work_concurrently(numbers(50), double, 7)]

    assert sorted(results) == [2 * number for number in range(50)]


async def test_results_come_as_they_are_ready() -> None:
    async def wait(number: int) -> int:
        if number == 0:
            await last.wait()
        return number

    last = asyncio.Event()
    results = work_concurrently(numbers(3), wait, 3)
    first_two = {await anext(results), await anext(results)}
    last.set()

    assert first_two == {1, 2}
    assert await anext(results) == 0


async def test_no_item_is_read_before_there_is_a_slot() -> None:
    opened, read = asyncio.Event(), list[int]()

    async def wait(number: int) -> int:
        await opened.wait()
        return number

    results = work_concurrently(numbers(10, read), wait, 3)
    taking = asyncio.ensure_future(anext(results))
    await eventually(lambda: len(read) == 3)
    for _ in range(5):
        await asyncio.sleep(0)
    assert read == [0, 1, 2]

    opened.set()
    await taking
    for _ in range(5):
        await asyncio.sleep(0)
    assert read == [0, 1, 2], "a result that was not taken on keeps its slot"
    await results.aclose()  # type: ignore[attr-defined]


async def test_a_failing_source_ends_everything() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise LookupError

    ended = asyncio.Event()

    async def hang(number: int) -> int:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return number

    with pytest.raises(LookupError):
        async for _ in work_concurrently(broken(), hang, 5):
            pass
    assert ended.is_set()


async def test_leaving_early_cancels_what_is_under_way() -> None:
    cancelled = list[int]()

    async def hang(number: int) -> int:
        if number == 0:
            return 0
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    results = work_concurrently(numbers(4), hang, 4)
    assert await anext(results) == 0
    await results.aclose()  # type: ignore[attr-defined]

    assert sorted(cancelled) == [1, 2, 3]
