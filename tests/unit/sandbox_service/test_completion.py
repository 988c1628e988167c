"""Work that goes to its end, whoever waits for it."""

from __future__ import annotations

import asyncio

import pytest

from sandbox_service.completion import to_its_end


async def test_its_result_or_error_is_the_callers() -> None:
    async def work() -> int:
        return 1 // 0

    assert await to_its_end(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ZeroDivisionError):
        await to_its_end(work())


async def test_a_caller_that_is_cancelled_again_still_waits_for_the_end() -> None:
    """Else it would take away what the work is using, such as open files on their way."""
    may_end, is_done = asyncio.Event(), False

    async def work() -> None:
        nonlocal is_done
        await may_end.wait()
        is_done = True

    caller = asyncio.create_task(to_its_end(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()

    may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await caller
    assert is_done
