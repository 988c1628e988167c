"""What one tenant can take of what all share, and what a request may hold."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.orchestrator_service_pb2_grpc import OrchestratorServiceStub
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec

from common.channel import open_channel
from common.config import Secret
from common.errors import ReceivedError, received
from common.run_token import RUN_TOKEN_METADATA, RunToken, RunTokenSigner
from tests.support.eventually import eventually
from tests.support.fake_gateway import TOKEN_KEY
from tests.support.orchestrator import TIMEOUT_S, Stack, chunk, orchestrator, start

TENANTS = ("greedy", "modest")
MIB = 1 << 20


class Tenant:
    """The calls of one tenant."""

    def __init__(self, stack: Stack, name: str) -> None:
        self._stack = stack
        self._metadata = (("authorization", f"Bearer {name}"),)

    async def create(self) -> Run:
        """Store a run."""
        upload = self._stack.contexts.UploadContext(
            iter([start(Context.KIND_TEXT), chunk(b"text", 0)]),
            metadata=self._metadata,
            timeout=TIMEOUT_S,
        )
        spec = RunSpec(question="What is it?", context=(await upload).context.name)
        request = pb.CreateRunRequest(spec=spec)
        created: pb.CreateRunResponse = await self._stack.runs.CreateRun(request, **self._given)
        return created.run

    async def get(self, run: Run) -> Run:
        """Return a run."""
        request = pb.GetRunRequest(name=run.name)
        found: pb.GetRunResponse = await self._stack.runs.GetRun(request, **self._given)
        return found.run

    async def watch(self, run: Run) -> Any:
        """Begin to watch a run; return the call, which has told its first event."""
        call = self._stack.runs.WatchRun(pb.WatchRunRequest(name=run.name), **self._given)
        assert await call.read()
        return call

    @property
    def _given(self) -> dict[str, Any]:
        return {"metadata": self._metadata, "timeout": TIMEOUT_S}


async def failure(call: Awaitable[Any]) -> ReceivedError:
    """Return how a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return received(caught.value)


def a_run_token() -> str:
    """Return a token of a run that is not there."""
    token = RunToken(
        tenant="modest",
        run="runs/nowhere",
        depth=0,
        tiers=(),
        tokens_max=None,
        cost_usd_nanos_max=None,
        tokens_spent=0,
        cost_usd_nanos_spent=0,
        expires_at=time.time() + 60,
    )
    return RunTokenSigner(Secret(TOKEN_KEY)).mint(token)


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """An orchestrator whose model does not answer, for two tenants."""
    file = tmp_path / "keys.toml"
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in TENANTS}
    file.write_text(
        "".join(
            f'[keys.{name}]\ntenant = "{name}"\nsha256 = "{digest}"\n'
            for name, digest in digests.items()
        )
    )
    async with orchestrator(
        tmp_path,
        api_keys_file=file,
        runs_running_max=1,
        runs_waiting_max_per_tenant=2,
        concurrent_rpcs_max_per_tenant=3,
        watchers_max_per_tenant=2,
    ) as running:
        running.gateway.hold.clear()
        yield running
        running.gateway.hold.set()


async def test_a_tenant_has_so_many_runs_waiting_and_others_have_theirs(stack: Stack) -> None:
    greedy, modest = (Tenant(stack, name) for name in TENANTS)
    running = await greedy.create()

    async def is_running() -> bool:
        return (await greedy.get(running)).state == Run.STATE_RUNNING

    await eventually(is_running)
    for _ in range(2):
        await greedy.create()

    error = await failure(greedy.create())
    assert error.reason == ErrorReason.ERROR_REASON_RUN_QUEUE_FULL
    assert error.metadata == {"limit": "2", "scope": "tenant"}
    assert error.retry_after_s is not None
    assert (await modest.create()).state == Run.STATE_QUEUED


