"""Host tools from a cell in the real guest to an operator's real service, and all that is refused
on the way. The model's part is written down.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1 import host_tool_service_pb2 as tool_pb
from fathom.orchestrator.v1 import operations_service_pb2 as operations_pb
from fathom.orchestrator.v1 import operations_service_pb2_grpc
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.host_tool_service_pb2_grpc import HostToolServiceStub
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from fathom.sandbox.v1 import sandbox_service_pb2 as sandbox_pb
from fathom.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from fathom.tools.v1 import tool_service_pb2 as wire
from fathom.tools.v1.tool_service_pb2_grpc import (
    ToolServiceServicer,
    add_ToolServiceServicer_to_server,
)

from common.channel import open_channel
from common.config import Secret
from common.errors import ReceivedError, ServiceError, received
from common.run_token import RUN_TOKEN_METADATA, RunTokenSigner
from common.server import Server
from sandbox_service.orchestrator_client import OrchestratorClient
from tests.support.eventually import eventually
from tests.support.fake_gateway import TOKEN_KEY, FakeGateway
from tests.support.orchestrator import TIMEOUT_S, Stack, orchestrator, serve_on_address
from tests.support.sandbox import guest, sandbox

pytestmark = pytest.mark.guest
ARGUMENTS = {
    "type": "object",
    "properties": {"number": {"type": "integer", "minimum": 1}, "note": {"type": "string"}},
    "required": ["number"],
    "additionalProperties": False,
}
RESULT = {"type": "object", "required": ["state"]}
PROFILE = """
version = 1
description = "Tickets"

[tools.lookup_ticket]
endpoint = "{endpoint}"
description = "Looks a ticket up."
arguments = "arguments.json"
result = "result.json"
calls_max = 3
argument_bytes_max = 1000
result_bytes_max = 1000

[tools.impatient]
endpoint = "{endpoint}"
description = "Gives up soon."
arguments = "arguments.json"
time_max_s = 0.5

[tools.of_another]
endpoint = "{endpoint}"
description = "Is for another tenant."
arguments = "arguments.json"
tenants = ["another"]
"""


class Tickets(ToolServiceServicer):
    """An operator's service that keeps what it is asked."""

    def __init__(self) -> None:
        self.requests: list[wire.CallToolRequest] = []
        self.answer: Callable[[dict[str, Any]], str] = lambda asked: json.dumps(
            {"state": f"open {asked['number']}"}
        )
        self.error: ServiceError | None = None
        self.hold = asyncio.Event()
        self.hold.set()

    def register(self, server: Server) -> None:
        """Add it to a server."""
        add_ToolServiceServicer_to_server(self, server.grpc)

    async def CallTool(self, request: wire.CallToolRequest, context: Any) -> wire.CallToolResponse:
        self.requests.append(request)
        await self.hold.wait()
        if self.error is not None:
            raise self.error
        return wire.CallToolResponse(result_json=self.answer(json.loads(request.arguments_json)))


class Neighbourhood:
    """An orchestrator, a sandbox and the operator's service."""

    def __init__(self, stack: Stack, tickets: Tickets, sandbox_address: str) -> None:
        self.stack = stack
        self.tickets = tickets
        self._sandbox_address = sandbox_address

    async def run(self, *cells: str) -> tuple[Run, list[RunEvent]]:
        """Run cells under the profile to the end."""
        self.stack.gateway.replies = [f"```repl\n{cell}\n```" for cell in cells]
        context = await self.stack.upload()
        spec = RunSpec(question="why?", context=context.name, profile="profiles/tickets")
        request = pb.CreateRunRequest(spec=spec)
        made = (await self.stack.runs.CreateRun(request, timeout=TIMEOUT_S)).run
        events = await self.stack.watch(made)
        return events[-1].run_changed, events

    async def lose_sessions(self) -> int:
        """Delete all sessions, as a sandbox that is restarted does; return how many."""
        async with open_channel(self._sandbox_address) as channel:
            box = SandboxServiceStub(channel)
            listed = await box.ListSessions(sandbox_pb.ListSessionsRequest(), timeout=TIMEOUT_S)
            for session in listed.sessions:
                gone = sandbox_pb.DeleteSessionRequest(name=session.name)
                await box.DeleteSession(gone, timeout=TIMEOUT_S)
            return len(listed.sessions)

    async def told(self, code: str) -> str:
        """Return what the code is told as an error."""
        run, _ = await self.run(
            f"try:\n    FINAL({code})\n"
            "except HostToolError as error:\n"
            "    FINAL(f'{type(error).__name__} {error.reason}: {error}')"
        )
        return run.answer.text


