"""Steps beside DBOS, which notes what they came to behind the run."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from dbos import error as dbos_error

from orchestrator.durable import dbos_steps
from orchestrator.durable.dbos_steps import DbosSteps
from orchestrator.durable.json_serializer import RecordedError
from orchestrator.runs.log.steps import StepsLostError
from tests.support.eventually import eventually


class SlowNotes:
    """Stands for DBOS: knows some steps, runs others, and notes them once it may."""

    def __init__(self) -> None:
        self.may_note = asyncio.Event()
        self.noted: list[tuple[str, int]] = []
        self.known: list[int | RecordedError] = []
        self.failure: BaseException | None = None
        """Of noting a step."""
        self.refusal: BaseException | None = None
        """Of a step as it is looked up."""
        self.asked = 0

    async def run_step_async(self, options: dict[str, str], step: Callable[[], Any]) -> int:
        self.asked += 1
        if self.refusal is not None:
            raise self.refusal
        if self.known:
            known = self.known.pop(0)
            if isinstance(known, RecordedError):
                raise known
            return known
        found: int = await step() if inspect.iscoroutinefunction(step) else step()
        await self.may_note.wait()
        if self.failure is not None:
            raise self.failure
        self.noted.append((options["name"], found))
        return found


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> SlowNotes:
    made = SlowNotes()
    monkeypatch.setattr(dbos_steps, "DBOS", made)
    return made


@pytest.fixture
def steps() -> DbosSteps:
    return DbosSteps("sqlite", is_fresh=True)


def work(found: int) -> Callable[[], Awaitable[int]]:
    async def do() -> int:
        return found

    return do


async def test_a_run_does_not_wait_for_the_note_of_a_step(
    notes: SlowNotes, steps: DbosSteps
) -> None:
    """The event that tells of the step is stored by then, and it is what counts."""
    async with asyncio.timeout(60):
        found = [await steps.step("a", work(1)), await steps.step("b", work(2))]
    assert (found, notes.noted) == ([1, 2], [])

    notes.may_note.set()
    await steps.settle()

    assert notes.noted == [("a", 1), ("b", 2)]


async def test_a_step_that_was_done_before_is_not_done(notes: SlowNotes) -> None:
    notes.known = [7]

    assert await DbosSteps("sqlite", is_fresh=False).step("a", work(1)) == 7


async def test_a_run_that_goes_on_is_noted_behind_it_again(notes: SlowNotes) -> None:
    """From the first step that was not noted on: notes are made in order."""
    steps, notes.known = DbosSteps("sqlite", is_fresh=False), [7]
    notes.may_note.set()
    found = [await steps.step("a", work(1)), await steps.step("b", work(2))]
    notes.may_note.clear()

    async with asyncio.timeout(60):
        found.append(await steps.step("c", work(3)))

    assert (found, notes.noted) == ([7, 2, 3], [("b", 2)])
    notes.may_note.set()
    await steps.settle()
    assert notes.noted == [("b", 2), ("c", 3)]


async def test_a_step_that_is_noted_as_failed_is_done(notes: SlowNotes) -> None:
    """What was away for a moment may not fail the run for good."""
    notes.known = [RecordedError("OSError", "no room")]

    assert await DbosSteps("sqlite", is_fresh=False).step("a", work(1)) == 1


async def test_a_note_that_says_otherwise_than_the_log_stops_nothing(
    notes: SlowNotes, steps: DbosSteps
) -> None:
    """As where an older backup of one of them was put back: the log counts."""
    notes.known = [RecordedError("OSError", "no room"), 9]
    notes.may_note.set()

    found = [await steps.step(name, work(n)) for n, name in enumerate("abc", start=1)]
    await steps.settle()

    assert (found, notes.noted) == ([1, 2, 3], [("c", 3)])


async def test_a_run_is_not_far_ahead_of_its_notes(notes: SlowNotes, steps: DbosSteps) -> None:
    """Where the engine's tables are slow, they hold the run up: memory is bounded."""
    done = 0

    async def count() -> int:
        nonlocal done
        done += 1
        return done

    async def run() -> None:
        for number in range(100):
            await steps.step(str(number), count)

    running = asyncio.create_task(run())
    await eventually(lambda: done == dbos_steps._AHEAD_MAX)
    for _ in range(100):
        await asyncio.sleep(0)
    assert done == dbos_steps._AHEAD_MAX

    notes.may_note.set()
    async with asyncio.timeout(60):
        await running
        await steps.settle()
    assert [found for _, found in notes.noted] == list(range(1, 101))


