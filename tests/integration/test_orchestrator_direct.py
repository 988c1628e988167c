"""Small inputs that go direct, and confidence: when a run ends early, and when it goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Answer, Limits, Run, RunSpec

from common.errors import received
from tests.support.fake_gateway import COST_NANOS, Script, ScriptedError
from tests.support.orchestrator import TIMEOUT_S, Stack, chunk, document, orchestrator, start


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(tmp_path) as running:
        yield running


def cell(code: str) -> str:
    return f"```repl\n{code}\n```"


async def ask(
    stack: Stack, *replies: Script, context: Context | None = None, **fields: Any
) -> tuple[Run, list[RunEvent]]:
    """Run a script over a small text, with fields of the spec set."""
    stack.gateway.replies = list(replies)
    context = context or await stack.upload(b"the code is 4711\n")
    spec = RunSpec(question="What is the code?", context=context.name, **fields)
    request = pb.CreateRunRequest(spec=spec)
    run = (await stack.runs.CreateRun(request, timeout=TIMEOUT_S)).run
    events = await stack.watch(run)
    return events[-1].run_changed, events


def directs(events: list[RunEvent]) -> list[bool]:
    return [event.turn_started.direct for event in events if event.HasField("turn_started")]


def notices(events: list[RunEvent]) -> list[str]:
    return [event.notice.kind for event in events if event.HasField("notice")]


async def test_a_small_input_is_answered_in_one_call(stack: Stack) -> None:
    """A session and several turns for a text of one line is what users call slow and dear."""
    run, events = await ask(stack, "FINAL(4711, confidence=1)", direct_tokens_max=1_000)

    answer = Answer(text="4711", source=Answer.SOURCE_TEXT, confidence=1.0)
    assert (run.state, run.answer) == (Run.STATE_ANSWERED, answer)
    assert (run.turns, run.usage.calls, run.usage.cost_usd_nanos) == (1, 1, COST_NANOS)
    assert directs(events) == [True]
    assert stack.sandbox.created == []
    (request,) = stack.gateway.requests
    assert "the code is 4711" in request.prompt.messages[1].text
    assert "What is the code?" in request.prompt.messages[1].text


async def test_documents_go_direct_with_their_names(stack: Stack) -> None:
    context = await stack.upload_messages(
        start(Context.KIND_DOCUMENTS),
        document("a.txt"),
        chunk(b"one", 0),
        document("b.txt"),
        chunk("zwölf".encode(), 3),
    )

    await ask(stack, "FINAL(12)", context=context, direct_tokens_max=1_000)

    shown = stack.gateway.requests[0].prompt.messages[1].text
    assert '<document name="a.txt">\none\n</document>' in shown
    assert '<document name="b.txt">\nzwölf\n</document>' in shown


@pytest.mark.parametrize("reply", ["NEEDS CODE", cell("FINAL(1)"), "FINAL()", "It is 4711.", ""])
async def test_without_an_answer_from_reading_the_loop_follows(stack: Stack, reply: str) -> None:
    """The conversation of the loop begins as if nothing had been asked before."""
    run, events = await ask(stack, reply, cell("FINAL(context[12:16])"), direct_tokens_max=1_000)

    assert (run.answer.text, run.turns, run.usage.calls) == ("4711", 2, 2)
    assert directs(events) == [True, False]
    assert "DIRECT_LEFT" in notices(events)
    roles = [message.role for message in stack.gateway.requests[1].prompt.messages]
    assert len(roles) == 2


async def test_a_direct_answer_that_is_too_long_for_the_window_is_asked_of_the_loop(
    stack: Stack,
) -> None:
    too_long = ScriptedError(
        grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_CONTEXT_WINDOW_EXCEEDED
    )

    run, events = await ask(stack, too_long, cell("FINAL(1)"), direct_tokens_max=1_000)

    assert run.state == Run.STATE_ANSWERED
    assert directs(events) == [True, False]


async def test_a_direct_answer_fits_the_schema_or_the_loop_follows(stack: Stack) -> None:
    run, _ = await ask(
        stack,
        "FINAL(4711)",
        "FINAL([4711])",
        direct_tokens_max=1_000,
        answer_schema_json='{"type": "array"}',
    )

    assert (run.answer.text, run.answer.is_json, run.turns) == ("[4711]", True, 2)
    assert '{"type": "array"}' in stack.gateway.requests[0].prompt.messages[1].text


@pytest.mark.parametrize(("size", "is_direct"), [(400, True), (401, False)])
async def test_what_is_small_is_the_callers_to_say(
    stack: Stack, size: int, is_direct: bool
) -> None:
    context = await stack.upload(b"x" * size)

    _, events = await ask(stack, "FINAL(x)", context=context, direct_tokens_max=100)

    assert directs(events) == [is_direct]


async def test_what_does_not_fit_half_of_the_window_goes_to_the_loop(stack: Stack) -> None:
    stack.gateway.models[0].context_tokens_max = 10_000
    context = await stack.upload(b"x" * 15_000)

    _, events = await ask(stack, "FINAL(x)", context=context, direct_tokens_max=100_000)

    assert directs(events) == [False]


async def test_runs_are_not_direct_unless_somebody_asked(stack: Stack) -> None:
    run, events = await ask(stack, "FINAL(x)")

    assert directs(events) == [False]
    assert (run.spec.HasField("direct_tokens_max"), run.spec.direct_tokens_max) == (True, 0)


async def test_the_server_may_send_small_inputs_direct(tmp_path: Path) -> None:
    async with orchestrator(tmp_path, direct_tokens_max=500) as stack:
        _, by_default = await ask(stack, "FINAL(x)")
        _, refused = await ask(stack, "FINAL(x)", direct_tokens_max=0)

    assert (directs(by_default), directs(refused)) == ([True], [False])


@pytest.mark.parametrize(
    "final", [cell("FINAL('4711', confidence=0.8)"), "FINAL(4711, confidence=0.8)"]
)
async def test_a_sure_answer_ends_the_run(stack: Stack, final: str) -> None:
    run, _ = await ask(stack, final, confidence_min=0.8)

    assert (run.state, run.answer.text, run.turns) == (Run.STATE_ANSWERED, "4711", 1)
    assert run.answer.confidence == 0.8
    assert "At 0.8 or above" in stack.gateway.prompts()[0]


@pytest.mark.parametrize(
    ("final", "stated"),
    [
        (cell("FINAL('47', confidence=0.79)"), "it stated 0.79"),
        ("FINAL(47, confidence=0)", "it stated 0"),
        ("FINAL(47)", "it stated none"),
    ],
)
async def test_an_unsure_answer_is_to_be_checked(stack: Stack, final: str, stated: str) -> None:
    run, events = await ask(
        stack, final, cell("FINAL('4711', confidence=0.95)"), confidence_min=0.8
    )

    assert (run.answer.text, run.answer.confidence, run.turns) == ("4711", 0.95, 2)
    assert f"at least 0.8, and {stated}" in stack.gateway.prompts()[1]
    assert notices(events) == ["FINAL_REJECTED"]


async def test_at_a_limit_the_unsure_answer_is_given(stack: Stack) -> None:
    """It is the best that was found: no last request is paid to find another."""
    run, _ = await ask(
        stack,
        "FINAL(46, confidence=0.1)",
        "FINAL(47, confidence=0.3)",
        confidence_min=0.8,
        limits=Limits(turns_max=2),
    )

    assert run.state == Run.STATE_PARTIAL
    assert run.answer == Answer(
        text="47", source=Answer.SOURCE_TEXT, confidence=0.3, limit_reached="turns_max"
    )
    assert run.usage.calls == 2


async def test_an_unsure_direct_answer_is_checked_in_the_loop(stack: Stack) -> None:
    run, events = await ask(
        stack,
        "FINAL(47, confidence=0.2)",
        cell("FINAL('4711', confidence=1)"),
        confidence_min=0.8,
        direct_tokens_max=1_000,
    )

    assert (run.answer.text, directs(events)) == ("4711", [True, False])
    assert "confidence=0.9" in stack.gateway.prompts()[0]


async def test_nobody_is_asked_how_sure_it_is_without_a_minimum(stack: Stack) -> None:
    run, _ = await ask(stack, "FINAL(47, confidence=0.1)")

    assert (run.answer.text, run.answer.confidence) == ("47", 0.1)
    assert "confidence" not in stack.gateway.prompts()[0]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"confidence_min": 1.01}, "spec.confidence_min"),
        ({"confidence_min": -0.1}, "spec.confidence_min"),
        ({"confidence_min": float("nan")}, "spec.confidence_min"),
        ({"direct_tokens_max": -1}, "spec.direct_tokens_max"),
        ({"direct_tokens_max": 1_000_001}, "spec.direct_tokens_max"),
    ],
)
async def test_a_wrong_wish_is_named(stack: Stack, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(stack, "FINAL(x)", **fields)

    error = received(caught.value)
    assert (error.code, error.metadata["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, field)


async def test_defaults_grow_with_the_context_and_are_shown(stack: Stack) -> None:
    """A run explains itself: what it was given is in its spec."""
    small, _ = await ask(stack, "FINAL(x)")
    piece = b"0123456\n" * (1 << 17)
    context = await stack.upload_messages(
        start(Context.KIND_TEXT), *(chunk(piece, n * len(piece)) for n in range(40))
    )
    large, _ = await ask(stack, "FINAL(x)", context=context, limits=Limits(tokens_max=1_000_000))

    assert small.spec.limits.sub_calls_max == 1_000
    assert small.spec.limits.cost_usd_nanos_max == 5_000_000_000
    assert large.spec.limits.sub_calls_max == 2_097
    assert large.spec.limits.cost_usd_nanos_max == 10_485_760_000
    assert large.spec.limits.tokens_max == 1_000_000
