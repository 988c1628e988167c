"""Conversations over real gRPC: what a later run finds of an earlier one, and what bounds them
together."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1 import conversation_service_pb2 as conversation_pb
from fathom.orchestrator.v1 import conversation_service_pb2_grpc
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.conversation_service_pb2 import Conversation
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Limits, Run, RunSpec
from google.protobuf.duration_pb2 import Duration

from common.errors import ReceivedError, ServiceError, received
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.store import RunStore
from sandbox_service.errors import CapacityError, ObjectStoreAwayError, SessionLostError
from tests.support.eventually import eventually
from tests.support.fake_gateway import (
    COST_NANOS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    FakeGateway,
    Script,
)
from tests.support.fake_sandbox import FakeSandbox
from tests.support.orchestrator import TIMEOUT_S, Stack, orchestrator


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(tmp_path) as running:
        yield running


def cell(code: str) -> str:
    return f"```repl\n{code}\n```"


def stub(stack: Stack) -> conversation_service_pb2_grpc.ConversationServiceAsyncStub:
    return conversation_service_pb2_grpc.ConversationServiceStub(stack.channel)


async def converse(stack: Stack, *, request_id: str = "", **fields: Any) -> Conversation:
    """Open a conversation over a small text."""
    if "context" not in fields:
        fields["context"] = (await stack.upload()).name
    request = conversation_pb.CreateConversationRequest(
        conversation=Conversation(**fields), request_id=request_id
    )
    return (await stub(stack).CreateConversation(request, timeout=TIMEOUT_S)).conversation


async def get(stack: Stack, conversation: Conversation) -> Conversation:
    request = conversation_pb.GetConversationRequest(name=conversation.name)
    return (await stub(stack).GetConversation(request, timeout=TIMEOUT_S)).conversation


async def listed(stack: Stack, **fields: Any) -> conversation_pb.ListConversationsResponse:
    request = conversation_pb.ListConversationsRequest(**fields)
    return await stub(stack).ListConversations(request, timeout=TIMEOUT_S)


async def delete(stack: Stack, name: str, **fields: Any) -> None:
    request = conversation_pb.DeleteConversationRequest(name=name, **fields)
    await stub(stack).DeleteConversation(request, timeout=TIMEOUT_S)


async def create(stack: Stack, conversation: Conversation, **fields: Any) -> Run:
    spec = RunSpec(question="why?", conversation=conversation.name)
    spec.MergeFrom(RunSpec(**fields))
    request = pb.CreateRunRequest(spec=spec)
    return (await stack.runs.CreateRun(request, timeout=TIMEOUT_S)).run


async def ask(
    stack: Stack, conversation: Conversation, *replies: Script, **fields: Any
) -> tuple[Run, list[RunEvent]]:
    """Run a script to its end in a conversation."""
    stack.gateway.replies = list(replies)
    events = await stack.watch(await create(stack, conversation, **fields))
    return events[-1].run_changed, events


async def failure(call: Any) -> ReceivedError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return received(caught.value)


async def test_a_later_question_finds_the_variables_of_an_earlier_one(stack: Stack) -> None:
    conversation = await converse(stack)
    await ask(stack, conversation, cell("rows = [1, 2, 39]\nFINAL(len(rows))"))

    run, _ = await ask(stack, conversation, cell("FINAL(sum(rows))"))

    assert (run.state, run.answer.text) == (Run.STATE_ANSWERED, "42")
    assert run.spec.context == conversation.context
    assert len(stack.sandbox.created) == 1
    assert len(stack.sandbox.restored) == 1
    await eventually(lambda: not stack.sandbox.sessions)


async def test_the_model_is_told_what_came_before(stack: Stack) -> None:
    conversation = await converse(stack)
    await ask(stack, conversation, cell("rows = [1, 2]\nFINAL('two rows')"), question="How many?")

    await ask(stack, conversation, "FINAL(x)", question="And why?")

    first = stack.gateway.requests[-1].prompt.messages[1].text
    assert "And why?" in first
    assert "Q: How many?\nA: two rows" in first
    assert "- rows: list" in first


async def test_a_variable_of_an_earlier_question_can_be_the_answer_at_once(stack: Stack) -> None:
    """`FINAL(total)` means the variable, also where no cell of this run has shown it."""
    conversation = await converse(stack)
    await ask(stack, conversation, cell("total = 12\nFINAL(total)"))

    run, _ = await ask(stack, conversation, "FINAL(total)")

    assert run.answer.text == "12"


async def test_the_first_question_is_asked_as_any_other(stack: Stack) -> None:
    conversation = await converse(stack)

    await ask(stack, conversation, "FINAL(x)")
    alone = stack.gateway.requests[-1].prompt
    await stack.ask("FINAL(x)", question="why?")

    assert stack.gateway.requests[-1].prompt == alone


async def test_a_failed_run_leaves_the_conversation_as_it_was(stack: Stack) -> None:
    """What a broken run has done to the variables is not what later questions rest on."""
    conversation = await converse(stack)
    await ask(stack, conversation, cell("n = 1\nFINAL(n)"))

    broken, _ = await ask(stack, conversation, cell("n = 3"), RuntimeError("the gateway fails"))
    run, _ = await ask(stack, conversation, cell("FINAL(n)"))

    assert broken.state == Run.STATE_FAILED
    assert run.answer.text == "1"


async def test_a_run_that_ran_nothing_passes_the_session_on(stack: Stack) -> None:
    conversation = await converse(stack)
    await ask(stack, conversation, cell("n = 7\nFINAL(n)"))
    await ask(stack, conversation, "FINAL(from memory)")

    run, _ = await ask(stack, conversation, cell("n += 1\nFINAL(n)"))

    assert run.answer.text == "8"


async def test_one_run_at_a_time(stack: Stack) -> None:
    """Two runs in one session would pull the variables from under each other."""
    conversation = await converse(stack)
    stack.gateway.hold.clear()
    run = await create(stack, conversation)

    error = await failure(create(stack, conversation))
    busy = await failure(delete(stack, conversation.name))
    live = (await get(stack, conversation)).live_run
    stack.gateway.hold.set()
    await stack.watch(run)

    assert (error.code, error.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        ErrorReason.ERROR_REASON_CONVERSATION_BUSY,
    )
    assert error.metadata == {"conversation": conversation.name, "run": run.name}
    assert busy.reason == ErrorReason.ERROR_REASON_CONVERSATION_BUSY
    assert live == run.name
    assert (await get(stack, conversation)).live_run == ""


async def test_a_request_that_its_own_run_stands_in_the_way_of_has_that_run(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller hung up while it was being stored and asks again, which overtakes that."""
    conversation = await converse(stack)
    stack.gateway.hold.clear()
    spec = RunSpec(question="?", conversation=conversation.name)
    request = pb.CreateRunRequest(spec=spec, request_id="once")
    run = (await stack.runs.CreateRun(request, timeout=TIMEOUT_S)).run
    find_request, looks = RunStore.find_request, itertools.count()

    async def not_yet(self: RunStore, *key: Any) -> RunRecord | None:
        return None if next(looks) == 0 else await find_request(self, *key)

    monkeypatch.setattr(RunStore, "find_request", not_yet)
    again = (await stack.runs.CreateRun(request, timeout=TIMEOUT_S)).run
    request.request_id = "another"
    error = await failure(stack.runs.CreateRun(request, timeout=TIMEOUT_S))
    stack.gateway.hold.set()
    await stack.watch(run)

    assert again.name == run.name
    assert error.reason == ErrorReason.ERROR_REASON_CONVERSATION_BUSY


