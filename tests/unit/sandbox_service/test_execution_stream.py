"""An execution on the supervisor's side, against a session whose worker only listens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from sandbox_service import frames
from sandbox_service.cell_requests import Carriers, CellRequests
from sandbox_service.execution_options import ExecutionOptions
from sandbox_service.execution_stream import ExecutionStream
from sandbox_service.limits import Limits
from sandbox_service.run_pass import RunPass
from sandbox_service.sub_calls import SubCallMeter
from sandbox_service.worker_session import WorkerSession


async def test_an_interrupt_before_the_start_is_not_forgotten() -> None:
    """The cell runs in a task of its own, which an interrupt may overtake."""
    sent: list[Any] = []
    is_sent = asyncio.Event()

    async def send(frame: frames.ToWorker, fds: Sequence[int] = ()) -> None:
        sent.append((frame, fds))
        if isinstance(frame, frames.Interrupt):
            is_sent.set()

    session = WorkerSession(1, Limits(), send, lambda _: None)
    session.receive(frames.Opened(session=1, memory_bytes=1))

    async def place() -> WorkerSession:
        return session

    options = ExecutionOptions(code="x")
    nobody = Carriers(sub_models=None)  # type: ignore[arg-type]
    requests = CellRequests(options, nobody, SubCallMeter(1), RunPass(""), "sub")
    stream = ExecutionStream(place, session.limits, 1, options, requests)

    await stream.interrupt()
    running = asyncio.create_task(stream.run())
    await asyncio.wait_for(is_sent.wait(), 30)
    session.lose("done")
    await running

    assert [type(frame) for frame, _ in sent] == [frames.Run, frames.Interrupt]
