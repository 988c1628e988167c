"""The durable engine: steps are done once, whoever carries a run out, and how often."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import AsyncIterator, Collection

import pytest
from dbos import DBOS

from common.config import ConfigError
from orchestrator.durable.dbos_engine import DbosEngine, steps_url
from orchestrator.durable.engine import RunLeftError
from orchestrator.runs.log.steps import Steps, StepsLostError
from tests.support.eventually import eventually

HOUR_S = 3600.0


class Work:
    """Takes three steps, and fails or lets go before one of them when it is told to."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.results: list[int] = []
        self.stops_before = 0
        self.fails_in = 0
        self.stop: Exception = RunLeftError()

    async def __call__(self, steps: Steps) -> None:
        for number in (1, 2, 3):
            if number == self.stops_before:
                raise self.stop
            work = functools.partial(self._do, number)
            self.results.append(await steps.step(f"step {number}", work))

    async def _do(self, number: int) -> int:
        self.done.append(number)
        if number == self.fails_in:
            raise OSError("no room")
        return 10 * number


async def alive() -> frozenset[str]:
    return frozenset({"first"})


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[DbosEngine]:
    async with DbosEngine(database_url, executor_id="first") as opened:
        yield opened


async def test_a_run_goes_on_in_another_process_after_the_steps_that_are_done(
    database_url: str, work: Work
) -> None:
    """A model that was paid is not asked again."""
    work.stops_before = 3
    async with DbosEngine(database_url, executor_id="first") as engine:
        with pytest.raises(RunLeftError):
            await engine.carry_out("run", work, is_first=True)
    work.stops_before, work.results = 0, []

    async with DbosEngine(database_url, executor_id="second") as engine:
        await engine.carry_out("run", work, is_first=False)

    assert work.done == [1, 2, 3]
    assert work.results == [10, 20, 30]


async def test_a_run_goes_on_in_the_same_process(engine: DbosEngine, work: Work) -> None:
    """What a driver failed of is told to whoever carries it out, and it can be tried again."""
    work.stops_before, work.stop = 2, OSError("no room")
    with pytest.raises(OSError, match="no room"):
        await engine.carry_out("run", work, is_first=True)
    work.stops_before = 0

    await engine.carry_out("run", work, is_first=False)

    assert work.done == [1, 2, 3]


async def test_a_step_that_failed_is_done_when_the_run_is_driven_again(
    engine: DbosEngine, work: Work
) -> None:
    """The engine notes failures too, also that of its own database while it notes a step's end.
    What was only away for a moment may not end the run for good."""
    work.fails_in = 2
    with pytest.raises(OSError, match="no room"):
        await engine.carry_out("run", work, is_first=True)
    work.fails_in, work.results = 0, []

    await engine.carry_out("run", work, is_first=False)

    assert work.done == [1, 2, 2, 3]
    assert work.results == [10, 20, 30]


async def test_a_run_taken_over_that_nobody_began_begins(engine: DbosEngine, work: Work) -> None:
    """A process can die between taking a run up and its first step."""
    await engine.carry_out("run", work, is_first=False)

    assert work.done == [1, 2, 3]


async def test_a_run_whose_end_was_not_stored_is_driven_again(
    engine: DbosEngine, work: Work
) -> None:
    """The engine may have noted the end of a run whose last event a crash has taken."""
    await engine.carry_out("run", work, is_first=True)
    await eventually(functools.partial(_is_noted_as_ended, "run"))

    await engine.carry_out("run", work, is_first=False)

    assert work.done == [1, 2, 3] * 2


async def test_many_runs_are_carried_out_at_a_time(engine: DbosEngine) -> None:
    """The engine sets no bound of its own: a parent's run waits for its children's."""
    begun = 0
    all_begun = asyncio.Event()

    async def wait(_steps: Steps) -> None:
        nonlocal begun
        begun += 1
        if begun == 100:
            all_begun.set()
        await all_begun.wait()

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for number in range(100):
            tasks.create_task(engine.carry_out(str(number), wait, is_first=True))

    assert begun == 100


async def test_steps_of_runs_that_ended_long_ago_are_forgotten(
    engine: DbosEngine, work: Work
) -> None:
    await engine.carry_out("old", work, is_first=True)
    await eventually(functools.partial(_is_noted_as_ended, "old"))

    kept = await engine.forget(ended_before_s=HOUR_S, begun_before_s=HOUR_S, alive=alive)
    forgotten = await engine.forget(ended_before_s=-HOUR_S, begun_before_s=HOUR_S, alive=alive)

    assert (kept, forgotten) == (0, 1)
    assert await DBOS.get_workflow_status_async("old") is None


