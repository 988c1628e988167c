"""Workers that misbehave: the supervisor ends them, answers for them, and goes on.

A program of a few lines stands in for the worker; it has the same socket and says what no
worker of ours would.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from pathlib import Path

import pytest

from sandbox_service import frames
from sandbox_service.audit import AuditTrail
from sandbox_service.context_mounts import ContextBlob
from sandbox_service.errors import CapacityError, SessionLostError
from sandbox_service.execution_options import ExecutionOptions
from sandbox_service.execution_stream import Ended
from sandbox_service.limits import Limits
from sandbox_service.worker_process import WorkerStartError
from tests.support.eventually import eventually
from tests.support.posing_worker import (
    CARRIERS,
    GREET,
    OPEN,
    OPTIONS,
    PRELUDE,
    RUN,
    run,
    table,
    worker_lost,
)

HOSTILE = {
    "bytes that are no frame": "send(b'\\x05\\0\\0\\0hello')",
    "a frame larger than any": "send(b'\\xff\\xff\\xff\\xff')",
    "a frame of another session": "send(frames.Closed(session=2))",
    "a frame of the other direction": "send(frames.Close(session=1))",
    "a second start": "send(frames.Started())",
    "a second opening": "send(frames.Opened(session=1, memory_bytes=1))",
    "a closing that nobody asked for": "send(frames.Closed(session=1))",
    "the end of another execution": "send(ended(2))",
    "more output than the limit": "send(*[output('123456')] * 2)",
    "output that says nothing": (
        "payload = frames.encode(output('x'))[4:].replace(b'\\xa1x', b'\\xa0')\n"
        "send(len(payload).to_bytes(4, 'little') + payload)"
    ),
    "sub-calls out of order": "send(sub_calls(2))",
    "a number that the wire does not carry": (
        "import msgspec\nsend(msgspec.structs.replace(ended(1), fuel_used=2**64 - 1))"
    ),
    "a time that is no number": (
        "import msgspec\nsend(msgspec.structs.replace(ended(1), own_time_s=float('nan')))"
    ),
    "a time beyond all time": (
        "import msgspec\nsend(msgspec.structs.replace(ended(1), wait_time_s=1e300))"
    ),
    "sub-calls on top of sub-calls": (
        "send(frames.encode(sub_calls(1)) + frames.encode(sub_calls(2)))"
    ),
    "its own death": (
        "import msgspec\nsend(msgspec.structs.replace(ended(1), ending='worker_lost'))"
    ),
    "what it saved before there was anything": "send(saved(1))",
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_worker_that_sends_what_it_may_not_is_ended(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The session that ran is lost with a clear cause, and another worker takes its place."""
    async with table(RUN + HOSTILE[what] + "\nreceive()\n", tmp_path) as sessions:
        (worker,) = sessions.pool.workers

        with pytest.raises(SessionLostError) as caught:
            await asyncio.wait_for(run(sessions), 30)

        assert "worker" in caught.value.metadata["cause"]
        await eventually(lambda: len(sessions.pool.workers) == 1)
        assert sessions.pool.workers != [worker]
        assert len(sessions) == 0
        (event,) = [record for record in caplog.records if record.name == "fathom.security"]
        assert f"worker {worker.pid} broke the protocol" in event.getMessage()


async def test_a_worker_that_dies_takes_the_cell_and_not_the_session(tmp_path: Path) -> None:
    """Its layers are the service's; the next call finds another worker for them."""
    async with table(RUN + "sys.exit()", tmp_path) as sessions:
        number, last = await asyncio.wait_for(run(sessions), 30)

        assert number == 1
        assert "the worker process ended" in worker_lost(last)
        assert sessions.count_by_state() == {"idle": 0, "busy": 0, "evicted": 1, "lost": 0}


@pytest.mark.parametrize("what", ["send(ended(1))\nsys.exit()", "send(ended(1), 3 * b'\\xff')"])
async def test_a_worker_that_dies_while_it_saves_takes_the_session(
    what: str, tmp_path: Path
) -> None:
    """The layers are torn then: half of them from before the cell."""
    async with table(RUN + what, tmp_path) as sessions:
        (worker,) = sessions.pool.workers
        last = (await asyncio.wait_for(run(sessions), 30))[-1]
        assert isinstance(last, Ended)
        assert last.frame.ending == "completed"
        worker.kill("the test says so")
        await eventually(lambda: len(sessions) == 0)