async def test_a_run_that_is_cut_off_while_it_waits_for_notes_is_noted(
    notes: SlowNotes, steps: DbosSteps
) -> None:
    """Else the engine would take a cancelled run for one that goes on."""

    async def run() -> None:
        for number in range(100):
            await steps.step(str(number), work(number))

    running = asyncio.create_task(run())
    await eventually(lambda: len(steps._unnoted) == dbos_steps._AHEAD_MAX)
    running.cancel()
    await asyncio.wait({running})

    notes.may_note.set()
    await steps.settle()

    assert [found for _, found in notes.noted] == list(range(dbos_steps._AHEAD_MAX))


async def test_a_step_that_fails_fails_at_once_and_is_not_noted(
    notes: SlowNotes, steps: DbosSteps
) -> None:
    async def fail() -> int:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        await steps.step("a", fail)

    notes.may_note.set()
    await steps.settle()
    assert not notes.noted


async def test_a_note_that_was_refused_stops_the_run_before_its_next_step(
    notes: SlowNotes, steps: DbosSteps
) -> None:
    """Another process has the run's steps: what is begun now would be done twice."""
    notes.failure = dbos_error.DBOSWorkflowConflictIDError("run")
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


async def test_no_note_follows_one_that_failed(notes: SlowNotes, steps: DbosSteps) -> None:
    """Its attempt has a number in DBOS: all that came after would stand one place off, and whoever
    drives the run next would find other steps than it makes."""
    notes.failure = OSError("connection lost")

    async def outlast() -> int:
        """Be under way while the note before fails."""
        notes.may_note.set()
        await eventually(lambda: steps._noting is not None and steps._noting.done())
        notes.failure = None
        return 2

    await steps.step("a", work(1))
    for name in "bc":
        with pytest.raises(OSError, match="connection lost"):
            await steps.step(name, outlast)

    assert not notes.noted


@pytest.mark.parametrize("is_fresh", [True, False])
async def test_a_run_goes_on_by_its_log_where_the_engine_remembers_other_steps(
    notes: SlowNotes, is_fresh: bool
) -> None:
    """The log is the truth: a run may not fail, nor be driven again for ever, for what DBOS has."""
    steps = DbosSteps("sqlite", is_fresh=is_fresh)
    notes.refusal = dbos_error.DBOSUnexpectedStepError("run", 1, "a", "z")
    notes.may_note.set()

    found = []
    for number, name in enumerate("abc", start=1):
        found.append(await steps.step(name, work(number)))
        await steps.settle()

    assert (found, notes.asked) == ([1, 2, 3], 1)


@pytest.mark.parametrize("is_fresh", [True, False])
async def test_a_step_that_is_cut_off_is_over_when_its_caller_goes_on(
    notes: SlowNotes, is_fresh: bool
) -> None:
    """A cancelled run writes its end: nothing of it may still be under way."""
    is_begun, is_over = asyncio.Event(), asyncio.Event()

    async def dwell() -> int:
        is_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            is_over.set()
        return 1

    stepping = asyncio.create_task(DbosSteps("sqlite", is_fresh=is_fresh).step("a", dwell))
    await is_begun.wait()
    stepping.cancel()
    await asyncio.wait({stepping})

    assert stepping.cancelled()
    assert is_over.is_set()