async def test_a_tenant_watches_so_many_runs_and_others_watch_theirs(stack: Stack) -> None:
    """Until one of them ends, or is hung up."""
    greedy, modest = (Tenant(stack, name) for name in TENANTS)
    run, others = await greedy.create(), await modest.create()
    calls = [await greedy.watch(run) for _ in range(2)]

    error = await failure(greedy.watch(run))
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == ErrorReason.ERROR_REASON_TENANT_BUSY
    assert error.metadata == {"limit": "watchers_max", "value": "2"}
    assert error.retry_after_s is not None
    await modest.watch(others)

    calls[0].cancel()

    async def is_watched() -> bool:
        try:
            await greedy.watch(run)
        except grpc.aio.AioRpcError:
            return False
        return True

    await eventually(is_watched)


async def test_a_tenant_has_so_many_calls_under_way_and_others_have_theirs(stack: Stack) -> None:
    greedy, modest = (Tenant(stack, name) for name in TENANTS)
    run, others = await greedy.create(), await modest.create()
    for _ in range(2):
        await greedy.watch(run)
    assert (await greedy.get(run)).name == run.name  # the third call, which ends

    gets = await asyncio.gather(*[greedy.get(run) for _ in range(20)], return_exceptions=True)
    errors = [received(each) for each in gets if isinstance(each, grpc.aio.AioRpcError)]
    assert errors
    assert len(errors) < len(gets)
    assert {error.reason for error in errors} == {ErrorReason.ERROR_REASON_TENANT_BUSY}
    assert errors[0].metadata == {"limit": "concurrent_rpcs_max", "value": "3"}
    assert (await modest.get(others)).name == others.name
    assert (await greedy.get(run)).name == run.name


async def test_without_keys_one_tenant_may_have_all(tmp_path: Path) -> None:
    """It shares with nobody."""
    async with orchestrator(
        tmp_path, concurrent_rpcs_max_per_tenant=1, watchers_max_per_tenant=1
    ) as stack:
        stack.gateway.hold.clear()
        run = await stack.create()
        watching = [asyncio.create_task(stack.watch(run)) for _ in range(3)]
        stack.gateway.hold.set()
        assert all(await asyncio.gather(*watching))


async def test_only_a_child_runs_context_makes_a_large_request(tmp_path: Path) -> None:
    """Everything else has the bound that all services have, before it is parsed."""
    async with (
        orchestrator(tmp_path) as stack,
        open_channel(stack.server.address, message_bytes_max=32 * MIB) as channel,
    ):
        runs = OrchestratorServiceStub(channel)
        for size, reason in (
            (4 * MIB - 100, ErrorReason.ERROR_REASON_INVALID_FIELD),
            (4 * MIB + 1, ErrorReason.ERROR_REASON_REQUEST_TOO_LARGE),
        ):
            request = pb.CreateRunRequest(spec=RunSpec(question="q" * size))
            error = await failure(runs.CreateRun(request, timeout=TIMEOUT_S))
            assert error.reason == reason
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.metadata["bytes_max"] == str(4 * MIB)

        for size, code in (
            (16 * MIB - 100, grpc.StatusCode.INVALID_ARGUMENT),  # it was read, and names no call
            (16 * MIB + 1, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            call = runs.RunChild(
                pb.RunChildRequest(question="q" * size),
                metadata=((RUN_TOKEN_METADATA, a_run_token()),),
                timeout=TIMEOUT_S,
            )
            assert (await failure(call.read())).code is code


@pytest.mark.parametrize(
    "method",
    [
        "OrchestratorService/CreateRun",
        "OrchestratorService/RunChild",
        "HostToolService/CallHostTool",
    ],
)
async def test_who_is_not_known_is_refused_before_the_request_has_come(
    stack: Stack, method: str
) -> None:
    """Else it would hold a place and up to 16 MiB for as long as it likes."""
    silent: Any = stack.channel.stream_stream(f"/fathom.orchestrator.v1.{method}")
    for metadata in ((), ((RUN_TOKEN_METADATA, "v1.forged.token"),)):
        call = silent(metadata=metadata, timeout=TIMEOUT_S)
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