@contextlib.asynccontextmanager
async def neighbourhood(folder: Path, **settings: Any) -> AsyncIterator[Neighbourhood]:
    objects, profiles = folder / "objects", folder / "profiles"
    objects.mkdir()
    profiles.mkdir()
    (profiles / "arguments.json").write_text(json.dumps(ARGUMENTS))
    (profiles / "result.json").write_text(json.dumps(RESULT))
    tickets = Tickets()
    address_file = folder / "orchestrator.address"
    async with (
        serve_on_address(tickets) as endpoint,
        OrchestratorClient("", address_file) as carried,
        sandbox(guest(), objects, child_runs=carried, host_tools=carried) as box,
    ):
        (profiles / "tickets.toml").write_text(PROFILE.format(endpoint=endpoint))
        async with orchestrator(
            folder,
            gateway=FakeGateway(),
            sandbox_address=box.address,
            profiles_folder=profiles,
            **settings,
        ) as stack:
            address_file.write_text(stack.server.address)
            yield Neighbourhood(stack, tickets, box.address)


async def test_a_cell_calls_a_tool_by_its_name_and_everybody_hears_of_it(tmp_path: Path) -> None:
    """The function, the call's context, the event and the audit entry, in one go."""
    async with neighbourhood(tmp_path) as around:
        run, events = await around.run("FINAL(lookup_ticket(number=7)['state'])")
        stub = operations_service_pb2_grpc.OperationsServiceStub(around.stack.channel)
        audit = await stub.ListAuditEntries(
            operations_pb.ListAuditEntriesRequest(subject=run.name), timeout=TIMEOUT_S
        )

    [asked] = around.tickets.requests
    [called] = [e.host_tool_called for e in events if e.HasField("host_tool_called")]
    assert run.answer.text == "open 7"
    assert (asked.name, json.loads(asked.arguments_json)) == ("lookup_ticket", {"number": 7})
    assert (asked.context.tenant, asked.context.run) == ("default", run.name)
    assert (asked.context.turn, asked.context.cell) == (1, 1)
    assert asked.context.profile == "profiles/tickets"
    assert asked.context.request_id.endswith("/1/1/t1")
    assert (called.tool, called.result_head) == ("lookup_ticket", '{"state": "open 7"}')
    assert "host_tool.called" in [entry.action for entry in audit.entries]
    assert "lookup_ticket" in around.stack.gateway.requests[0].prompt.messages[0].text


async def test_a_tool_that_is_not_of_the_profile_is_refused(tmp_path: Path) -> None:
    """Deny by default: a forged name, and one that is another tenant's."""
    async with neighbourhood(tmp_path) as around:
        forged = await around.told("call_tool('drop_everything', number=1)")
        foreign = await around.told("of_another(number=1)")

    assert forged.startswith("HostToolRefusedError HOST_TOOL_REFUSED: drop_everything")
    assert "lookup_ticket" in forged
    assert foreign.startswith("HostToolRefusedError HOST_TOOL_REFUSED: of_another")
    assert around.tickets.requests == []


async def test_as_many_calls_are_made_as_the_profile_allows(tmp_path: Path) -> None:
    """Three are, and the fourth is refused; another run has its own three."""
    four = "[lookup_ticket(number=n) for n in range(1, 5)]"
    three = "FINAL(len([lookup_ticket(number=n) for n in range(1, 4)]))"
    async with neighbourhood(tmp_path) as around:
        told = await around.told(four)
        made = len(around.tickets.requests)
        run, _ = await around.run(three)

    assert told.startswith(
        "HostToolRefusedError HOST_TOOL_REFUSED: lookup_ticket: the run has made"
    )
    assert made == 3
    assert run.answer.text == "3"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("lookup_ticket(number=0)", "number"),
        ("lookup_ticket()", "number"),
        ("lookup_ticket(number=1, path='/etc/passwd')", "path"),
        ("lookup_ticket(number=1, note='x' * 2000)", "bytes"),
    ],
)
async def test_arguments_that_do_not_fit_reach_no_service(
    tmp_path: Path, code: str, words: str
) -> None:
    """The operator's service gets what its schema says, whatever the code is."""
    async with neighbourhood(tmp_path) as around:
        told = await around.told(code)

    assert told.startswith("HostToolError INVALID_FIELD: ")
    assert words in told
    assert around.tickets.requests == []


