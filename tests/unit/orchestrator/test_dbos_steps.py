"""Steps beside DBOS, which notes what they came to while the run goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from dbos import error as dbos_error

from orchestrator.durable import dbos_steps
from orchestrator.durable.dbos_steps import DbosSteps
from orchestrator.runs.log.steps import StepsLostError


class SlowNotes:
    """Stands for DBOS: runs a step, and notes it once it may."""

    def __init__(self) -> None:
        self.may_note = asyncio.Event()
        self.noted: list[int] = []
        self.known: int | None = None
        self.failure: BaseException | None = None

    async def run_step_async(self, _options: Any, once: Callable[[], Awaitable[int]]) -> int:
        if self.known is not None:
            return self.known
        found = await once()
        await self.may_note.wait()
        if self.failure is not None:
            raise self.failure
        self.noted.append(found)
        return found


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> SlowNotes:
    made = SlowNotes()
    monkeypatch.setattr(dbos_steps, "DBOS", made)
    return made


def work(found: int) -> Callable[[], Awaitable[int]]:
    async def do() -> int:
        return found

    return do


async def test_a_run_does_not_wait_for_the_note_of_a_step(notes: SlowNotes) -> None:
    """The event that tells of the step is stored by then, and it is what counts."""
    steps = DbosSteps("sqlite")
    async with asyncio.timeout(5):
        found = [await steps.step("a", work(1)), await steps.step("b", work(2))]
    assert (found, notes.noted) == ([1, 2], [])

    notes.may_note.set()
    await steps.settle()

    assert notes.noted == [1, 2]


async def test_a_step_that_was_done_before_is_not_done(notes: SlowNotes) -> None:
    notes.known = 7

    assert await DbosSteps("sqlite").step("a", work(1)) == 7


async def test_a_step_that_fails_fails_at_once(notes: SlowNotes) -> None:
    async def fail() -> int:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        await DbosSteps("sqlite").step("a", fail)


async def test_a_note_that_was_refused_stops_the_run_before_its_next_step(
    notes: SlowNotes,
) -> None:
    """Another process has the run's steps: what is begun now would be done twice."""
    steps, notes.failure = DbosSteps("sqlite"), dbos_error.DBOSWorkflowConflictIDError("run")
    begun: list[int] = []

    async def begin() -> int:
        begun.append(1)
        return 2

    await steps.step("a", work(1))
    notes.may_note.set()
    with pytest.raises(StepsLostError):
        await steps.settle()

    with pytest.raises(StepsLostError):
        await steps.step("b", begin)
    assert not begun


async def test_a_step_that_is_cut_off_is_over_when_its_caller_goes_on(notes: SlowNotes) -> None:
    """A cancelled run writes its end: nothing of it may still be under way."""
    is_begun, is_over = asyncio.Event(), asyncio.Event()

    async def dwell() -> int:
        is_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            is_over.set()
        return 1

    stepping = asyncio.create_task(DbosSteps("sqlite").step("a", dwell))
    await is_begun.wait()
    stepping.cancel()
    await asyncio.wait({stepping})

    assert stepping.cancelled()
    assert is_over.is_set()
