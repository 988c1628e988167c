"""Sessions whose worker died or hung, or that were evicted: they come back as they were."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2

from sandbox_service.session import SessionState
from tests.support.eventually import eventually
from tests.support.sandbox import Ran, Sandbox, guest, sandbox
from tests.support.sandbox_calls import LOOP, refused, rest, started

pytestmark = pytest.mark.guest
SAVES_MAX = 8


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path) as running:
        yield running


async def is_evicted(box: Sandbox, name: str) -> bool:
    return (await box.session(name)).state == session_pb2.Session.STATE_EVICTED


async def kill_worker(box: Sandbox, name: str) -> None:
    """Kill the only worker while a session rests, and wait until the service has seen it."""
    (pid,) = box.worker_pids()
    await eventually(lambda: box.table.find(name).is_saved)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: is_evicted(box, name))


async def test_a_worker_that_dies_takes_no_state_with_it(box: Sandbox) -> None:
    """The next cell finds another worker, and what was there before."""
    name = await box.create(contexts=[box.text(b"word " * 2_000_000)])
    await box.run(name, "x = {'a': [1, 2]}; f = lambda: x['a']")

    await kill_worker(box, name)
    ran = await box.run(name, "x['a'].append(3); f(), len(context), context[:4]")

    assert (ran.ending, ran.out) == ("completed", "([1, 2, 3], 10000000, 'word')\n")
    assert ran.events[0].start.execution == 2
    assert (await box.session(name)).state == session_pb2.Session.STATE_IDLE


async def test_a_cell_whose_worker_dies_is_undone_and_says_so(box: Sandbox) -> None:
    name = await box.create()
    await box.run(name, "x = 1")
    call = await started(box, name, "x = 2\n" + LOOP)
    (pid,) = box.worker_pids()

    os.kill(pid, signal.SIGKILL)
    ran = await rest(call)

    assert (ran.ending, ran.result.state_kept) == ("worker_lost", False)
    assert "died" in ran.result.error.message
    assert ran.result.memory_bytes > 40_000_000
    assert (await box.run(name, "x")).out == "1\n"
    assert (await box.session(name)).executions == 3
    assert box.worker_pids() != [pid]


async def test_sub_calls_are_given_up_when_the_worker_dies(box: Sandbox) -> None:
    name = await box.create()
    call = await started(box, name, "print('on', flush=True)\nllm_query('hold')")
    await asyncio.wait_for(box.gateway.held.wait(), 30)
    (pid,) = box.worker_pids()

    os.kill(pid, signal.SIGKILL)

    assert (await rest(call)).ending == "worker_lost"
    await asyncio.wait_for(box.gateway.cancelled.wait(), 30)
    assert (await box.run(name, "llm_query('next')")).out == "'re: next'\n"


async def test_other_workers_sessions_do_not_notice(tmp_path: Path) -> None:
    async with sandbox(guest(), tmp_path, workers=2) as box:
        names = [await box.create(), await box.create()]
        calls = [await started(box, name, f"x = {i}\n{LOOP}") for i, name in enumerate(names)]
        stopped, runs_on = sorted(
            box.table.pool.workers, key=lambda worker: worker.pid != box.worker_pids()[0]
        )

        os.kill(stopped.pid, signal.SIGKILL)
        ended, pending = await asyncio.wait(
            [asyncio.create_task(rest(call)) for call in calls], return_when="FIRST_COMPLETED"
        )

        assert [task.result().ending for task in ended] == ["worker_lost"]
        assert not runs_on.death
        for name in names:
            await box.stub.InterruptExecution(wire.InterruptExecutionRequest(name=name), timeout=30)
        assert [(await task).ending for task in pending] == ["interrupted"]


async def test_a_session_survives_one_worker_after_the_other(box: Sandbox) -> None:
    name = await box.create()
    await box.run(name, "x = [0]")
    for i in range(1, 4):
        await kill_worker(box, name)
        await box.run(name, f"x.append({i})")

    assert (await box.run(name, "x")).out == "[0, 1, 2, 3]\n"


async def test_a_worker_that_hangs_is_replaced_once_it_is_interrupted(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers nothing, and has not died."""
    monkeypatch.setattr("sandbox_service.execution_stream._INTERRUPT_GRACE_S", 0.2)
    name = await box.create()
    await box.run(name, "x = 1")
    call = await started(box, name, "x = 2\n" + LOOP)
    (pid,) = box.worker_pids()
    os.kill(pid, signal.SIGSTOP)

    await box.stub.InterruptExecution(wire.InterruptExecutionRequest(name=name), timeout=30)
    ran = await rest(call)

    assert ran.ending == "worker_lost"
    assert "hung" in ran.result.error.message
    assert (await box.run(name, "x")).out == "1\n"


