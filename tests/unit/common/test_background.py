"""How tasks end that go on in the background."""

from __future__ import annotations

import asyncio

import pytest

from common import background
from common.background import end_tasks


async def test_tasks_have_ended_when_the_call_returns() -> None:
    tasks = [asyncio.create_task(asyncio.Event().wait()) for _ in range(3)]
    await asyncio.sleep(0)

    await end_tasks(*tasks)

    assert all(task.cancelled() for task in tasks)


async def test_a_task_that_swallows_a_cancellation_is_cancelled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a library does that waits with `asyncio.wait_for` before Python 3.12."""
    monkeypatch.setattr(background, "_AGAIN_S", 0.01)
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed == 2:
                    raise
                swallowed += 1

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)

    await end_tasks(task)

    assert task.cancelled()
    assert swallowed == 2


async def test_what_a_task_failed_with_is_not_raised() -> None:
    async def failing() -> None:
        raise OSError("gone")

    task = asyncio.create_task(failing())
    await asyncio.sleep(0)

    await end_tasks(task)

    assert isinstance(task.exception(), OSError)


async def test_no_tasks_are_no_wait() -> None:
    await end_tasks()
