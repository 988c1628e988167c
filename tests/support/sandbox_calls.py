"""Calls of the sandbox service that tests look at while they are under way, or that are refused."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from fathom.sandbox.v1 import sandbox_service_pb2 as wire

from tests.support.sandbox import TIMEOUT_S, Ran, Sandbox, details

LOOP = "print('on', flush=True)\nwhile True:\n    pass"
"""A cell that writes, and then runs for as long as it is let."""


async def refused(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Await a call that is to fail, and return its code, reason and metadata."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return details(caught.value)


async def started(box: Sandbox, session: str, code: str = LOOP) -> Any:
    """Start a cell and return the call once it has written."""
    request = wire.ExecuteRequest(name=session, code=code)
    call = box.stub.Execute(request, timeout=TIMEOUT_S)
    async for response in call:
        if response.event.HasField("output"):
            return call
    raise AssertionError("it ended")


async def rest(call: Any) -> Ran:
    """Read a started cell to its end."""
    return Ran([response.event async for response in call])


async def value(box: Sandbox, session: str, code: str) -> Any:
    """Run an expression and return its value."""
    ran = await box.run(session, f"import json\nprint(json.dumps({code}))")
    assert ran.ending == "completed", ran.err
    return json.loads(ran.out)