async def test_a_worker_that_does_not_stop_a_cell_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt is not left to the worker alone."""
    monkeypatch.setattr("sandbox_service.execution_stream._INTERRUPT_GRACE_S", 0.05)
    async with table(RUN + "receive()\nreceive()\n", tmp_path) as sessions:
        session = await sessions.create(OPTIONS)
        options = ExecutionOptions(code="x")
        events = session.execute(options, CARRIERS, sessions.tasks, AuditTrail())
        assert await anext(events) == [1]

        await session.interrupt()

        [last] = await asyncio.wait_for(anext(events), 30)
        assert "did not stop an interrupted cell" in worker_lost(last)
        await events.aclose()


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        ("ended(1), saved(1), ended(1)", "Ended while idle"),
        ("ended(1), ended(1)", "Ended before Saved"),
        ("ended(1), saved(1), saved(1)", "Saved of another execution"),
    ],
)
async def test_what_a_worker_sends_twice_ends_it_after_the_first(
    sent: str, problem: str, tmp_path: Path
) -> None:
    """The caller has its result; the worker is ended all the same."""
    async with table(RUN + f"send({sent})\nreceive()\n", tmp_path) as sessions:
        (worker,) = sessions.pool.workers

        await asyncio.wait_for(run(sessions), 30)

        await eventually(lambda: bool(worker.death))
        assert problem in worker.death


async def test_a_worker_that_never_ends_a_cell_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's own deadline is not trusted alone."""
    monkeypatch.setattr("sandbox_service.execution_stream._GRACE_S", 0.05)
    hasty = dataclasses.replace(OPTIONS, limits=Limits(execute_time_max_s=0.05))
    async with table(RUN + "receive()\n", tmp_path) as sessions:
        last = (await asyncio.wait_for(run(sessions, session_options=hasty), 30))[-1]

    assert "did not stop a cell in time" in worker_lost(last)


async def test_a_worker_that_never_opens_a_session_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_service.session_opener.OPEN_TIMEOUT_S", 0.05)
    async with table(GREET + "receive()\nreceive()\n", tmp_path) as sessions:
        with pytest.raises(CapacityError, match="did not open a session in time"):
            await asyncio.wait_for(sessions.create(OPTIONS), 30)


async def test_a_worker_that_does_not_read_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one full socket would hold up every call to its sessions."""
    monkeypatch.setattr("sandbox_service.worker_process._SEND_TIMEOUT_S", 0.2)
    program = OPEN + "import threading\nthreading.Event().wait()\n"
    async with table(program, tmp_path) as sessions:
        last = (await asyncio.wait_for(run(sessions, "#" * (8 << 20)), 30))[-1]

    assert "cannot be reached: it takes nothing any more" in worker_lost(last)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (PRELUDE + "send(frames.Started(problem='no such file'))", "no such file"),
        (PRELUDE + "send(ended(1))", "wrong first frame"),
        ("raise SystemExit", "did not start"),
    ],
)
async def test_a_guest_that_does_not_load_stops_the_service(
    program: str, message: str, tmp_path: Path
) -> None:
    """Better no service than one that can open no session."""
    with pytest.raises(WorkerStartError, match=message):
        async with table(program, tmp_path):
            pass


async def test_a_worker_may_fail_in_one_session_and_go_on(tmp_path: Path) -> None:
    """The session goes on too, in this worker or another."""
    program = RUN + "send(frames.Lost(session=1, cause='no memory'))\nreceive()\n"
    async with table(program, tmp_path) as sessions:
        (worker,) = sessions.pool.workers

        last = (await asyncio.wait_for(run(sessions), 30))[-1]

        assert "no memory" in worker_lost(last)
        assert sessions.pool.workers == [worker]
        assert worker.session_count == 0
        assert sessions.count_by_state()["evicted"] == 1


async def test_a_session_that_its_own_code_broke_is_lost(tmp_path: Path) -> None:
    program = RUN + "send(frames.Lost(session=1, cause='no len', is_broken=True))\nreceive()\n"
    async with table(program, tmp_path) as sessions:
        with pytest.raises(SessionLostError, match="no len"):
            await asyncio.wait_for(run(sessions), 30)

        assert len(sessions) == 0


SPOILT = {
    "a size beyond all memory": "os.pwrite(fd, b'x', 0)\nos.ftruncate(fd, 1 << 40)",
    "a size that is none": "os.pwrite(fd, b'x', 0)\nos.ftruncate(fd, 70_000)",
    "a way to write to what is shared": "m = mmap.mmap(fd, os.ftruncate(fd, 1 << 16) or 1 << 16)\n"
    "m[0] = 1",
    "seals of its own": "os.pwrite(fd, b'x', 0)\nfcntl.fcntl(fd, fcntl.F_ADD_SEALS, 1)",
}


@pytest.mark.parametrize("what", SPOILT)
async def test_a_worker_that_spoils_a_layer_loses_the_session(what: str, tmp_path: Path) -> None:
    """Its forks and checkpoints would inherit what is none of a guest's memory."""
    program = GREET + (
        "import fcntl, mmap, os\n"
        "data, (fd, *_), _, _ = socket.recv_fds(connection, 1 << 16, 10)\nlist(reader.feed(data))\n"
        f"{SPOILT[what]}\n"
        "send(frames.Opened(session=1, memory_bytes=1), saved(0))\nreceive()\n"
    )
    async with table(program, tmp_path) as sessions:
        (worker,) = sessions.pool.workers
        session = await sessions.create(OPTIONS)

        with pytest.raises(SessionLostError, match="spoilt its layers"):
            await asyncio.wait_for(sessions.fork(session.name), 30)

        assert "spoilt" in worker.death
        assert len(sessions) == 0