async def test_a_conversation_tells_its_runs_and_what_they_took(stack: Stack) -> None:
    conversation = await converse(stack)
    first, _ = await ask(stack, conversation, cell("x = llm_query('a')\nFINAL(x)"))
    second, _ = await ask(stack, conversation, "FINAL(x)")

    found = await get(stack, conversation)

    assert list(found.runs) == [first.name, second.name]
    assert (found.usage.calls, found.usage.cost_usd_nanos) == (3, 3 * COST_NANOS)
    assert found.sub_calls == 1
    assert found.expire_time.ToNanoseconds() > found.create_time.ToNanoseconds()


@pytest.mark.parametrize(
    ("limit", "value", "left"),
    [
        ("sub_calls_max", 3, 2),
        ("tokens_max", 5_000, 5_000 - 2 * (INPUT_TOKENS + OUTPUT_TOKENS)),
        ("cost_usd_nanos_max", 1_000_000, 1_000_000 - 2 * COST_NANOS),
    ],
)
async def test_a_run_gets_what_is_left(stack: Stack, limit: str, value: int, left: int) -> None:
    limits: dict[str, Any] = {limit: value}
    conversation = await converse(stack, limits=Limits(**limits))
    first, _ = await ask(stack, conversation, cell("x = llm_query('a')\nFINAL(x)"))

    second = await create(stack, conversation)

    assert getattr(first.spec.limits, limit) == value
    assert getattr(second.spec.limits, limit) == left
    await stack.watch(second)


async def test_a_smaller_wish_of_a_run_holds(stack: Stack) -> None:
    conversation = await converse(stack, limits=Limits(sub_calls_max=30))

    run = await create(stack, conversation, limits=Limits(sub_calls_max=2))

    assert run.spec.limits.sub_calls_max == 2
    await stack.watch(run)


