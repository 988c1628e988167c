"""A driver that takes numbered steps and nothing else, in this process or, run as a program, in one
that tests kill: `python -m tests.support.step_driver URL LEASE_S RUNNING_MAX TENANT_MAX`.

A run's question says how many steps it has.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from fathom.orchestrator.v1.run_event_pb2 import Notice, RunEvent
from fathom.orchestrator.v1.run_pb2 import Run

from orchestrator.runs.log.event_log import EventLog
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.steps import Steps
from orchestrator.runs.queue import Drive
from orchestrator.runs.stop_wish import StopWish
from tests.support.durable import durable

STEP_S = 0.005


def over(log: EventLog) -> Drive:
    """Return the driver that writes to a log."""

    async def drive(_tenant: str, record: RunRecord, stop: StopWish, steps: Steps) -> None:
        told = [event async for event in log.past(record.run_id)]
        done = [event.sequence for event in told if event.HasField("notice")]
        if record.progress.state == Run.STATE_QUEUED:
            record.progress.state = Run.STATE_RUNNING
            record.progress.start_time.GetCurrentTime()
            log.append(record, record.state_event())
        work = asyncio.create_task(_work(log, record, steps, done))
        stop.stops(work)
        await asyncio.wait({work})
        if not work.cancelled() and work.exception() is not None:
            stop.leave()
            work.result()
        if stop.is_left:
            return
        record.progress.state = Run.STATE_CANCELLED if work.cancelled() else Run.STATE_ANSWERED
        log.append(record, record.state_event())

    return drive


async def _work(log: EventLog, record: RunRecord, steps: Steps, done: list[int]) -> None:
    for number in range(int(record.head.spec.question)):

        async def once(number: int = number) -> int:
            if number < len(done):
                return done[number]
            await asyncio.sleep(STEP_S)
            event = RunEvent(notice=Notice(kind="STEP", text=str(number)))
            log.append(record, record.next_event(event))
            await log.stored(record.run_id)
            return event.sequence

        await steps.step(f"step {number}", once)


async def _main(url: str, lease_s: float, running_max: int, per_tenant_max: int) -> None:
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    async with durable(
        url,
        over,
        with_dbos=True,
        lease_s=lease_s,
        running_max=running_max,
        per_tenant_max=per_tenant_max,
    ):
        print("ready", flush=True)
        await ending.wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