async def test_a_tool_that_is_slow_or_wrong_or_away_is_an_error_of_its_call(
    tmp_path: Path,
) -> None:
    """A service's failure is told in words that hold no address, and the run goes on."""
    async with neighbourhood(tmp_path) as around:
        around.tickets.hold.clear()
        slow = await around.told("impatient(number=1)")
        around.tickets.hold.set()
        around.tickets.answer = lambda _: '{"other": 1}'
        unfit = await around.told("lookup_ticket(number=1)")
        around.tickets.answer = lambda _: "no json"
        broken = await around.told("lookup_ticket(number=1)")
        around.tickets.answer = lambda _: json.dumps({"state": "x" * 1000})
        large = await around.told("lookup_ticket(number=1)")

    assert slow.startswith("HostToolError HOST_TOOL_FAILED: impatient: gave no answer")
    assert "does not fit its schema" in unfit
    assert "is no JSON" in broken
    assert "at most 1000 are allowed" in large


async def test_a_repeated_call_is_answered_as_it_was_and_not_made_again(tmp_path: Path) -> None:
    """What a cell that is run again is told must not change, and costs the operator nothing."""
    async with neighbourhood(tmp_path) as around:
        await around.run("print(lookup_ticket(number=5))", "FINAL('the run goes on')")
        token = RunTokenSigner(Secret(TOKEN_KEY)).mint(around.stack.gateway.tokens[-1])
        stub = HostToolServiceStub(around.stack.channel)
        request_id = around.tickets.requests[0].context.request_id

        async def ask(arguments: str, number: int = 1) -> str:
            request = tool_pb.CallHostToolRequest(
                request_id=f"{request_id[:-1]}{number}",
                tool="lookup_ticket",
                arguments_json=arguments,
            )
            metadata = ((RUN_TOKEN_METADATA, token),)
            try:
                response = await stub.CallHostTool(request, timeout=TIMEOUT_S, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return received(error).reason_name
            return response.result_json

        again = await ask('{"number": 5}')
        other = await ask('{"number": 6}')
        late = await ask('{"number": 5}', 2)

    assert json.loads(again) == {"state": "open 5"}
    assert other == "ERROR_REASON_REQUEST_ID_REUSED"
    assert late == "ERROR_REASON_HOST_TOOL_REFUSED"
    assert len(around.tickets.requests) == 1


async def test_a_cell_that_is_run_again_is_told_what_it_was_told(tmp_path: Path) -> None:
    """Its session is lost with the sandbox, and the operator's service hears of nothing."""
    async with neighbourhood(tmp_path) as around:
        stack = around.stack
        states = iter(["open", "closed"])
        around.tickets.answer = lambda _: json.dumps({"state": next(states)})

        def first(_request: object) -> str:
            stack.gateway.hold.clear()
            return "```repl\nticket = lookup_ticket(number=5)\n```"

        stack.gateway.replies = [first, "```repl\nFINAL(ticket['state'])\n```"]
        context = await stack.upload()
        spec = RunSpec(question="why?", context=context.name, profile="profiles/tickets")
        request = pb.CreateRunRequest(spec=spec)
        made = (await stack.runs.CreateRun(request, timeout=TIMEOUT_S)).run
        await eventually(lambda: len(stack.gateway.requests) == 2)
        lost = await around.lose_sessions()
        stack.gateway.hold.set()
        events = await stack.watch(made)

    assert lost == 1
    assert events[-1].run_changed.answer.text == "open"
    assert len(around.tickets.requests) == 1
    assert not [event.notice for event in events if event.HasField("notice")]


async def test_code_that_runs_again_makes_no_call_that_it_did_not_make(tmp_path: Path) -> None:
    """Where it does something else than the first time, the operator's service would hear of a call
    that is in no run's log. Its token is the one that may spend nothing."""
    async with neighbourhood(tmp_path) as around:
        stack = around.stack

        def first(_request: object) -> str:
            stack.gateway.hold.clear()
            return "```repl\nticket = lookup_ticket(number=5)\n```"

        stack.gateway.replies = [first, "FINAL(done)"]
        context = await stack.upload()
        spec = RunSpec(question="why?", context=context.name, profile="profiles/tickets")
        made = (await stack.runs.CreateRun(pb.CreateRunRequest(spec=spec))).run
        await eventually(lambda: len(stack.gateway.requests) == 2)
        again = dataclasses.replace(stack.gateway.tokens[-1], tokens_max=0, cost_usd_nanos_max=0)
        metadata = ((RUN_TOKEN_METADATA, RunTokenSigner(Secret(TOKEN_KEY)).mint(again)),)
        request_id = around.tickets.requests[0].context.request_id

        async def ask(position: int) -> str:
            request = tool_pb.CallHostToolRequest(
                request_id=f"{request_id[:-1]}{position}",
                tool="lookup_ticket",
                arguments_json='{"number": 5}',
            )
            stub = HostToolServiceStub(stack.channel)
            response = await stub.CallHostTool(request, timeout=TIMEOUT_S, metadata=metadata)
            return response.result_json

        known = await ask(1)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(2)
        stack.gateway.hold.set()
        await stack.watch(made)

    error = received(refused.value)
    assert json.loads(known) == {"state": "open 5"}
    assert error.reason == ErrorReason.ERROR_REASON_HOST_TOOL_REFUSED
    assert error.metadata["why"] == "replay"
    assert len(around.tickets.requests) == 1


async def test_a_call_without_a_token_of_the_run_is_refused(tmp_path: Path) -> None:
    """The way that cells' calls come is open on the network: only the token counts."""
    async with neighbourhood(tmp_path) as around:
        stub = HostToolServiceStub(around.stack.channel)
        request = tool_pb.CallHostToolRequest(
            request_id="0a/1/1/t1", tool="lookup_ticket", arguments_json="{}"
        )
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.CallHostTool(request, timeout=TIMEOUT_S)

    error = received(failed.value)
    assert isinstance(error, ReceivedError)
    assert error.reason == ErrorReason.ERROR_REASON_UNAUTHENTICATED


async def test_hostile_code_gets_nothing_out_of_the_door_to_tools(tmp_path: Path) -> None:
    """Requests past the runtime: wrong types, huge arguments, names that are paths."""
    attack = (
        "import json, _host\n"
        "said = []\n"
        "for call in ({'name': 7, 'arguments': '{}'}, {'name': '', 'arguments': '{}'},\n"
        "             {'name': 'x' * 65, 'arguments': '{}'}, {'name': 'a', 'arguments': 'x' << 1}\n"
        "             if False else {'name': 'a'},\n"
        "             {'name': 'lookup_ticket', 'arguments': '{' * (1 << 20) + '{'}):\n"
        "    request = {'call': 'host_tools', 'calls': [call], 'is_batch': False}\n"
        "    try:\n"
        "        said.append(bytes(_host.call(json.dumps(request).encode())))\n"
        "    except Exception as error:\n"
        "        said.append(type(error).__name__)\n"
        "deep = {'name': 'lookup_ticket', 'arguments': '[' * 100_000}\n"
        "request = {'call': 'host_tools', 'calls': [deep], 'is_batch': False}\n"
        "said.append(b'INVALID' in bytes(_host.call(json.dumps(request).encode())))\n"
        "FINAL(said)"
    )
    async with neighbourhood(tmp_path) as around:
        run, _ = await around.run(attack)
        after, _ = await around.run("FINAL(lookup_ticket(number=1)['state'])")

    assert json.loads(run.answer.text)[-1] is True
    assert all(isinstance(word, str) for word in json.loads(run.answer.text)[:-1])
    assert after.answer.text == "open 1"
    assert len(around.tickets.requests) == 1
