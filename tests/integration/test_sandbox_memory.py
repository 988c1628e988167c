"""The service's own bound of memory, with real sessions that take it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2

from sandbox_service.guest_build import GuestBuild
from tests.support.eventually import eventually
from tests.support.sandbox import Sandbox, details, guest, sandbox

pytestmark = pytest.mark.guest
BOUND_BYTES = 512 << 20
HALF_BYTES = 180 << 20
HOLD = f"held = bytearray(b'x') * {HALF_BYTES}\nlen(held)"
State = session_pb2.Session


@pytest.fixture(scope="module")
def build() -> GuestBuild:
    return guest()


@pytest.fixture
async def box(build: GuestBuild, tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(build, tmp_path, memory_total_bytes_max=BOUND_BYTES) as box:
        yield box


async def memory_bytes(box: Sandbox) -> int:
    info = await box.stub.GetSandboxInfo(wire.GetSandboxInfoRequest(), timeout=30)
    assert info.memory_bytes_max == BOUND_BYTES
    return int(info.memory_bytes)


async def test_what_sessions_take_is_told_and_given_back(box: Sandbox) -> None:
    """Also what is in layers only, which is no process's own memory."""
    session = await box.create()
    await box.run(session, HOLD)

    # For as long as it is being saved it is there twice.
    async def is_counted() -> bool:
        return HALF_BYTES < await memory_bytes(box) < 1.6 * HALF_BYTES

    async def is_given_back() -> bool:
        return await memory_bytes(box) < HALF_BYTES

    await eventually(is_counted)
    await box.stub.DeleteSession(wire.DeleteSessionRequest(name=session), timeout=30)
    await eventually(is_given_back)


async def test_idle_sessions_make_room_and_come_back_unnoticed(box: Sandbox) -> None:
    """Together they take more than there may be; the one unused for longest goes first."""
    sessions = [await box.create() for _ in range(4)]
    for session in sessions:
        await take(box, session, HOLD, f"{HALF_BYTES}\n")

    async def is_first_evicted() -> bool:
        # Listing does not count as use.
        listed = await box.stub.ListSessions(wire.ListSessionsRequest(), timeout=30)
        states = {session.name: session.state for session in listed.sessions}
        assert states[sessions[-1]] == State.STATE_IDLE
        return bool(states[sessions[0]] == State.STATE_EVICTED)

    async def is_within() -> bool:
        return await memory_bytes(box) <= BOUND_BYTES

    await eventually(is_first_evicted)
    await eventually(is_within)
    for session in sessions:
        await take(box, session, "held[-1], len(held)", f"(120, {HALF_BYTES})\n")


async def take(box: Sandbox, session: str, code: str, out: str) -> None:
    """Run a cell, and wait until its session could be evicted: a service that stays above its
    bound because of those that cannot stops cells."""
    assert (await box.run(session, code)).out == out
    await eventually(lambda: box.table.find(session).is_saved)


async def test_new_sessions_are_refused_and_the_largest_cell_is_stopped(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where running cells take it all, evicting does not help."""
    monkeypatch.setattr("sandbox_service.memory_watch._PATIENCE_S", 30.0)
    greedy, modest = await box.create(), await box.create()
    await box.run(greedy, "before = 'as it was'")
    code = "from time import sleep\nheld = bytearray(b'x') * {}\nprint('on', flush=True)\nsleep(60)"
    calls = []
    for session, size in ((greedy, 3 * HALF_BYTES), (modest, HALF_BYTES // 2)):
        request = wire.ExecuteRequest(name=session, code=code.format(size))
        calls.append(box.stub.Execute(request, timeout=60))
        async for response in calls[-1]:
            if response.event.WhichOneof("event") == "output":
                break

    async def is_refused() -> bool:
        try:
            await box.create()
        except grpc.aio.AioRpcError as error:
            code, reason, _ = details(error)
            assert (code, reason) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "SANDBOX_CAPACITY",
            )
            return True
        return False

    await eventually(is_refused)
    monkeypatch.undo()  # from here on it need not wait for us
    result = [response.event async for response in calls[0]][-1].result

    assert result.ending == result.ENDING_OUT_OF_MEMORY
    assert "the service has no memory left" in result.error.message
    assert (result.error.type, result.state_kept) == ("MemoryError", False)
    assert (await box.run(greedy, "before")).out == "'as it was'\n"
    assert (await box.session(modest)).state == State.STATE_BUSY

    async def is_taken() -> bool:
        return not await is_refused()

    await eventually(is_taken)
    calls[1].cancel()
