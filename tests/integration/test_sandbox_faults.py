"""Faults of the host, and callers that go away at the wrong moment: each costs the one who meets
it, and never the service.

A program of a few lines stands in for the worker, as obedient as one can be.
"""

from __future__ import annotations

import asyncio
import errno
import sys
import time
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import NotFoundError
from sandbox_service import frames
from sandbox_service.audit import AuditTrail
from sandbox_service.cell_requests import Carriers, CellRequests
from sandbox_service.execution_options import ExecutionOptions
from sandbox_service.execution_stream import Ended, Event, ExecutionStream
from sandbox_service.guest_build import GuestBuild
from sandbox_service.limits import Limits
from sandbox_service.objects import FolderObjects
from sandbox_service.pool import WorkerPool
from sandbox_service.run_pass import RunPass
from sandbox_service.session import Session
from sandbox_service.session_options import SessionOptions
from sandbox_service.session_table import SessionTable
from sandbox_service.sub_calls import SubCallMeter
from sandbox_service.worker_process import WorkerProcess, WorkerStartError
from sandbox_service.worker_session import WorkerSession
from tests.support.eventually import eventually

OBEDIENT = """
import socket, sys
from sandbox_service import frames
connection = socket.socket(fileno=int(sys.argv[1]))
reader = frames.FrameReader(frames.ToWorker)
def send(*sent):
    for frame in sent:
        connection.sendall(frames.encode(frame))
while data := connection.recv(1 << 16):
    for frame in reader.feed(data):
        match frame:
            case frames.Start():
                send(frames.Started())
            case frames.Open():
                send(frames.Opened(session=frame.session, memory_bytes=1))
                if not frame.is_restored:
                    send(frames.Saved(session=frame.session, execution=0))
            case frames.Run(code="end"):
                send(frames.Ended(session=frame.session, execution=frame.execution,
                    ending="completed", state_kept=True, failure=None, final=None, variables=[],
                    output_bytes=0, output_bytes_dropped=0, own_time_s=0.0, wait_time_s=0.0,
                    fuel_used=0, memory_bytes=0))
                send(frames.Saved(session=frame.session, execution=frame.execution))
            case frames.Close():
                send(frames.Closed(session=frame.session))
"""
COMMAND = (sys.executable, "-I", "-c", OBEDIENT)
OPTIONS = SessionOptions(limits=Limits(), contexts=[], idle_ttl_s=60.0, labels={})
CARRIERS = Carriers(sub_models=None)  # type: ignore[arg-type]
"""Their cells ask for nothing."""


@pytest.fixture
async def sessions(tmp_path: Path) -> AsyncIterator[SessionTable]:
    """A service with one worker."""
    async with (
        WorkerPool(GuestBuild.in_folder(tmp_path), 1, COMMAND) as pool,
        SessionTable(pool, FolderObjects(tmp_path), 10) as table,
    ):
        yield table


async def run(sessions: SessionTable, session: Session, code: str = "end") -> list[int | Event]:
    options, audit = ExecutionOptions(code=code), AuditTrail()
    events = session.execute(options, CARRIERS, sessions.tasks, audit)
    return [event async for batch in events for event in batch]


def refuse(*_: object, **__: object) -> Any:
    raise OSError(errno.EMFILE, "no file is left")