async def test_a_run_that_ended_without_a_note_of_it_is_forgotten(
    database_url: str, work: Work
) -> None:
    """Its process was killed between the run's end and the engine's mark, and nobody takes it up
    again. A run that is under way stays, whoever drives it."""
    work.stops_before = 2
    ended = {"ended", "marked just then", "ours"}

    async def ended_among(run_ids: Collection[str]) -> set[str]:
        return ended & set(run_ids)

    async with DbosEngine(database_url, executor_id="dead") as dead:
        for run_id in ("ended", "marked just then", "live", "ours"):
            with pytest.raises(RunLeftError):
                await dead.carry_out(run_id, work, is_first=True)
    async with DbosEngine(database_url, executor_id="first") as engine:
        assert await engine.forget_left(ended_among) == 0
        ended.remove("marked just then")
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def wait(_steps: Steps) -> None:
            begun.set()
            await may_end.wait()

        ours = asyncio.create_task(engine.carry_out("ours", wait, is_first=False))
        await begun.wait()

        assert await engine.forget_left(ended_among) == 1
        kept = await DBOS.list_workflows_async()
        assert {each.workflow_id for each in kept} == {"marked just then", "live", "ours"}
        may_end.set()
        await ours


async def test_what_was_kept_for_a_dead_process_is_forgotten(engine: DbosEngine) -> None:
    await DBOS.register_queue_async("taken-dead")

    await engine.forget(ended_before_s=HOUR_S, begun_before_s=HOUR_S, alive=alive)

    names = {queue.name for queue in await DBOS.list_queues_async()}
    assert len(names) == 1
    assert "taken-dead" not in names


async def test_a_process_that_begins_meanwhile_keeps_its_queue(engine: DbosEngine) -> None:
    """Without it, what it takes over from others would never go on."""

    async def alive_before() -> frozenset[str]:
        living = await alive()
        await DBOS.register_queue_async("taken-second")
        return living

    await engine.forget(ended_before_s=HOUR_S, begun_before_s=HOUR_S, alive=alive_before)

    assert "taken-second" in {queue.name for queue in await DBOS.list_queues_async()}


async def test_a_process_that_was_counted_as_dead_takes_over_all_the_same(
    engine: DbosEngine, work: Work
) -> None:
    """One that stood still finds its queue gone, and says so to nobody."""
    work.stops_before = 2
    with pytest.raises(RunLeftError):
        await engine.carry_out("run", work, is_first=True)
    for queue in await DBOS.list_queues_async():
        await DBOS.delete_queue_async(queue.name)
    work.stops_before = 0

    async with asyncio.timeout(60):
        await engine.carry_out("run", work, is_first=False)

    assert work.done == [1, 2, 3]


async def test_steps_that_another_process_takes_away_are_told_of(engine: DbosEngine) -> None:
    """A process that stood still can resume what it has lost. Whoever drives the run by right lets
    go of it then, and has it again; it would wait for ever."""
    done = 0

    async def step() -> int:
        nonlocal done
        done += 1
        if done == 1:
            resume = DBOS.resume_workflow_async("run", queue_name="taken-second")
            # Outside of the workflow, as another process is.
            await asyncio.create_task(resume, context=contextvars.Context())
        return done

    async def work(steps: Steps) -> None:
        for number in range(20):
            await steps.step(f"step {number}", step)

    async with asyncio.timeout(60):
        with pytest.raises(StepsLostError):
            await engine.carry_out("run", work, is_first=True)
        lost_after = done
        await engine.carry_out("run", work, is_first=False)

    assert lost_after < 20
    assert done == lost_after + 20


async def _is_noted_as_ended(run_id: str) -> bool:
    status = await DBOS.get_workflow_status_async(run_id)
    return status is not None and status.status == "SUCCESS"


def test_steps_are_kept_beside_the_database() -> None:
    """In a file of their own: writers of one SQLite file wait for one another."""
    assert steps_url("sqlite+aiosqlite:////a/runs.sqlite").database == "/a/runs-steps.sqlite"
    assert steps_url("postgresql+psycopg://host/name").database == "name"
    with pytest.raises(ConfigError, match="must name a file"):
        steps_url("sqlite+aiosqlite://")
