"""Calls about runs, as a client makes them of the orchestrator, and the errors they end with."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec

from common.errors import ReceivedError, received
from tests.support.orchestrator import TIMEOUT_S, Stack


async def failure(call: Any) -> ReceivedError:
    """Return the error that a call, or a stream of answers, ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    return received(caught.value)


async def create(stack: Stack, request_id: str = "", **spec: Any) -> Run:
    """Store a run over a small text, unless the spec says otherwise."""
    fields = {"question": "What?", "context": (await stack.upload()).name} | spec
    request = pb.CreateRunRequest(spec=RunSpec(**fields), request_id=request_id)
    return (await stack.runs.CreateRun(request, timeout=TIMEOUT_S)).run


async def get(stack: Stack, run: Run) -> Run:
    """Return a run as it is shown now."""
    response = await stack.runs.GetRun(pb.GetRunRequest(name=run.name), timeout=TIMEOUT_S)
    return response.run


async def cancel(stack: Stack, run: Run) -> Run:
    """Ask for a run's end; return it as it was shown then."""
    response = await stack.runs.CancelRun(pb.CancelRunRequest(name=run.name), timeout=TIMEOUT_S)
    return response.run


async def watch_for(stack: Stack, run: Run, case: str) -> None:
    """Return once an event of a kind has come; fail where the run ends without one."""
    call = stack.runs.WatchRun(pb.WatchRunRequest(name=run.name), timeout=TIMEOUT_S)
    async for response in call:
        if response.event.WhichOneof("event") == case:
            call.cancel()
            return
    pytest.fail(f"{run.name} ended without {case}")
