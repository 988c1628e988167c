"""The sandbox's way to an orchestrator that cannot serve it just then: it is asked again, since
code that was told of it would go on as if its child run or tool had failed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from fathom.orchestrator.v1 import host_tool_service_pb2 as tool_pb
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.host_tool_service_pb2_grpc import (
    HostToolServiceServicer,
    add_HostToolServiceServicer_to_server,
)
from fathom.orchestrator.v1.orchestrator_service_pb2_grpc import (
    OrchestratorServiceServicer,
    add_OrchestratorServiceServicer_to_server,
)
from fathom.orchestrator.v1.run_pb2 import Run

from common.database import DatabaseAwayError, DatabaseFullError
from common.errors import DrainingError, InvalidFieldError, ServerBusyError, ServiceError
from common.server import Server
from orchestrator.errors import TenantBusyError
from sandbox_service import frames
from sandbox_service.child_runs import ChildOrder
from sandbox_service.host_tools import HostToolOrder
from sandbox_service.orchestrator_client import OrchestratorClient
from sandbox_service.run_pass import RunPass
from tests.support.orchestrator import serve_on_address


class Orchestrator(OrchestratorServiceServicer, HostToolServiceServicer):
    """Fails once with an error, and then serves."""

    def __init__(self, error: ServiceError) -> None:
        self.asked = 0
        self._error = error

    def register(self, server: Server) -> None:
        """Add it to a server."""
        add_OrchestratorServiceServicer_to_server(self, server.grpc)
        add_HostToolServiceServicer_to_server(self, server.grpc)

    async def RunChild(
        self, request: pb.RunChildRequest, context: Any
    ) -> AsyncIterator[pb.RunChildResponse]:
        self._fail_once()
        yield pb.RunChildResponse(run=Run(state=Run.STATE_ANSWERED))

    async def CallHostTool(
        self, request: tool_pb.CallHostToolRequest, context: Any
    ) -> tool_pb.CallHostToolResponse:
        self._fail_once()
        return tool_pb.CallHostToolResponse(result_json="1")

    def _fail_once(self) -> None:
        self.asked += 1
        if self.asked == 1:
            raise self._error


CHILD = ChildOrder(
    request_id="0a/1/1/c1",
    child=msgspec.convert(
        dict.fromkeys(frames.ChildRun.__struct_fields__)
        | {"question": "What is it?", "tier": "", "sub_tier": "", "schema": ""},
        frames.ChildRun,
    ),
    siblings=1,
    sub_calls_left=1,
)
TOOL = HostToolOrder(request_id="0a/1/1/t1", tool="look_up", arguments_json="{}")


async def ask(client: OrchestratorClient, *, is_tool: bool) -> None:
    if is_tool:
        assert await client.call_tool(TOOL, "token") == "1"
    else:
        states = [run.state async for run in client.run(CHILD, RunPass("token"))]
        assert states == [Run.STATE_ANSWERED]


@pytest.mark.parametrize("is_tool", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        *(ServerBusyError(1000), TenantBusyError("cell_calls_max", 1)),
        *(DatabaseAwayError(), DatabaseFullError(), DrainingError()),
    ],
)
async def test_what_passes_is_waited_for(error: ServiceError, is_tool: bool) -> None:
    orchestrator = Orchestrator(error)  # type: ignore[abstract]  # the rest is not asked
    async with (
        serve_on_address(orchestrator) as address,
        OrchestratorClient(address) as client,
    ):
        await ask(client, is_tool=is_tool)

    assert orchestrator.asked == 2


async def test_children_wait_for_others_of_their_tenant_however_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until the run's time is over: those that they wait for are runs like it."""
    monkeypatch.setattr("sandbox_service.orchestrator_client._AWAY_S", 0.0)
    orchestrator = Orchestrator(TenantBusyError("cell_calls_max", 1))  # type: ignore[abstract]
    async with (
        serve_on_address(orchestrator) as address,
        OrchestratorClient(address) as client,
    ):
        await ask(client, is_tool=False)

    assert orchestrator.asked == 2


@pytest.mark.parametrize("is_tool", [False, True])
async def test_what_is_refused_is_told_at_once(is_tool: bool) -> None:
    error = InvalidFieldError("question", "is none")
    orchestrator = Orchestrator(error)  # type: ignore[abstract]  # the rest is not asked
    async with (
        serve_on_address(orchestrator) as address,
        OrchestratorClient(address) as client,
    ):
        with pytest.raises(ServiceError, match="question"):
            await ask(client, is_tool=is_tool)

    assert orchestrator.asked == 1


@pytest.mark.parametrize(("is_tool", "what"), [(False, "child runs"), (True, "host tools")])
async def test_without_an_orchestrator_code_is_told_of_what_it_called(
    is_tool: bool, what: str
) -> None:
    """At once, and in the words of the call: it is to do something else."""
    async with OrchestratorClient("") as client:
        with pytest.raises(ServiceError, match=f"^{what} are not available here: the orch"):
            await ask(client, is_tool=is_tool)
