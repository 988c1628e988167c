"""Sessions as resources: one execution at a time, interruption, life and death."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2
from google.protobuf.duration_pb2 import Duration

from sandbox_service.jail.walls import REMEDIES, WALLS
from tests.support.eventually import eventually
from tests.support.sandbox import Sandbox, details, guest, sandbox
from tests.support.sandbox_calls import LOOP, refused, rest, started

pytestmark = pytest.mark.guest
Session = session_pb2.Session


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path) as running:
        yield running


async def test_a_session_describes_itself(box: Sandbox) -> None:
    limits = session_pb2.SessionLimits(sub_calls_max=5)
    began_s = time.monotonic()
    name = await box.create(limits=limits, labels={"run": "r1"}, idle_ttl=Duration(seconds=60))
    await box.run(name, "llm_query('x')")

    session = await box.session(name)

    assert session.state == Session.STATE_IDLE
    assert session.limits.sub_calls_max == 5
    assert session.limits.output_bytes_max == 1 << 20
    assert session.labels == {"run": "r1"}
    assert (session.sub_calls, session.executions) == (1, 1)
    assert session.memory_bytes > 40_000_000
    left = session.expire_time.ToDatetime() - session.create_time.ToDatetime()
    assert 59 < left.total_seconds() < 61 + time.monotonic() - began_s


async def test_an_unknown_session_is_not_found(box: Sandbox) -> None:
    request = wire.GetSessionRequest(name="sessions/none")

    code, reason, metadata = await refused(box.stub.GetSession(request, timeout=30))

    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert metadata == {"resource": "sessions/none"}


async def test_a_busy_session_takes_no_second_execution(box: Sandbox) -> None:
    name = await box.create()
    call = await started(box, name)

    code, reason, metadata = await refused(box.run(name, "1"))

    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_BUSY")
    assert metadata == {"session": name}
    assert (await box.session(name)).state == Session.STATE_BUSY
    assert box.table.count_by_state() == {"idle": 0, "busy": 1, "evicted": 0, "lost": 0}
    call.cancel()


async def test_an_interrupt_ends_the_cell_and_keeps_the_session(box: Sandbox) -> None:
    name = await box.create()
    await box.run(name, "x = 1")
    call = await started(box, name, "x = 2\n" + LOOP)

    request = wire.InterruptExecutionRequest(name=name)
    answer = await box.stub.InterruptExecution(request, timeout=30)

    assert answer.was_running
    ran = await rest(call)
    assert (ran.ending, ran.result.state_kept) == ("interrupted", False)
    assert (await box.run(name, "x")).out == "1\n"
    assert not (await box.stub.InterruptExecution(request, timeout=30)).was_running


async def test_an_interrupt_ends_the_wait_for_a_sub_model(box: Sandbox) -> None:
    """And gives the sub-model's call up, so that nothing more is paid for it."""
    name = await box.create()
    call = await started(box, name, "print('on')\nllm_query('hold')")
    await asyncio.wait_for(box.gateway.held.wait(), 30)

    request = wire.InterruptExecutionRequest(name=name)
    await box.stub.InterruptExecution(request, timeout=30)

    assert (await rest(call)).ending == "interrupted"
    await asyncio.wait_for(box.gateway.cancelled.wait(), 30)
    assert (await box.run(name, "llm_query('next')")).out == "'re: next'\n"


async def test_a_caller_that_goes_away_interrupts_its_cell(box: Sandbox) -> None:
    """Nothing runs on for nobody."""
    name = await box.create()
    call = await started(box, name)

    call.cancel()

    async def is_idle() -> bool:
        return (await box.session(name)).state == Session.STATE_IDLE

    await eventually(is_idle)
    assert (await box.run(name, "1")).out == "1\n"


async def test_deleting_a_session_ends_what_runs_in_it(box: Sandbox) -> None:
    name = await box.create()
    call = await started(box, name)

    await box.stub.DeleteSession(wire.DeleteSessionRequest(name=name), timeout=30)

    assert (await refused(rest(call)))[0] == grpc.StatusCode.NOT_FOUND
    assert (await refused(box.session(name)))[1] == "RESOURCE_NOT_FOUND"
    (worker,) = box.table.pool.workers
    await eventually(lambda: worker.session_count == 0)


async def test_deleting_again_is_an_error_unless_allowed(box: Sandbox) -> None:
    name = await box.create()
    request = wire.DeleteSessionRequest(name=name)
    await box.stub.DeleteSession(request, timeout=30)

    assert (await refused(box.stub.DeleteSession(request, timeout=30)))[1] == "RESOURCE_NOT_FOUND"
    await box.stub.DeleteSession(
        wire.DeleteSessionRequest(name=name, allow_missing=True), timeout=30
    )


