"""A run through the real orchestrator, sandbox and gateway, one of which is killed while code of
the run waits for a model: after a restart the run ends as if nothing had been.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fathom.gateway.v1 import quota_service_pb2 as quota_pb2
from fathom.gateway.v1.generation_pb2 import Usage
from fathom.gateway.v1.quota_service_pb2_grpc import QuotaServiceStub
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from fathom_demo.scripted_model import ChatRequest

from tests.support.gateway import KEY, config_file
from tests.support.gateway_process import GatewayProcess
from tests.support.orchestrator import chunk, start
from tests.support.orchestrator_process import OrchestratorProcess
from tests.support.played_model import Gate, PlayedModel, answers
from tests.support.sandbox_process import SandboxProcess
from tests.support.service_process import ServiceProcess
from tests.support.standing_address import StandingAddress

pytestmark = pytest.mark.guest
TIMEOUT_S = 60.0
OPERATOR = (("fathom-operator-key", KEY.reveal()),)
_BY_RUN = quota_pb2.GetUsageRequest.GROUP_BY_RUN
TURNS = (
    "import random, time\nfound = [random.random(), time.time(), llm_query('sub one')]\nfound",
    "found += [llm_query('sub two'), random.random()]\nfound",
    "FINAL(found + [random.random()])",
)


def says(request: ChatRequest) -> str:
    """Answer a sub-call with its prompt, and the root model's n-th call with the n-th cell."""
    newest = request.messages[-1].content
    if newest.startswith("sub "):
        return newest.upper()
    turn = sum(message.role == "assistant" for message in request.messages)
    return f"```repl\n{TURNS[turn]}\n```"


@dataclasses.dataclass
class Place:
    """The three services, each of which can be killed and comes back under its old address."""

    folder: Path
    provider: PlayedModel
    addresses: dict[str, StandingAddress]
    stack: contextlib.AsyncExitStack
    services: dict[str, Any] = dataclasses.field(default_factory=dict)

    async def begin(self, name: str) -> None:
        """Start a service, anew where it was killed."""
        gateway, sandbox = (self.addresses[each].address for each in ("gateway", "sandbox"))
        service: ServiceProcess
        if name == "gateway":
            config = config_file(self.folder / "models.toml", [self.provider.base_url])
            database_url = f"sqlite+aiosqlite:///{self.folder}/gateway.sqlite"
            service = GatewayProcess(config, database_url, accounts="memory")
        elif name == "sandbox":
            service = SandboxProcess(self.folder, gateway=gateway)
        else:
            service = OrchestratorProcess(
                self.folder,
                f"sqlite+aiosqlite:///{self.folder}/orchestrator.sqlite",
                gateway=gateway,
                sandbox=sandbox,
                run_token_key=KEY.reveal(),
            )
        self.services[name] = await self.stack.enter_async_context(service)
        if name in self.addresses:
            self.addresses[name].target = service.address

    async def kill(self, name: str) -> None:
        """End a service as the kernel does when memory is short."""
        if name in self.addresses:
            self.addresses[name].target = ""
        await self.services[name].kill()

    async def run(self) -> str:
        """Create a run and return its name."""
        orchestrator = self.services["orchestrator"]
        messages = iter([start(Context.KIND_TEXT), chunk(b"some text\n", 0)])
        context = (await orchestrator.contexts.UploadContext(messages, timeout=TIMEOUT_S)).context
        spec = RunSpec(question="What is it?", context=context.name)
        request = pb.CreateRunRequest(spec=spec)
        return str((await orchestrator.runs.CreateRun(request, timeout=TIMEOUT_S)).run.name)

    async def events(self, run: str) -> list[RunEvent]:
        """Return a run's events to its end."""
        call = self.services["orchestrator"].runs.WatchRun(
            pb.WatchRunRequest(name=run), timeout=TIMEOUT_S
        )
        return [response.event async for response in call]

    async def booked(self, run: str) -> Usage:
        """Return what the gateway's ledger has of a run."""
        request = quota_pb2.GetUsageRequest(parent="tenants/default", group_by=[_BY_RUN])
        request.start_time.FromSeconds(0)
        stub = QuotaServiceStub(self.services["gateway"].channel)
        rows = (await stub.GetUsage(request, metadata=OPERATOR, timeout=TIMEOUT_S)).rows
        (usage,) = [row.usage for row in rows if row.run == run]
        return Usage.FromString(usage.SerializeToString())

    def asked(self, prompt: str) -> int:
        """Return how often the provider was asked something."""
        return sum(body["messages"][-1]["content"] == prompt for body in self.provider.bodies)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with contextlib.AsyncExitStack() as stack:
        provider = await stack.enter_async_context(PlayedModel(answers(says)))
        addresses = {
            name: await stack.enter_async_context(StandingAddress())
            for name in ("gateway", "sandbox")
        }
        (tmp_path / "objects").mkdir()
        place = Place(tmp_path, provider, addresses, stack)
        await asyncio.gather(*map(place.begin, ("gateway", "sandbox", "orchestrator")))
        yield place


@pytest.mark.parametrize("killed", ["sandbox", "gateway", "orchestrator"])
async def test_a_run_ends_well_when_a_service_is_killed_under_it(place: Place, killed: str) -> None:
    """Memory of the session, calls under way and the run's place: each is lost with one service."""
    gate = Gate(answers(says))
    root, sub = answers(says), answers(says)
    place.provider.plan(root, sub, root, gate)
    run = await place.run()
    await asyncio.wait_for(gate.reached.wait(), TIMEOUT_S / 3)

    await place.kill(killed)
    gate.opened.set()
    await place.begin(killed)
    events = await place.events(run)

    ended = events[-1].run_changed
    assert ended.state == Run.STATE_ANSWERED, ended
    shown = [e.cell_finished.output_shown for e in events if e.HasField("cell_finished")]
    first, second = shown[0].strip(), shown[1].strip()
    assert second.startswith(first.rstrip("]"))
    assert "'SUB TWO'" in second
    assert [e.sequence for e in events] == list(range(1, len(events) + 1))
    assert [e.cell_finished.ending for e in events if e.HasField("cell_finished")] == (
        ["COMPLETED"] * 3
    )
    assert not [e.notice for e in events if e.HasField("notice")]
    assert ended.usage == await place.booked(run), "the run tells what the ledger has"
    assert place.asked("sub one") == 1
    assert place.asked("sub two") <= 2
