"""OperationsService over loopback: who may ask what, and what a kill switch does to runs."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1 import operations_service_pb2 as pb
from fathom.orchestrator.v1 import operations_service_pb2_grpc
from fathom.orchestrator.v1 import orchestrator_service_pb2 as runs_pb
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.run_pb2 import Run

from common.errors import ReceivedError, received
from tests.support.eventually import eventually
from tests.support.fake_gateway import FakeGateway
from tests.support.orchestrator import TIMEOUT_S, Stack, chunk, orchestrator, start

KEYS = {"ann": ("acme", False), "root": ("platform", True)}
HANG = "```repl\nprint('here')\nhang()\n```"


def by(key: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata of calls with a key."""
    return (("authorization", f"Bearer {key}"),)


def keys_file(folder: Path) -> Path:
    """Write the API keys."""
    file = folder / "keys.toml"
    lines = []
    for name, (tenant, is_operator) in KEYS.items():
        digest = hashlib.sha256(name.encode()).hexdigest()
        lines += [f"[keys.{name}]", f'tenant = "{tenant}"', f'sha256 = "{digest}"']
        lines += [f"operator = {str(is_operator).lower()}"]
    file.write_text("\n".join(lines))
    return file


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(tmp_path, api_keys_file=keys_file(tmp_path)) as running:
        yield running


@pytest.fixture
async def one_at_a_time(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(
        tmp_path, api_keys_file=keys_file(tmp_path), runs_running_max=1
    ) as running:
        yield running


def operations(stack: Stack) -> operations_service_pb2_grpc.OperationsServiceAsyncStub:
    """Return the service."""
    return operations_service_pb2_grpc.OperationsServiceStub(stack.channel)


async def create(stack: Stack, *replies: str, profile: str = "") -> Run:
    """Have `ann` ask something."""
    upload = stack.contexts.UploadContext(
        iter([start(Context.KIND_TEXT), chunk(b"text\n", 0)]),
        metadata=by("ann"),
        timeout=TIMEOUT_S,
    )
    request = runs_pb.CreateRunRequest()
    request.spec.question, request.spec.context = "What is it?", (await upload).context.name
    request.spec.profile = profile
    stack.gateway.replies = list(replies)
    return (await stack.runs.CreateRun(request, metadata=by("ann"), timeout=TIMEOUT_S)).run


async def end_of(stack: Stack, run: Run) -> Run:
    """Return a run at its end."""
    request = runs_pb.WatchRunRequest(name=run.name)
    call = stack.runs.WatchRun(request, metadata=by("ann"), timeout=TIMEOUT_S)
    return [answer.event async for answer in call][-1].run_changed


async def set_switch(stack: Stack, target: str, reason: str = "too dear") -> int:
    """Stop a target; return how many runs were asked to stop."""
    request = pb.SetKillSwitchRequest(kill_switch=pb.KillSwitch(target=target, reason=reason))
    answer = await operations(stack).SetKillSwitch(request, metadata=by("root"), timeout=TIMEOUT_S)
    assert answer.kill_switch.created_by == "root"
    return answer.runs_stopped


async def failure(call: Any) -> ReceivedError:
    """Return the error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return received(caught.value)


@pytest.mark.parametrize(
    ("method", "request_message"),
    [
        ("SetKillSwitch", pb.SetKillSwitchRequest()),
        ("ListKillSwitches", pb.ListKillSwitchesRequest()),
        ("DeleteKillSwitch", pb.DeleteKillSwitchRequest()),
        ("VerifyAuditLog", pb.VerifyAuditLogRequest()),
        ("GetStatistics", pb.GetStatisticsRequest(all_tenants=True)),
        ("ListAuditEntries", pb.ListAuditEntriesRequest(all_tenants=True)),
    ],
)
async def test_what_concerns_all_tenants_is_for_operators(
    stack: Stack, method: str, request_message: Any
) -> None:
    call = getattr(operations(stack), method)
    error = await failure(call(request_message, metadata=by("ann"), timeout=TIMEOUT_S))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    assert error.metadata["permission"] == "operator"


@pytest.mark.parametrize("kind", ["run", "tenant", "profile"])
async def test_a_kill_switch_stops_what_runs(stack: Stack, kind: str) -> None:
    run = await create(stack, HANG, profile="profiles/search")
    await eventually(lambda: bool(stack.sandbox.executed))
    targets = {"run": run.name, "tenant": "tenants/acme", "profile": "profiles/search"}
    assert await set_switch(stack, targets[kind]) == 1
    ended = await asyncio.wait_for(end_of(stack, run), 30)
    assert ended.state == Run.STATE_CANCELLED
    assert await set_switch(stack, targets[kind]) == 0


@pytest.mark.parametrize("kind", ["run", "tenant", "profile"])
async def test_a_kill_switch_stops_what_waits(one_at_a_time: Stack, kind: str) -> None:
    """A run that has not begun never does; one that it does not concern goes on."""
    stack = one_at_a_time
    first = await create(stack, HANG)
    await eventually(lambda: bool(stack.sandbox.executed))
    waiting = await create(stack, profile="profiles/search")
    targets = {"run": waiting.name, "tenant": "tenants/acme", "profile": "profiles/search"}
    assert await set_switch(stack, targets[kind]) == 1 + (kind == "tenant")
    ended = await asyncio.wait_for(end_of(stack, waiting), 30)
    assert (ended.state, ended.turns) == (Run.STATE_CANCELLED, 0)
    if kind == "tenant":
        assert (await end_of(stack, first)).state == Run.STATE_CANCELLED
        return
    request = runs_pb.GetRunRequest(name=first.name)
    other = await stack.runs.GetRun(request, metadata=by("ann"), timeout=TIMEOUT_S)
    assert other.run.state == Run.STATE_RUNNING


class SlowCatalog(FakeGateway):
    """Says which models there are when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.was_asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def ListModels(self, request: Any, context: Any) -> Any:
        """List them, later."""
        self.was_asked.set()
        await self.may_answer.wait()
        return await super().ListModels(request, context)


async def test_a_run_that_is_made_while_a_switch_is_set_does_not_slip_through(
    tmp_path: Path,
) -> None:
    """It has passed the check, and is not stored yet when the switch looks for what runs."""
    gateway = SlowCatalog()
    async with orchestrator(tmp_path, gateway=gateway, api_keys_file=keys_file(tmp_path)) as stack:
        creating = asyncio.create_task(create(stack, HANG))
        await gateway.was_asked.wait()
        assert await set_switch(stack, "tenants/acme") == 0
        gateway.may_answer.set()
        ended = await asyncio.wait_for(end_of(stack, await creating), 30)
    assert ended.state == Run.STATE_CANCELLED


async def test_a_kill_switch_refuses_what_is_new_until_it_is_deleted(stack: Stack) -> None:
    assert await set_switch(stack, "tenants/acme", "the quarter's budget is spent") == 0
    error = await failure(create(stack, "FINAL(it)"))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == ErrorReason.ERROR_REASON_KILL_SWITCH
    assert error.metadata["why"] == "the quarter's budget is spent"
    listed = await operations(stack).ListKillSwitches(
        pb.ListKillSwitchesRequest(), metadata=by("root"), timeout=TIMEOUT_S
    )
    assert [each.target for each in listed.kill_switches] == ["tenants/acme"]
    delete = pb.DeleteKillSwitchRequest(target="tenants/acme")
    await operations(stack).DeleteKillSwitch(delete, metadata=by("root"), timeout=TIMEOUT_S)
    assert (await end_of(stack, await create(stack, "FINAL(it)"))).answer.text == "it"
    again = operations(stack).DeleteKillSwitch(delete, metadata=by("root"), timeout=TIMEOUT_S)
    assert (await failure(again)).code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("target", "reason", "field"),
    [
        ("", "why", "kill_switch.target"),
        ("tenants/", "why", "kill_switch.target"),
        ("contexts/c", "why", "kill_switch.target"),
        ("runs/" + "r" * 160, "why", "kill_switch.target"),
        ("runs/r", " ", "kill_switch.reason"),
        ("runs/r", "w" * 501, "kill_switch.reason"),
    ],
)
async def test_a_kill_switch_that_makes_no_sense_is_refused(
    stack: Stack, target: str, reason: str, field: str
) -> None:
    error = await failure(set_switch(stack, target, reason))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.metadata["field"] == field