async def test_a_conversation_that_has_used_up_its_limit_takes_no_run(stack: Stack) -> None:
    conversation = await converse(stack, limits=Limits(cost_usd_nanos_max=COST_NANOS))
    await ask(stack, conversation, "FINAL(x)")

    error = await failure(create(stack, conversation))

    assert (error.code, error.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        ErrorReason.ERROR_REASON_CONVERSATION_LIMIT_EXCEEDED,
    )
    assert error.metadata == {
        "conversation": conversation.name,
        "limit": "cost_usd_nanos_max",
        "value": str(COST_NANOS),
        "spent": str(COST_NANOS),
    }


async def test_a_deleted_conversation_is_gone_and_its_runs_stay(stack: Stack) -> None:
    conversation = await converse(stack)
    run, _ = await ask(stack, conversation, cell("n = 1\nFINAL(n)"))

    await delete(stack, conversation.name)

    gone = [
        await failure(get(stack, conversation)),
        await failure(create(stack, conversation)),
        await failure(delete(stack, conversation.name)),
    ]
    assert {error.code for error in gone} == {grpc.StatusCode.NOT_FOUND}
    await delete(stack, conversation.name, allow_missing=True)
    request = pb.GetRunRequest(name=run.name)
    assert (await stack.runs.GetRun(request, timeout=TIMEOUT_S)).run == run


async def test_conversations_are_listed_newest_first_in_pages(stack: Stack) -> None:
    names = [(await converse(stack)).name for _ in range(3)]

    first = await listed(stack, page_size=2)
    second = await listed(stack, page_size=2, page_token=first.next_page_token)

    found = [each.name for each in [*first.conversations, *second.conversations]]
    assert found == sorted(names, reverse=True)
    assert second.next_page_token == ""