async def test_frames_may_come_in_any_pieces(tmp_path: Path) -> None:
    """As they do from a socket."""
    program = RUN + (
        "for byte in b''.join(map(frames.encode, (output('hi'), ended(1), saved(1)))):\n"
        "    send(bytes([byte]))\nreceive()\n"
    )
    async with table(program, tmp_path) as sessions:
        number, output, last = await asyncio.wait_for(run(sessions), 30)

    assert number == 1
    assert isinstance(output, frames.Output)
    assert output.text == "hi"
    assert last is not None


async def test_a_caller_that_goes_away_leaves_no_frame_cut_off(tmp_path: Path) -> None:
    """Half a frame would make nonsense of all that follow, for every session of the worker."""
    reading = tmp_path / "reading"
    os.mkfifo(reading)
    program = GREET + (
        f"open({str(reading)!r}).read()\n"
        "first = receive()\nassert receive() == frames.Close(session=first.session)\n"
        "send(frames.Closed(session=first.session))\n"
        "second = receive()\nsend(frames.Opened(session=second.session, memory_bytes=1))\n"
        "receive()\n"
    )
    blob = tmp_path / "blob"
    blob.write_bytes(b"x")
    names = [f"{i:08}" * 8 for i in range(20_000)]
    texts = [
        frames.Text(name=name, offset_bytes=0, size_bytes=1, characters=1, code_point_max=120)
        for name in names
    ]
    mount = frames.Mount(variable="context", kind="documents", texts=texts)
    large = dataclasses.replace(
        OPTIONS, contexts=[ContextBlob(mount=mount, key="blob", size_bytes=1)]
    )
    async with table(program, tmp_path) as sessions:
        (worker,) = sessions.pool.workers
        creating = asyncio.create_task(sessions.create(large))
        await eventually(lambda: worker.session_count == 1)
        await asyncio.sleep(0)

        creating.cancel()
        await asyncio.sleep(0)
        await asyncio.to_thread(reading.write_bytes, b"")

        with pytest.raises(asyncio.CancelledError):
            await creating
        await asyncio.wait_for(sessions.create(OPTIONS), 30)
        assert sessions.pool.workers == [worker]
        assert worker.session_count == 1


async def test_a_repeat_does_not_share_the_end_of_a_cancelled_call(tmp_path: Path) -> None:
    """A client repeats just because its first connection broke."""
    program = GREET + (
        "first = receive()\nassert isinstance(receive(), frames.Close)\n"
        "send(frames.Closed(session=first.session))\n"
        "second = receive()\nsend(frames.Opened(session=second.session, memory_bytes=1))\n"
        "receive()\n"
    )
    async with table(program, tmp_path) as sessions:
        (worker,) = sessions.pool.workers
        first = asyncio.create_task(sessions.create(OPTIONS, "once"))
        await eventually(lambda: worker.session_count == 1)
        repeat = asyncio.create_task(sessions.create(OPTIONS, "once"))
        await asyncio.sleep(0)

        first.cancel()

        session = await asyncio.wait_for(repeat, 30)
        assert sessions.find(session.name) is session
        assert await sessions.create(OPTIONS, "once") is session


@pytest.mark.parametrize("hoard_mib", [0, 200])
async def test_a_worker_that_takes_more_memory_than_its_sessions_may_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hoard_mib: int
) -> None:
    """The jail bounds no memory: a worker that was taken over could have all of the host's."""
    monkeypatch.setattr("sandbox_service.worker_process._OWN_BYTES", 150 << 20)
    program = f"hoard = bytearray(b'x') * ({hoard_mib} << 20)\n" + GREET + "receive()\n"
    async with table(program, tmp_path) as sessions:
        (worker,) = sessions.pool.workers

        assert sessions.end_greedy_worker() == bool(hoard_mib)

        assert bool(worker.death) == bool(hoard_mib)


async def test_descriptors_that_a_worker_sends_reach_nobody(tmp_path: Path) -> None:
    """They would use up those of the service, and one of them might be read as something else."""
    attempt = """
import os
run = receive()
frame = frames.encode(output("x"))
sent = os.memfd_create("sent-by-a-worker")
for i in range(9):
    socket.send_fds(connection, [frame[:1]], [sent] * 100)
    connection.sendall(frame[1:])
send(ended(1), saved(1))
receive()
"""
    async with table(OPEN + attempt, tmp_path) as sessions:
        session = await sessions.create(OPTIONS)
        options = ExecutionOptions(code="x")
        events = session.execute(options, CARRIERS, sessions.tasks, AuditTrail())

        assert [batch async for batch in events][-1][-1].frame.ending == "completed"  # type: ignore[union-attr]

        assert not [name for name in open_files() if "sent-by-a-worker" in name]


def open_files() -> list[str]:
    """What the descriptors of this process stand for."""
    found = []
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just been closed
            found.append(str(file.readlink()))
    return found
