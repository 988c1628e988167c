"""How soon a run begins once there is a place for it: whoever has one is told, and looks for
nothing at intervals.
"""

from __future__ import annotations

import asyncio
import time

from fathom.orchestrator.v1.run_pb2 import Run

from orchestrator.runs.log.event_log import EventLog
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.steps import Steps
from orchestrator.runs.queue import Drive
from orchestrator.runs.stop_wish import StopWish
from tests.support.durable import durable
from tests.support.eventually import eventually
from tests.support.least import least
from tests.support.postgres import PostgresServer

SOON_S = 0.1


class Times:
    """A driver whose runs end once they may, and that remembers when each began and ended."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.ended: list[float] = []
        self.may_end = asyncio.Event()

    def over(self, log: EventLog) -> Drive:
        async def drive(_tenant: str, record: RunRecord, _stop: StopWish, _steps: Steps) -> None:
            self.begun.append(time.monotonic())
            await self.may_end.wait()
            record.progress.state = Run.STATE_ANSWERED
            log.append(record, record.state_event())
            self.ended.append(time.monotonic())

        return drive


async def test_a_place_that_becomes_free_is_taken_within_a_tenth_of_a_second(
    database_url: str,
) -> None:
    """By the run that waits for it, without the looks that are taken once a second besides."""
    times = Times()
    async with durable(database_url, times.over, running_max=1, with_upkeep=False) as parts:
        runs = [await parts.create() for _ in range(8)]
        await eventually(lambda: len(times.begun) == 1)
        times.may_end.set()
        for run in runs:
            await parts.watch(run)

    gaps = [begun - ended for ended, begun in zip(times.ended, times.begun[1:], strict=False)]
    assert min(gaps) < SOON_S


async def test_a_run_begins_at_once_at_a_replica_that_has_a_place(
    postgres: PostgresServer,
) -> None:
    """The one that the client talks to has none."""
    url, elsewhere, here = postgres.new_database(), Times(), Times()
    here.may_end.set()
    async with (
        durable(url, elsewhere.over, running_max=0) as full,
        durable(url, here.over, running_max=1) as free,
    ):

        async def gap_s() -> float:
            del here.begun[:]
            run = await full.create()
            stored = time.monotonic()
            await free.watch(run)
            return here.begun[0] - stored

        assert await least(gap_s, under=SOON_S) < SOON_S
    assert not elsewhere.begun