async def test_runs_are_in_the_statistics_and_the_audit_log_soon(stack: Stack) -> None:
    run = await end_of(stack, await create(stack, "FINAL(it)"))
    asked = pb.ListAuditEntriesRequest(subject=run.name)

    async def actions() -> list[tuple[str, str]]:
        answer = await operations(stack).ListAuditEntries(
            asked, metadata=by("ann"), timeout=TIMEOUT_S
        )
        return [(entry.action, entry.actor) for entry in answer.entries]

    async def both() -> bool:
        return await actions() == [("run.created", "ann"), ("run.ended", "")]

    await eventually(both)
    statistics = await operations(stack).GetStatistics(
        pb.GetStatisticsRequest(), metadata=by("ann"), timeout=TIMEOUT_S
    )
    (cost,) = statistics.cost_by_user
    assert (cost.tenant, cost.user, cost.runs) == ("acme", "ann", 1)
    assert cost.cost_usd_nanos == run.usage.cost_usd_nanos > 0
    (size,) = statistics.latency_by_context_size
    assert (size.context_bytes_from, size.runs) == (0, 1)
    assert size.p50.ToNanoseconds() > 0
    (hour,) = statistics.errors_by_hour
    assert (hour.runs, hour.failed) == (1, 0)
    found = await operations(stack).VerifyAuditLog(
        pb.VerifyAuditLogRequest(), metadata=by("root"), timeout=TIMEOUT_S
    )
    assert (found.entries, found.runs, list(found.problems)) == (2, 1, [])


async def test_pages_of_the_audit_log_follow_one_another(stack: Stack) -> None:
    for number in range(5):
        await set_switch(stack, f"runs/{number}")
    subjects, token = [], ""
    while True:
        request = pb.ListAuditEntriesRequest(page_size=2, page_token=token)
        page = await operations(stack).ListAuditEntries(
            request, metadata=by("root"), timeout=TIMEOUT_S
        )
        subjects += [entry.subject for entry in page.entries]
        token = page.next_page_token
        if not token:
            break
    assert subjects == [f"runs/{number}" for number in range(5)]


async def test_a_cancellation_is_in_the_audit_log(stack: Stack) -> None:
    run = await create(stack, HANG)
    request = runs_pb.CancelRunRequest(name=run.name)
    await stack.runs.CancelRun(request, metadata=by("ann"), timeout=TIMEOUT_S)
    await end_of(stack, run)
    asked = pb.ListAuditEntriesRequest(subject=run.name)
    answer = await operations(stack).ListAuditEntries(asked, metadata=by("ann"), timeout=TIMEOUT_S)
    assert ("run.cancel_asked", "ann") in [(entry.action, entry.actor) for entry in answer.entries]


async def test_model_calls_name_the_key_that_they_are_made_for(stack: Stack) -> None:
    """So that a quota can count each key for itself."""
    await end_of(stack, await create(stack, "FINAL(it)"))
    assert {token.key for token in stack.gateway.tokens} == {"ann"}
