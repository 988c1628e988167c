"""What the code of one tenant's runs can take of what all share: calls that wait for child runs are
many and long, and neither other tenants nor its own clients wait for them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.host_tool_service_pb2 import CallHostToolRequest
from fathom.orchestrator.v1.host_tool_service_pb2_grpc import HostToolServiceStub
from fathom.orchestrator.v1.run_pb2 import Limits, Run, RunSpec

from common.config import Secret
from common.errors import ReceivedError, received
from common.run_token import RUN_TOKEN_METADATA, RunToken, RunTokenSigner, Subtree
from orchestrator.errors import HostToolRefusedError
from orchestrator.profiles.host_tools import HostTools
from tests.support.eventually import eventually
from tests.support.fake_gateway import TOKEN_KEY
from tests.support.orchestrator import TIMEOUT_S, Stack, chunk, orchestrator, start

TENANTS = ("greedy", "modest")
CALLS_MAX = 4
"""Of a tenant's cells, at each depth."""
RPCS_MAX = 6
"""Of all calls of clients, and of all calls of cells."""


@dataclasses.dataclass
class Tenant:
    """The calls of one tenant, and of the code of its runs."""

    stack: Stack
    name: str
    numbers: Any = dataclasses.field(default_factory=lambda: itertools.count(1))

    async def running(self) -> Run:
        """Create a run that may have child runs, and return it once it is under way."""
        upload = self.stack.contexts.UploadContext(
            iter([start(Context.KIND_TEXT), chunk(b"text", 0)]), **self._shown
        )
        limits = Limits(depth_max=2, children_live_max=64)
        spec = RunSpec(question="What?", context=(await upload).context.name, limits=limits)
        request = pb.CreateRunRequest(spec=spec)
        created: pb.CreateRunResponse = await self.stack.runs.CreateRun(request, **self._shown)
        run = created.run

        async def is_running() -> bool:
            return (await self.get(run)).state == Run.STATE_RUNNING

        await eventually(is_running)
        return await self.get(run)

    async def get(self, run: Run) -> Run:
        """Return a run."""
        request = pb.GetRunRequest(name=run.name)
        found: pb.GetRunResponse = await self.stack.runs.GetRun(request, **self._shown)
        return found.run

    async def begin_child(self, run: Run) -> tuple[Run, Any]:
        """Have a run's code ask for a child; return it with the call that waits for it."""
        run_id = run.name.removeprefix("runs/")
        request = pb.RunChildRequest(
            request_id=f"{run_id}/1/1/c{next(self.numbers)}", question="low", siblings=32
        )
        call = self.stack.runs.RunChild(
            request, metadata=((RUN_TOKEN_METADATA, self.token(run)),), timeout=TIMEOUT_S
        )
        try:
            first: Any = await call.read()
        except grpc.aio.AioRpcError as error:
            raise received(error) from error
        return first.run, call

    async def call_tool(self, run: Run) -> None:
        """Have a run's code call a tool that there is not."""
        request = CallHostToolRequest(
            request_id=f"{run.name.removeprefix('runs/')}/1/1/t{next(self.numbers)}", tool="t"
        )
        stub = HostToolServiceStub(self.stack.channel)
        try:
            await stub.CallHostTool(
                request, metadata=((RUN_TOKEN_METADATA, self.token(run)),), timeout=TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise received(error) from error

    def token(self, run: Run) -> str:
        """Return a token as the cells of a run, or of a child run, have it."""
        subtrees = (Subtree(name=run.name, tokens_max=10**6, cost_usd_nanos_max=10**9),)
        token = RunToken(
            tenant=self.name,
            run=run.root,
            depth=run.depth,
            tiers=("sub", "root"),
            tokens_max=10**6,
            cost_usd_nanos_max=10**9,
            tokens_spent=0,
            cost_usd_nanos_spent=0,
            expires_at=time.time() + 3600,
            subtrees=subtrees if run.depth else (),
        )
        return RunTokenSigner(Secret(TOKEN_KEY)).mint(token)

    @property
    def _shown(self) -> dict[str, Any]:
        return {"metadata": (("authorization", f"Bearer {self.name}"),), "timeout": TIMEOUT_S}


def keys_file(folder: Path) -> Path:
    """Write the tenants' API keys, which are their names."""
    file = folder / "keys.toml"
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in TENANTS}
    file.write_text(
        "".join(
            f'[keys.{name}]\ntenant = "{name}"\nsha256 = "{digest}"\n'
            for name, digest in digests.items()
        )
    )
    return file


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """An orchestrator for two tenants, whose models do not answer before they are let."""
    async with orchestrator(
        tmp_path,
        api_keys_file=keys_file(tmp_path),
        concurrent_rpcs_max=RPCS_MAX,
        cell_calls_max_per_tenant=CALLS_MAX,
    ) as running:
        running.gateway.hold.clear()
        yield running
        running.gateway.hold.set()