async def test_a_session_that_nobody_uses_is_deleted(box: Sandbox) -> None:
    name = await box.create(idle_ttl=Duration(nanos=1_000_000))

    await eventually(lambda: len(box.table) == 0)

    assert (await refused(box.run(name, "1")))[1] == "RESOURCE_NOT_FOUND"


async def test_the_host_takes_so_many_sessions_and_no_more(tmp_path: Path) -> None:
    async with sandbox(guest(), tmp_path, sessions_max=2) as box:
        first = await box.create()
        await box.create()

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await box.create()

        assert details(caught.value)[:2] == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "SANDBOX_CAPACITY",
        )
        await box.stub.DeleteSession(wire.DeleteSessionRequest(name=first), timeout=30)
        await box.create()


async def test_repeating_a_request_id_returns_the_first_session(box: Sandbox) -> None:
    """A client that retries after a lost answer starts no second guest."""
    both = await asyncio.gather(*[box.create(request_id="a") for _ in range(2)])

    assert both[0] == both[1] == await box.create(request_id="a")
    assert len(box.table) == 1


async def test_a_request_id_is_forgotten_with_what_it_made(box: Sandbox) -> None:
    """What was asked for may be large, and is no longer needed to answer a repeat."""
    first = await box.create(request_id="a")
    await box.stub.DeleteSession(wire.DeleteSessionRequest(name=first), timeout=30)

    second = await box.create(request_id="a")

    assert second != first
    assert (await box.run(second, "1")).ending == "completed"


async def test_a_request_id_used_for_another_request_is_refused(box: Sandbox) -> None:
    await box.create(request_id="a")

    code, reason, metadata = await refused(box.create(request_id="a", labels={"k": "v"}))

    assert (code, reason) == (grpc.StatusCode.ABORTED, "REQUEST_ID_REUSED")
    assert metadata == {"request_id": "a"}


async def test_sessions_are_listed_by_pages(box: Sandbox) -> None:
    names = [await box.create() for _ in range(3)]

    first = await box.stub.ListSessions(wire.ListSessionsRequest(page_size=2), timeout=30)
    rest_of_them = await box.stub.ListSessions(
        wire.ListSessionsRequest(page_size=2, page_token=first.next_page_token), timeout=30
    )

    assert [s.name for s in first.sessions] + [s.name for s in rest_of_them.sessions] == names
    assert not rest_of_them.next_page_token


async def test_a_page_token_of_somewhere_else_is_refused(box: Sandbox) -> None:
    request = wire.ListSessionsRequest(page_token="bm9wZQ==")

    assert (await refused(box.stub.ListSessions(request, timeout=30)))[2] == {"field": "page_token"}


async def test_the_host_describes_itself(box: Sandbox) -> None:
    await box.create()

    info = await box.stub.GetSandboxInfo(wire.GetSandboxInfoRequest(), timeout=30)

    assert info.python_version == "3.15.0"
    assert info.guest_digest == guest().digest
    assert info.sessions == 1
    assert [wall.name for wall in info.walls] == ["wasm", "process", *WALLS]
    assert {wall.name for wall in info.walls if wall.raised} >= {"wasm", "process", *REMEDIES}
    assert all(wall.raised != bool(wall.detail) for wall in info.walls)


async def test_a_worker_has_nothing_of_the_services_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither variables, nor open files, nor a working directory."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with (tmp_path / "open").open("w"):
        async with sandbox(guest(), tmp_path) as box:
            (pid,) = box.worker_pids()
            process = Path(f"/proc/{pid}")

            assert process.joinpath("environ").read_bytes() == b""
            assert process.joinpath("cwd").readlink() == Path("/")
            files = set()
            for file in process.joinpath("fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # it has just been closed
                    files.add(str(file.readlink()))
            assert not [name for name in files if name.startswith(str(tmp_path))]
            assert len([name for name in files if name.startswith("socket:")]) == 1


async def test_a_page_of_sessions_fits_a_message(box: Sandbox) -> None:
    """Their labels are the callers' own, and a client takes 4 MiB at once unless told otherwise."""
    labels = {chr(0x1F600 + number) * 256: "\U0001f600" * 256 for number in range(16)}
    names = [await box.create(labels=labels) for _ in range(200)]
    found: list[str] = []
    token = ""

    while not found or token:
        request = wire.ListSessionsRequest(page_size=500, page_token=token)
        page = await box.stub.ListSessions(request, timeout=30)
        assert page.ByteSize() < 4 << 20
        found, token = found + [session.name for session in page.sessions], page.next_page_token

    assert found == names
