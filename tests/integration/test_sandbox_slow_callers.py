"""Callers that take their cell's output late, or never: what it holds up, and what it does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2

from sandbox_service.session import SessionState
from tests.support.eventually import eventually
from tests.support.sandbox import Ran, Sandbox, details, guest, sandbox
from tests.support.sandbox_calls import refused

pytestmark = pytest.mark.guest
FLOOD = "import sys\nfor _ in range(1500):\n    sys.stdout.write('x' * 9_999 + '\\n')"
"""More than is on its way between service and caller at a time."""
FLOOD_LIMITS = session_pb2.SessionLimits(output_bytes_max=16 << 20)


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path) as running:
        yield running


async def unread(box: Sandbox, name: str) -> Any:
    """Start a cell whose caller takes nothing but the beginning, and wait until it has ended."""
    call = box.stub.Execute(wire.ExecuteRequest(name=name, code=FLOOD), timeout=60)
    await call.read()
    session = box.table.find(name)
    await eventually(lambda: session.executions == 1)
    return call


async def test_a_session_is_busy_until_its_caller_has_taken_the_last_cell(box: Sandbox) -> None:
    """What nobody takes is memory of the service: one cell's worth a session, and no more."""
    name = await box.create(limits=FLOOD_LIMITS)
    call = await unread(box, name)

    _, reason, _ = await refused(box.run(name, "1"))
    assert reason == "SESSION_BUSY"

    events = []
    while (response := await call.read()) is not grpc.aio.EOF:
        events.append(response.event)
    assert len(Ran(events).out) == 15_000_000
    assert (await box.run(name, "1")).out == "1\n"


async def test_a_session_is_free_when_the_caller_of_its_last_cell_goes_away(box: Sandbox) -> None:
    name = await box.create(limits=FLOOD_LIMITS)
    call = await unread(box, name)

    call.cancel()

    await eventually(lambda: box.table.find(name).state is SessionState.IDLE)
    assert (await box.run(name, "1")).out == "1\n"


async def test_what_a_deleted_session_wrote_is_kept_for_nobody(box: Sandbox) -> None:
    """Else sessions made and deleted in a row would fill the service's memory."""
    name = await box.create(limits=FLOOD_LIMITS)
    call = await unread(box, name)

    await box.stub.DeleteSession(wire.DeleteSessionRequest(name=name), timeout=30)

    seen_bytes = 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while (response := await call.read()) is not grpc.aio.EOF:
            seen_bytes += len(response.event.output.text)
    assert details(caught.value)[1] == "SESSION_LOST"
    assert seen_bytes < 10_000_000  # what was on its way


async def test_nothing_runs_in_a_session_whose_caller_takes_its_time(box: Sandbox) -> None:
    """Where memory is short, stopping it would give nothing back and spare the one that takes."""
    name = await box.create(limits=FLOOD_LIMITS)
    call = await unread(box, name)

    assert box.table.busy_sessions() == []
    request = wire.InterruptExecutionRequest(name=name)
    assert not (await box.stub.InterruptExecution(request, timeout=30)).was_running

    events = []
    while (response := await call.read()) is not grpc.aio.EOF:
        events.append(response.event)
    assert Ran(events).ending == "completed"