async def test_an_execution_that_finds_no_file_left_harms_no_other(
    sessions: SessionTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each execution is a task of the service's one group, which ends with any that fails."""
    evicted, other = [await sessions.create(OPTIONS) for _ in range(2)]
    await eventually(lambda: evicted.is_saved)
    await sessions.evict(evicted)
    with monkeypatch.context() as patch:
        patch.setattr("sandbox_service.session_memory.LayerFile", refuse)

        with pytest.raises(OSError, match="no file is left"):
            await run(sessions, evicted)

    assert len(await run(sessions, other)) == len(await run(sessions, evicted)) == 2


async def test_a_session_may_be_deleted_while_idle_ones_are_swept_out(
    sessions: SessionTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_service.session_table._SWEEP_S", 0.01)
    now = [0.0]
    clock = types.SimpleNamespace(time=lambda: now[0], monotonic=time.monotonic)
    for module in ("session", "session_table"):
        monkeypatch.setattr(f"sandbox_service.{module}.time", clock)
    first, second, used = [await sessions.create(OPTIONS) for _ in range(3)]
    await first._residence.moving.acquire()  # its end takes its time
    now[0] += OPTIONS.idle_ttl_s
    await eventually(lambda: len(sessions) == 2)

    await sessions.delete(second.name)
    sessions.find(used.name)
    first._residence.moving.release()
    await eventually(lambda: first.memory.files() == [])
    await asyncio.sleep(0)
    assert sessions.find(used.name) is used

    now[0] += OPTIONS.idle_ttl_s
    await eventually(lambda: len(sessions) == 0)  # the sweep goes on


async def test_a_deletion_whose_caller_goes_away_gives_all_back(sessions: SessionTable) -> None:
    session = await sessions.create(OPTIONS)
    await session._residence.moving.acquire()
    deleting = asyncio.create_task(sessions.delete(session.name))
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.shield(deleting), 0.01)

    deleting.cancel()
    session._residence.moving.release()

    with pytest.raises(asyncio.CancelledError):
        await deleting
    assert session.memory.files() == []
    with pytest.raises(NotFoundError):
        sessions.find(session.name)


async def test_an_interrupt_that_meets_a_dying_worker_does_not_say_that_the_session_is_lost(
    sessions: SessionTable,
) -> None:
    """The session goes on in another worker; its cell ends as WORKER_LOST."""
    session = await sessions.create(OPTIONS)
    await eventually(lambda: session.is_saved)
    options, audit = ExecutionOptions(code="go on"), AuditTrail()
    events = session.execute(options, CARRIERS, sessions.tasks, audit)
    assert await anext(events) == [1]
    (worker,) = sessions.pool.workers
    worker.kill("the test ends it")

    assert await session.interrupt() is True

    [ended] = await asyncio.wait_for(anext(events), 30)
    assert isinstance(ended, Ended)
    assert ended.frame.ending == "worker_lost"


async def test_an_interrupt_that_comes_late_ends_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may wait behind other frames until its cell has ended by itself."""
    monkeypatch.setattr("sandbox_service.execution_stream._INTERRUPT_GRACE_S", 0.0)
    is_waiting, may_go = asyncio.Event(), asyncio.Event()
    kills: list[str] = []

    async def send(frame: frames.ToWorker, fds: object = ()) -> None:
        if isinstance(frame, frames.Interrupt):
            is_waiting.set()
            await may_go.wait()

    session = WorkerSession(1, Limits(), send, kills.append, is_restored=True)
    session.receive(frames.Opened(session=1, memory_bytes=1))

    async def place() -> WorkerSession:
        return session

    options = ExecutionOptions(code="x")
    requests = CellRequests(options, CARRIERS, SubCallMeter(1), RunPass(""), "sub")
    stream = ExecutionStream(place, session.limits, 1, options, requests)
    running = asyncio.create_task(stream.run())
    assert await anext(stream.events()) == [1]
    await asyncio.sleep(0)
    interrupting = asyncio.create_task(stream.interrupt())
    await is_waiting.wait()
    session.lose("done")
    await running
    kills.clear()

    may_go.set()
    await interrupting
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(0.0, later.set)
    await later.wait()  # what waited for its time before has had it

    assert kills == []


async def test_a_worker_that_cannot_be_replaced_at_once_is_replaced_later(
    sessions: SessionTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be no process left to start, for a moment."""
    monkeypatch.setattr("sandbox_service.pool._RETRY_S", 0.01)
    starts: list[object] = []

    def start(*args: Any, **options: Any) -> Any:
        starts.append(args)
        return refuse() if len(starts) == 1 else WorkerProcess(*args, **options)

    session = await sessions.create(OPTIONS)
    await eventually(lambda: session.is_saved)
    (worker,) = sessions.pool.workers
    monkeypatch.setattr(sessions.pool, "_new_worker", lambda: start(sessions.pool.build, COMMAND))
    worker.kill("the test ends it")
    await eventually(lambda: [w.pid for w in sessions.pool.workers] not in ([], [worker.pid]))

    assert len(starts) == 2
    assert len(await run(sessions, session)) == 2


async def test_a_worker_that_ends_before_it_is_greeted_could_not_start(tmp_path: Path) -> None:
    worker = WorkerProcess(GuestBuild.in_folder(tmp_path), ("/bin/false",))
    await asyncio.to_thread(worker._process.wait)

    with pytest.raises(WorkerStartError, match="did not start"):
        await worker.greet()

    await worker.end()