async def test_a_caller_that_goes_away_does_not_leave_a_hung_worker(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_service.execution_stream._INTERRUPT_GRACE_S", 0.2)
    name = await box.create()
    call = await started(box, name)
    (pid,) = box.worker_pids()
    os.kill(pid, signal.SIGSTOP)

    call.cancel()

    await eventually(lambda: pid not in box.worker_pids())
    assert (await box.run(name, "1")).out == "1\n"


async def test_a_session_whose_worker_dies_while_it_saves_is_lost(
    box: Sandbox,
) -> None:
    """Its layers are torn; its last checkpoint is not, and the error names it."""
    for _ in range(SAVES_MAX):
        name, key = await killed_after_a_large_cell(box)
        # A busy machine may have let the worker save all of it before it was killed.
        if not await came_through(box, name):
            break
        await box.stub.DeleteSession(wire.DeleteSessionRequest(name=name), timeout=30)

    code, reason, metadata = await refused(box.session(name))

    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_LOST")
    assert metadata["session"] == name
    assert metadata["checkpoint"] == key
    assert "worker" in metadata["cause"]
    assert (await box.run(await box.restore(key), "x")).out == "1\n"


async def killed_after_a_large_cell(box: Sandbox) -> tuple[str, str]:
    """Kill the worker once a cell has ended whose save takes long; returns the session and its
    checkpoint from before."""
    limits = session_pb2.SessionLimits(memory_bytes_max=2 << 30)
    name = await box.create(limits=limits)
    await box.run(name, "x = 1")
    key = (await box.checkpoint(name)).key
    (pid,) = box.worker_pids()
    ran = await box.run(name, "x = bytearray(b'x' * 700_000_000)")
    os.kill(pid, signal.SIGKILL)
    assert ran.ending == "completed"
    return name, key


async def came_through(box: Sandbox, name: str) -> bool:
    """Wait until the service has seen the end of a session's worker; whether it is still there."""
    seen: list[bool] = []

    async def is_seen() -> bool:
        try:
            if await is_evicted(box, name):
                seen.append(True)
        except grpc.aio.AioRpcError:
            seen.append(False)
        return bool(seen)

    await eventually(is_seen)
    return seen[0]


async def test_a_session_that_broke_its_interpreter_is_lost(box: Sandbox) -> None:
    """What broke it is in its layers: bringing it back would only break it again."""
    name = await box.create()
    await box.run(name, "import builtins; del builtins.__cell__")

    code, reason, metadata = await refused(box.run(name, "1"))

    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_LOST")
    assert metadata["checkpoint"] == ""
    assert len(box.table) == 0


async def test_a_lost_session_may_be_deleted_where_missing_ones_may(box: Sandbox) -> None:
    """It is gone already; who tidies up need not know why."""
    name = await box.create()
    await box.run(name, "import builtins; del builtins.__cell__")
    await refused(box.run(name, "1"))

    request = wire.DeleteSessionRequest(name=name)
    assert (await refused(box.stub.DeleteSession(request, timeout=30)))[1] == "SESSION_LOST"
    request.allow_missing = True
    await box.stub.DeleteSession(request, timeout=30)


async def test_an_evicted_session_comes_back_unnoticed(box: Sandbox, tmp_path: Path) -> None:
    name = await box.create(contexts=[box.text(b"word " * 2_000_000)])
    await box.run(name, "x = [1]")
    (worker,) = box.table.pool.workers

    await box.table.evict(box.table.find(name))

    assert await is_evicted(box, name)
    assert box.table.find(name).memory.files() == []
    await eventually(lambda: worker.session_count == 0)
    ran = await box.run(name, "x.append(2); x, context[-5:]")
    assert ran.out == "([1, 2], 'word ')\n"
    assert (await box.session(name)).checkpoint_key == ""
    await box.stub.DeleteSession(wire.DeleteSessionRequest(name=name), timeout=30)
    assert not list((tmp_path / "evicted").iterdir())


async def test_an_evicted_session_is_forked_and_checkpointed_where_it_is(box: Sandbox) -> None:
    name = await box.create()
    await box.run(name, "x = 1")
    await box.table.evict(box.table.find(name))

    copy = await box.fork(name)
    key = (await box.checkpoint(name)).key

    assert await is_evicted(box, name)
    for each in (copy, await box.restore(key), name):
        assert (await box.run(each, "x")).out == "1\n"


async def test_an_evicted_session_that_is_deleted_leaves_nothing(
    box: Sandbox, tmp_path: Path
) -> None:
    name = await box.create()
    await box.run(name, "x = 1")
    await box.table.evict(box.table.find(name))
    assert list((tmp_path / "evicted").iterdir())

    await box.stub.DeleteSession(wire.DeleteSessionRequest(name=name), timeout=30)

    assert not list((tmp_path / "evicted").iterdir())


async def test_a_session_whose_worker_died_is_evicted_too(box: Sandbox) -> None:
    """Its layers take memory as before."""
    name = await box.create()
    await box.run(name, "x = 1")
    await kill_worker(box, name)
    session = box.table.find(name)
    assert session.memory.files()

    await box.table.evict(session)

    assert session.memory.files() == []
    assert (await box.run(name, "x")).out == "1\n"


async def test_a_busy_session_is_not_evicted(box: Sandbox) -> None:
    name = await box.create()
    call = await started(box, name)

    await box.table.evict(box.table.find(name))

    assert box.table.find(name).state is SessionState.BUSY
    assert box.table.idle_sessions() == []
    assert [session.name for session in box.table.busy_sessions()] == [name]
    call.cancel()


async def test_a_session_that_is_used_while_it_is_evicted_stays(box: Sandbox) -> None:
    name = await box.create()
    await box.run(name, "x = bytearray(30_000_000)")
    session = box.table.find(name)

    evicting = asyncio.create_task(box.table.evict(session))
    ran = await box.run(name, "x[0] = 1")
    await evicting

    assert ran.ending == "completed"
    assert session.state is SessionState.IDLE
    assert (await box.run(name, "x[0]")).out == "1\n"


async def test_the_session_unused_for_longest_is_the_first_to_go(box: Sandbox) -> None:
    names = [await box.create() for _ in range(3)]
    await box.run(names[0], "1")

    await eventually(lambda: len(box.table.idle_sessions()) == 3)
    assert [session.name for session in box.table.idle_sessions()] == [*names[1:], names[0]]
    await box.table.evict(box.table.find(names[1]))
    assert [session.name for session in box.table.idle_sessions()] == [names[2], names[0]]


async def test_what_was_evicted_and_is_damaged_is_lost(box: Sandbox, tmp_path: Path) -> None:
    name = await box.create()
    await box.run(name, "x = 1")
    await box.table.evict(box.table.find(name))
    (stored,) = (tmp_path / "evicted").iterdir()
    stored.write_bytes(stored.read_bytes()[:-10])

    code, reason, metadata = await refused(box.run(name, "x"))

    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_LOST")
    assert "damaged" in metadata["cause"]


async def test_memory_counts_each_layer_once(box: Sandbox) -> None:
    """As the memory watch sees it: forks share."""
    name = await box.create()
    await box.run(name, "x = bytearray(b'x' * 50_000_000)")
    await box.fork(name)
    before = box.table.memory_bytes()
    await box.fork(name)

    assert before > 50_000_000
    assert box.table.memory_bytes() - before < 20_000_000


async def test_a_session_that_cannot_be_stored_stays_where_it_is(
    box: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk costs no state."""
    name = await box.create()
    await box.run(name, "x = 1")
    (tmp_path / ".partial").touch()

    await box.table.evict(box.table.find(name))
    code, reason, _ = await refused(
        box.stub.CheckpointSession(wire.CheckpointSessionRequest(name=name), timeout=30)
    )

    assert "cannot be evicted" in caplog.text
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SANDBOX_CAPACITY")
    assert box.table.find(name).state is SessionState.IDLE
    assert (await box.run(name, "x")).out == "1\n"


async def test_a_session_that_is_deleted_on_its_way_back_leaves_nothing(box: Sandbox) -> None:
    name = await box.create()
    await box.run(name, "x = bytearray(b'x' * 30_000_000)")
    session = box.table.find(name)
    await box.table.evict(session)
    delete = box.stub.DeleteSession(wire.DeleteSessionRequest(name=name), timeout=30)

    ran, _ = await asyncio.gather(box.run(name, "len(x)"), delete, return_exceptions=True)

    assert isinstance(ran, Ran | grpc.aio.AioRpcError)
    assert session.memory.files() == []
    (worker,) = box.table.pool.workers
    await eventually(lambda: worker.session_count == 0)