async def test_the_same_request_opens_one_conversation(stack: Stack) -> None:
    context = (await stack.upload()).name
    first = await converse(stack, request_id="a", context=context)
    second = await converse(stack, request_id="a", context=context)
    other = await failure(
        converse(stack, request_id="a", context=context, limits=Limits(tokens_max=1))
    )

    assert first == second
    assert other.reason == ErrorReason.ERROR_REASON_REQUEST_ID_REUSED


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"context": ""}, "conversation.context"),
        ({"context": "runs/a"}, "conversation.context"),
        ({"limits": Limits(turns_max=3)}, "conversation.limits.turns_max"),
        ({"limits": Limits(time_max=Duration(seconds=3))}, "conversation.limits.time_max"),
        ({"limits": Limits(tokens_max=0)}, "conversation.limits.tokens_max"),
        ({"limits": Limits(sub_calls_max=-1)}, "conversation.limits.sub_calls_max"),
        ({"idle_ttl": Duration(seconds=59)}, "conversation.idle_ttl"),
        ({"idle_ttl": Duration(seconds=90 * 86_400 + 1)}, "conversation.idle_ttl"),
    ],
)
async def test_a_wrong_wish_is_named(stack: Stack, fields: dict[str, Any], field: str) -> None:
    error = await failure(converse(stack, **fields))

    assert (error.code, error.metadata["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, field)


async def test_a_conversation_of_an_unknown_context_is_not_found(stack: Stack) -> None:
    error = await failure(converse(stack, context="contexts/none"))

    assert error.code == grpc.StatusCode.NOT_FOUND


async def test_a_run_of_another_context_does_not_join(stack: Stack) -> None:
    conversation = await converse(stack)
    other = await stack.upload(b"another text\n")

    error = await failure(create(stack, conversation, context=other.name))

    assert (error.code, error.metadata["field"]) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "spec.context",
    )


async def test_a_session_that_cannot_be_kept_is_told(stack: Stack) -> None:
    """The answer stands; what is lost is said, and the next question begins before it."""
    conversation = await converse(stack)
    await ask(stack, conversation, cell("n = 1\nFINAL(n)"))
    stack.sandbox.checkpoint_failures.append(RuntimeError("the disk is full"))

    run, events = await ask(stack, conversation, cell("n = 2\nFINAL(n)"))
    later, _ = await ask(stack, conversation, cell("FINAL(n)"))

    assert (run.state, run.answer.text) == (Run.STATE_ANSWERED, "2")
    kinds = [event.notice.kind for event in events if event.HasField("notice")]
    assert kinds == ["SESSION_NOT_KEPT"]
    assert later.answer.text == "1"


@pytest.mark.parametrize(
    "failure",
    [SessionLostError("s1", "it died", ""), ObjectStoreAwayError(), CapacityError("no file left")],
)
async def test_a_session_that_is_lost_while_it_is_stored_is_stored_all_the_same(
    stack: Stack, failure: ServiceError
) -> None:
    """The next question finds the variables that it would have found had nothing died."""
    conversation = await converse(stack)
    stack.sandbox.checkpoint_failures += [failure, failure]

    _, events = await ask(stack, conversation, cell("n = 1\nFINAL(n)"))
    later, _ = await ask(stack, conversation, cell("FINAL(n + 1)"))

    assert not [event.notice for event in events if event.HasField("notice")]
    assert later.answer.text == "2"


async def fork(stack: Stack, run: Run, after_turn: int, *replies: Script, **changes: Any) -> Run:
    """Fork a run, and return the fork at its end."""
    stack.gateway.replies = list(replies)
    request = pb.ForkRunRequest(name=run.name, after_turn=after_turn, changes=RunSpec(**changes))
    made = (await stack.runs.ForkRun(request, timeout=TIMEOUT_S)).run
    return (await stack.watch(made))[-1].run_changed


async def test_a_run_of_a_conversation_is_forked_with_what_came_before_it(stack: Stack) -> None:
    """The fork is no part of the conversation, and neither is a fork of it."""
    conversation = await converse(stack)
    await ask(stack, conversation, cell("n = 40\nFINAL(n)"), question="How many rows?")
    run, _ = await ask(stack, conversation, cell("n += 1"), cell("FINAL(n)"))
    before = await get(stack, conversation)

    first = await fork(stack, run, 1, cell("n += 1"), cell("FINAL(n)"), question="And then?")
    told = stack.gateway.requests[-1].prompt.messages[1].text
    second = await fork(stack, first, 2, cell("FINAL(n * 2)"))

    assert (run.answer.text, first.answer.text, second.answer.text) == ("41", "42", "84")
    assert (first.spec.conversation, first.spec.context) == ("", conversation.context)
    assert "How many rows?" in told
    assert "And then?" in told
    assert await get(stack, conversation) == before


async def test_a_fork_outlives_the_conversation_of_its_original(stack: Stack) -> None:
    """What was kept went with the conversation; the fork's log says that its session differs."""
    conversation = await converse(stack)
    await ask(stack, conversation, cell("n = 40\nFINAL(n)"))
    run, _ = await ask(stack, conversation, cell("n += 1"), cell("FINAL(n)"))
    await delete(stack, conversation.name)
    stack.sandbox.checkpoints.clear()

    forked = await fork(stack, run, 1, cell("n = 1\nFINAL(n)"))
    told = [event.notice.kind for event in await stack.watch(forked) if event.HasField("notice")]

    assert (forked.state, forked.answer.text) == (Run.STATE_ANSWERED, "1")
    assert told == ["REPLAY_DIFFERS"]


@pytest.mark.parametrize("is_session_lost", [False, True])
async def test_a_run_that_goes_on_elsewhere_has_the_conversations_session(
    tmp_path: Path, is_session_lost: bool
) -> None:
    """A lost session comes back from what the conversation kept, and the cells after it."""
    gateway, sandbox = FakeGateway(), FakeSandbox(tmp_path / "objects")

    def add_one(_: object) -> str:
        gateway.hold.clear()
        return cell("n += 1\nprint(n)")

    async with orchestrator(tmp_path, gateway=gateway, sandbox=sandbox) as first:
        conversation = await converse(first)
        await ask(first, conversation, cell("n = 1\nFINAL(n)"))
        gateway.replies = [add_one, cell("FINAL(n)")]
        run = await create(first, conversation)
        await eventually(lambda: len(gateway.requests) == 3)
    if is_session_lost:
        sandbox.sessions.clear()
    gateway.hold.set()
    async with orchestrator(tmp_path, gateway=gateway, sandbox=sandbox) as second:
        events = await second.watch(run)
        found = await get(second, conversation)

    assert events[-1].run_changed.answer.text == "2"
    assert len(sandbox.restored) == 1 + is_session_lost
    assert found.live_run == ""


async def test_a_deleted_conversations_session_is_deleted_from_the_object_store(
    tmp_path: Path,
) -> None:
    """Also where the orchestrator ends before it has come to that: the next one does it."""
    sandbox = FakeSandbox(tmp_path / "objects")
    async with orchestrator(tmp_path, sandbox=sandbox) as stack:
        conversation = await converse(stack)
        await ask(stack, conversation, cell("rows = [1, 2]\nFINAL(len(rows))"))
        owner = conversation.name.replace("/", "-")
        assert [key for key in sandbox.checkpoints if f"/{owner}/" in key]
        await delete(stack, conversation.name)
        assert sandbox.checkpoints

    async with orchestrator(tmp_path, sandbox=sandbox):
        await eventually(lambda: not sandbox.checkpoints)