async def test_calls_that_wait_for_children_take_no_places_of_others(stack: Stack) -> None:
    """A tenant whose trees are wide is refused further calls at the same depth for a while, and
    nothing else is: not other tenants' cells, nor anybody's clients."""
    greedy, modest = (Tenant(stack, name) for name in TENANTS)
    run, other = await greedy.running(), await modest.running()
    calls = [(await greedy.begin_child(run))[1] for _ in range(CALLS_MAX)]

    with pytest.raises(ReceivedError) as caught:
        await greedy.begin_child(run)

    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.reason == ErrorReason.ERROR_REASON_TENANT_BUSY
    assert caught.value.metadata == {"limit": "cell_calls_max", "value": str(CALLS_MAX)}
    assert caught.value.retry_after_s is not None
    child, call = await modest.begin_child(other)
    assert child.parent == other.name
    assert (await greedy.get(run)).children_live == CALLS_MAX
    assert (await modest.running()).state == Run.STATE_RUNNING

    calls[0].cancel()

    async def is_let_in() -> bool:
        try:
            calls[0] = (await greedy.begin_child(run))[1]
        except ReceivedError:
            return False
        return True

    await eventually(is_let_in)
    for each in (*calls, call):
        each.cancel()


async def test_all_waiting_calls_together_take_no_places_of_clients(stack: Stack) -> None:
    """Several tenants can have more of them than are served; those that begin nothing are told
    when to come back."""
    greedy, modest = (Tenant(stack, name) for name in TENANTS)
    run, other = await greedy.running(), await modest.running()
    calls = [(await greedy.begin_child(run))[1] for _ in range(CALLS_MAX)]
    calls += [(await modest.begin_child(other))[1] for _ in range(RPCS_MAX - CALLS_MAX)]

    with pytest.raises(ReceivedError) as caught:
        await modest.begin_child(other)

    assert caught.value.reason == ErrorReason.ERROR_REASON_SERVER_BUSY
    assert (await modest.get(other)).state == Run.STATE_RUNNING
    for each in calls:
        each.cancel()


async def test_children_find_places_beside_those_who_wait_for_them(stack: Stack) -> None:
    """Else a tree that has taken all places would wait for itself for ever."""
    greedy = Tenant(stack, "greedy")
    run = await greedy.running()
    begun = [await greedy.begin_child(run) for _ in range(CALLS_MAX)]
    child, _ = begun[0]

    async def is_running() -> bool:
        return (await greedy.get(child)).state == Run.STATE_RUNNING

    await eventually(is_running)
    leaf, _ = await greedy.begin_child(await greedy.get(child))

    assert leaf.depth == 2
    stack.gateway.hold.set()
    for _, call in begun:
        while (told := await call.read()) is not grpc.aio.EOF:
            last = told.run
        assert last.state == Run.STATE_ANSWERED


async def test_a_tenants_calls_of_tools_take_no_places_of_others(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool of an operator's can take minutes."""
    greedy, modest = (Tenant(stack, name) for name in TENANTS)
    run, other = await greedy.running(), await modest.running()
    held = stack.gateway.hold
    waiting = 0

    async def call(self: HostTools, token: RunToken, order: object) -> str:
        nonlocal waiting
        waiting += token.tenant == "greedy"
        if token.tenant == "greedy":
            await held.wait()
        raise HostToolRefusedError("t", "not_offered", "there is no such tool")

    monkeypatch.setattr(HostTools, "call", call)
    calls = [asyncio.create_task(greedy.call_tool(run)) for _ in range(CALLS_MAX)]
    await eventually(lambda: waiting == CALLS_MAX)

    with pytest.raises(ReceivedError) as caught:
        await greedy.call_tool(run)
    assert caught.value.reason == ErrorReason.ERROR_REASON_TENANT_BUSY
    with pytest.raises(ReceivedError) as caught:
        await modest.call_tool(other)
    assert caught.value.reason == ErrorReason.ERROR_REASON_HOST_TOOL_REFUSED
    held.set()
    assert {type(each) for each in await asyncio.gather(*calls, return_exceptions=True)} == {
        ReceivedError
    }
