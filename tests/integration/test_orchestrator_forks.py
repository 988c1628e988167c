"""ForkRun over real gRPC: what a fork takes over, what it changes, and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1 import operations_service_pb2
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.operations_service_pb2_grpc import OperationsServiceStub
from fathom.orchestrator.v1.run_pb2 import Limits, Run, RunSpec
from sqlalchemy import select, update

from common.database import Database
from common.errors import ReceivedError, received
from orchestrator import tables
from orchestrator.tables import MIGRATIONS
from tests.support.eventually import eventually
from tests.support.orchestrator import TIMEOUT_S, Stack, orchestrator


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(tmp_path, checkpoint_after_s=0.0) as running:
        yield running


def cell(code: str) -> str:
    return f"I look.\n```repl\n{code}\n```"


async def fork(stack: Stack, run: Run, after_turn: int, **changes: object) -> Run:
    request_id = str(changes.pop("request_id", ""))
    request = pb.ForkRunRequest(
        name=run.name,
        after_turn=after_turn,
        changes=RunSpec(**changes),  # type: ignore[arg-type]
        request_id=request_id,
    )
    return (await stack.runs.ForkRun(request, timeout=TIMEOUT_S)).run


async def refusal(stack: Stack, run: Run, after_turn: int, **changes: object) -> ReceivedError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await fork(stack, run, after_turn, **changes)
    return received(caught.value)


async def finished(stack: Stack) -> Run:
    """Return a run of three turns that has ended."""
    run, _ = await stack.ask(
        cell("x = llm_query('a')"), cell("y = x + '!'"), cell("FINAL(x + y)"), turns_max=5
    )
    return run


async def test_a_fork_goes_on_from_a_turn_with_what_is_changed(stack: Stack) -> None:
    """Another question over the same session, and only what is new is asked and paid."""
    run = await finished(stack)
    asked = len(stack.gateway.requests)
    stack.gateway.replies = [cell("FINAL(y + '?')")]

    forked = await fork(stack, run, 2, question="And else?", limits=Limits(turns_max=7))
    events = await stack.watch(forked)

    ended = events[-1].run_changed
    assert (ended.state, ended.answer.text) == (Run.STATE_ANSWERED, "A!?")
    assert (ended.forked_from, ended.forked_after_turn, ended.turns) == (run.name, 2, 3)
    assert len(stack.gateway.requests) == asked + 1
    assert ended.usage.calls == 1
    assert (ended.spec.question, ended.spec.limits.turns_max) == ("And else?", 7)
    assert ended.spec.limits.sub_calls_max == run.spec.limits.sub_calls_max
    assert "And else?" in stack.gateway.requests[-1].prompt.messages[1].text
    turns = [event.turn for event in events if event.HasField("turn_started")]
    assert turns == [1, 2, 3]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    await eventually(lambda: not stack.sandbox.sessions)  # after the end is told


async def test_a_running_run_is_forked_without_being_disturbed(stack: Stack) -> None:
    stack.gateway.replies = [cell("x = 1"), cell("hang()")]
    run = await stack.create()
    await stack.gateway.asked.wait()
    call = stack.runs.WatchRun(pb.WatchRunRequest(name=run.name), timeout=TIMEOUT_S)
    async for response in call:
        if response.event.turn == 2 and response.event.HasField("cell_started"):
            break
    call.cancel()
    stack.gateway.replies = [cell("FINAL(x + 1)")]

    forked = await fork(stack, run, 1)
    events = await stack.watch(forked)

    assert events[-1].run_changed.answer.text == "2"
    state = (await stack.runs.GetRun(pb.GetRunRequest(name=run.name), timeout=TIMEOUT_S)).run.state
    assert state == Run.STATE_RUNNING


async def test_a_fork_can_be_forked(stack: Stack) -> None:
    """Its log has all that the second fork needs."""
    run = await finished(stack)
    stack.gateway.replies = [cell("z = y + '1'"), cell("FINAL(z)")]
    first = await fork(stack, run, 2)
    await stack.watch(first)
    stack.gateway.replies = [cell("FINAL(z + '2')")]

    second = await fork(stack, first, 3)
    events = await stack.watch(second)

    assert events[-1].run_changed.answer.text == "A!12"


async def test_repeating_a_fork_returns_the_first_one(stack: Stack) -> None:
    run = await finished(stack)

    first = await fork(stack, run, 1, request_id="a")
    assert (await fork(stack, run, 1, request_id="a")).name == first.name
    error = await refusal(stack, run, 2, request_id="a")

    assert error.reason == ErrorReason.ERROR_REASON_REQUEST_ID_REUSED


@pytest.mark.parametrize("after_turn", [3, 4])
async def test_a_turn_that_the_run_did_not_go_on_from_has_no_fork(
    stack: Stack, after_turn: int
) -> None:
    """The last turn gave the answer, and nothing was told after it."""
    run = await finished(stack)

    error = await refusal(stack, run, after_turn)

    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == ErrorReason.ERROR_REASON_FORK_TURN_UNKNOWN
    assert error.metadata == {"run": run.name, "turn": str(after_turn), "turns": "2"}


async def test_what_a_fork_cannot_be_is_refused_by_name(stack: Stack) -> None:
    run = await finished(stack)

    errors = [
        await refusal(stack, run, 0),
        await refusal(stack, run, 1, context="contexts/other"),
        await refusal(stack, run, 1, limits=Limits(turns_max=0)),
    ]

    fields = ["after_turn", "changes.context", "spec.limits.turns_max"]
    assert [error.metadata["field"] for error in errors] == fields


async def test_a_fork_of_no_run_is_not_found(stack: Stack) -> None:
    error = await refusal(stack, Run(name="runs/00"), 1)

    assert error.code is grpc.StatusCode.NOT_FOUND


async def test_a_run_that_a_kill_switch_stops_has_no_forks(stack: Stack) -> None:
    """To fork it would be to go on with what an operator has stopped."""
    run = await finished(stack)
    switch = operations_service_pb2.KillSwitch(target=run.name, reason="too dear")
    await OperationsServiceStub(stack.channel).SetKillSwitch(
        operations_service_pb2.SetKillSwitchRequest(kill_switch=switch), timeout=TIMEOUT_S
    )

    error = await refusal(stack, run, 1)

    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == ErrorReason.ERROR_REASON_KILL_SWITCH
    assert error.metadata == {"target": run.name, "why": "too dear"}


@pytest.mark.parametrize("stopped", ["root", "parent"])
async def test_a_run_below_one_that_a_kill_switch_stops_has_no_forks(
    stack: Stack, stopped: str
) -> None:
    """The switch stops the whole tree, so none of it goes on under another name."""
    root, parent, child = [await finished(stack) for _ in range(3)]
    await put_below(stack, parent, root, root=root)
    await put_below(stack, child, parent, root=root)
    target = root.name if stopped == "root" else parent.name
    switch = operations_service_pb2.KillSwitch(target=target, reason="too dear")
    await OperationsServiceStub(stack.channel).SetKillSwitch(
        operations_service_pb2.SetKillSwitchRequest(kill_switch=switch), timeout=TIMEOUT_S
    )

    error = await refusal(stack, child, 1)

    assert error.reason == ErrorReason.ERROR_REASON_KILL_SWITCH
    assert error.metadata == {"target": target, "why": "too dear"}


@pytest.mark.parametrize("is_childs", [False, True])
async def test_a_fork_of_a_fork_goes_on_from_nothing_that_a_kill_switch_stops(
    stack: Stack, is_childs: bool
) -> None:
    """Forks that were made before have its turns, and are no way around it; nor are forks of a run
    below it."""
    run, root = await finished(stack), await finished(stack)
    if is_childs:
        await put_below(stack, run, root, root=root)
    stack.gateway.replies = [cell("z = x")] * 9
    first = await fork(stack, run, 1)
    await stack.watch(first)
    second = await fork(stack, first, 1)
    await stack.watch(second)
    target = root.name if is_childs else run.name
    switch = operations_service_pb2.KillSwitch(target=target, reason="too dear")
    await OperationsServiceStub(stack.channel).SetKillSwitch(
        operations_service_pb2.SetKillSwitchRequest(kill_switch=switch), timeout=TIMEOUT_S
    )

    for each in (first, second):
        error = await refusal(stack, each, 1)
        assert error.reason == ErrorReason.ERROR_REASON_KILL_SWITCH
        assert error.metadata == {"target": target, "why": "too dear"}


@pytest.mark.parametrize("target", ["tenants/default", "profiles/search"])
async def test_a_fork_of_a_fork_is_its_tenants_and_of_its_profile(
    tmp_path: Path, target: str
) -> None:
    """A switch on either stops it as it does a run from the start."""
    async with orchestrator(tmp_path) as stack:
        context = await stack.upload()
        spec = RunSpec(question="What?", context=context.name, profile="profiles/search")
        stack.gateway.replies = [cell("x = 1")] * 9
        created = await stack.runs.CreateRun(pb.CreateRunRequest(spec=spec), timeout=TIMEOUT_S)
        await stack.watch(created.run)
        first = await fork(stack, created.run, 1)
        await stack.watch(first)
        switch = operations_service_pb2.KillSwitch(target=target, reason="too dear")
        await OperationsServiceStub(stack.channel).SetKillSwitch(
            operations_service_pb2.SetKillSwitchRequest(kill_switch=switch), timeout=TIMEOUT_S
        )

        error = await refusal(stack, first, 1)

        assert error.metadata == {"target": target, "why": "too dear"}


async def put_below(stack: Stack, run: Run, parent: Run, *, root: Run) -> None:
    """Make a run that has ended one that another one's code has asked for."""
    database = await Database.open(stack.config.database_url.reveal(), MIGRATIONS)
    row = tables.runs.c.run_id == run.name.removeprefix("runs/")
    async with database.writing() as connection:
        stored = await connection.execute(select(tables.runs.c.head).where(row))
        head = Run.FromString(stored.scalar_one())
        head.parent, head.root = parent.name, root.name
        change = update(tables.runs).where(row)
        await connection.execute(change.values(head=head.SerializeToString()))
    await database.close()
