"""Programs of a few lines that stand in for the worker: with its socket, saying what no worker of
ours would; and a service whose workers they are.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from common.errors import NotFoundError
from sandbox_service.audit import AuditTrail
from sandbox_service.cell_requests import Carriers
from sandbox_service.execution_options import ExecutionOptions
from sandbox_service.execution_stream import Ended, Event
from sandbox_service.guest_build import GuestBuild
from sandbox_service.limits import Limits
from sandbox_service.objects import FolderObjects
from sandbox_service.pool import WorkerPool
from sandbox_service.run_pass import RunPass
from sandbox_service.session_options import SessionOptions
from sandbox_service.session_table import SessionTable
from sandbox_service.sub_calls import SubCall

PRELUDE = """
import socket, sys
from sandbox_service import frames
connection = socket.socket(fileno=int(sys.argv[1]))
reader = frames.FrameReader(frames.ToWorker)
waiting = []
def receive():
    while not waiting:
        data = connection.recv(1 << 16)
        if not data:
            sys.exit()
        waiting.extend(reader.feed(data))
    return waiting.pop(0)
def send(*sent):
    for frame in sent:
        connection.sendall(frame if isinstance(frame, bytes) else frames.encode(frame))
def ended(execution):
    return frames.Ended(session=1, execution=execution, ending="completed", state_kept=True,
        failure=None, final=None, variables=[], output_bytes=0, output_bytes_dropped=0,
        own_time_s=0.0, wait_time_s=0.0, fuel_used=0, memory_bytes=0)
def saved(execution):
    return frames.Saved(session=1, execution=execution)
def output(text):
    return frames.Output(session=1, execution=1, stream="stdout", text=text)
def sub_calls(call):
    question = frames.Question(prompts=[[frames.Message("user", "x")]], is_batch=False,
        tier="sub", output_tokens_max=None, temperature=None)
    return frames.SubCalls(session=1, execution=1, call=call, question=question)
receive()
"""
GREET = PRELUDE + "send(frames.Started())\n"
OPEN = GREET + "receive()\nsend(frames.Opened(session=1, memory_bytes=1), saved(0))\n"
RUN = OPEN + "run = receive()\n"
OPTIONS = SessionOptions(
    limits=Limits(output_bytes_max=10),
    contexts=[],
    idle_ttl_s=60.0,
    labels={},
)


class NoSubModels:
    """The gateway is not asked by these tests."""

    async def ask(
        self, calls: list[SubCall], run_pass: RunPass
    ) -> AsyncIterator[tuple[int, NotFoundError]]:
        for position in range(len(calls)):
            yield position, NotFoundError("models/none")


CARRIERS = Carriers(sub_models=NoSubModels())  # type: ignore[arg-type]


@asynccontextmanager
async def table(program: str, tmp_path: Path) -> AsyncIterator[SessionTable]:
    """Run a service whose workers are this program."""
    command = (sys.executable, "-I", "-c", program)
    build = GuestBuild.in_folder(tmp_path)
    async with (
        WorkerPool(build, 1, command) as pool,
        SessionTable(pool, FolderObjects(tmp_path), 10) as sessions,
    ):
        yield sessions


async def run(
    sessions: SessionTable, code: str = "x", session_options: SessionOptions = OPTIONS
) -> list[int | Event]:
    """Run a cell in a session of its own, and return what was told of it."""
    session = await sessions.create(session_options)
    options = ExecutionOptions(code=code)
    events = session.execute(options, CARRIERS, sessions.tasks, AuditTrail())
    return [event async for batch in events for event in batch]


def worker_lost(event: int | Event) -> str:
    """Return the message of a cell that ended as its worker died."""
    assert isinstance(event, Ended)
    assert (event.frame.ending, event.frame.state_kept) == ("worker_lost", False)
    assert event.frame.failure is not None
    return event.frame.failure.message
