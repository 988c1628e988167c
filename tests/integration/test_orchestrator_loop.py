"""The loop over real gRPC: a run's events, its usage, its calls and its session."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1.generation_pb2 import Message
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.run_pb2 import Answer, Run

from tests.support.eventually import eventually
from tests.support.fake_gateway import (
    COST_NANOS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    ScriptedError,
)
from tests.support.orchestrator import Stack, chunk, document, orchestrator, start
from tests.support.run_scripts import cases, cell, notices


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(tmp_path) as running:
        yield running


async def test_a_run_goes_from_question_to_answer_and_writes_every_step_down(stack: Stack) -> None:
    """The log is what watchers, viewers and recovery read: it must tell all, without a gap."""
    run, events = await stack.ask(
        cell("print(len(context))\nx = llm_query('a')"), cell("FINAL(x + '!')")
    )

    assert (run.state, run.answer) == (
        Run.STATE_ANSWERED,
        Answer(text="A!", source=Answer.SOURCE_CELL),
    )
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert cases(events) == [
        "run_changed",
        "run_changed",
        "turn_started",
        "model_replied",
        "cell_started",
        "sub_call_started",
        "sub_call_finished",
        "cell_finished",
        "turn_started",
        "model_replied",
        "cell_started",
        "cell_finished",
        "run_changed",
    ]
    states = [event.run_changed.state for event in events if event.HasField("run_changed")]
    assert states == [Run.STATE_QUEUED, Run.STATE_RUNNING, Run.STATE_ANSWERED]
    assert [(e.turn, e.cell) for e in events if e.HasField("cell_started")] == [(1, 1), (2, 1)]
    times = [event.event_time.ToNanoseconds() for event in events]
    assert times == sorted(times)


async def test_every_call_is_counted_once(stack: Stack) -> None:
    """Usage of sub-calls is the run's; nothing is lost and nothing twice."""
    run, events = await stack.ask(
        cell("a = [llm_query(str(n)) for n in range(5)]"), cell("llm_query('x')\nFINAL('done')")
    )

    calls = 2 + 6
    assert run.usage.calls == calls
    assert run.usage.input_tokens == calls * INPUT_TOKENS
    assert run.usage.output_tokens == calls * OUTPUT_TOKENS
    assert run.usage.cost_usd_nanos == calls * COST_NANOS
    assert (run.sub_calls, run.sub_calls_live, run.turns) == (6, 0, 2)
    numbers = [e.sub_call_started.sub_call for e in events if e.HasField("sub_call_started")]
    assert numbers == [1, 2, 3, 4, 5, 6]
    totals = [e.model_replied.run_usage.calls for e in events if e.HasField("model_replied")]
    assert totals == [1, 7]


BILLED = {
    "input_tokens": "30",
    "output_tokens": "3",
    "cost_usd_nanos": "500",
    "usage_estimated": "true",
}


async def test_a_failed_sub_call_that_was_billed_is_counted(stack: Stack) -> None:
    """The gateway's meter has it, so the run's books must have it too."""
    stack.sandbox.answer = lambda _: ScriptedError(
        grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_PROVIDER_BROKEN_REPLY, **BILLED
    )

    run, events = await stack.ask(cell("llm_query('a')"), "FINAL(gave up)")

    assert run.usage.input_tokens == 2 * INPUT_TOKENS + 30
    assert run.usage.output_tokens == 2 * OUTPUT_TOKENS + 3
    assert run.usage.cost_usd_nanos == 2 * COST_NANOS + 500
    assert (run.usage.calls, run.usage.estimated) == (2, True)
    finished = next(e.sub_call_finished for e in events if e.HasField("sub_call_finished"))
    assert finished.usage.cost_usd_nanos == 500


async def test_a_failed_root_call_that_was_billed_is_counted(stack: Stack) -> None:
    broken = ScriptedError(
        grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_PROVIDER_BROKEN_REPLY, **BILLED
    )

    run, _ = await stack.ask(cell("x = 1"), broken)

    assert run.state == Run.STATE_FAILED
    assert run.usage.cost_usd_nanos == COST_NANOS + 500


async def test_the_conversation_only_grows_and_keeps_the_models_words(stack: Stack) -> None:
    """Provider caches hit on equal beginnings, and the model's own reasoning is its memory."""
    replies = [cell("print(1)"), "Just thinking.", cell("print(3)"), "FINAL(done)"]
    await stack.ask(*replies)

    sent = [[m.text for m in r.prompt.messages] for r in stack.gateway.requests]
    assert all(later[: len(one)] == one for one, later in itertools.pairwise(sent))
    assert [m for m in sent[-1] if m in replies] == replies[:3]
    roles = [m.role for m in stack.gateway.requests[-1].prompt.messages]
    assert roles[0] == Message.ROLE_SYSTEM
    assert roles[1:] == [Message.ROLE_USER, Message.ROLE_ASSISTANT] * 3 + [Message.ROLE_USER]


async def test_calls_name_the_run_the_turn_and_the_cell(stack: Stack) -> None:
    """The ledger answers a repeated key without paying."""
    run, _ = await stack.ask(cell("print(1)"), cell("FINAL(2)"))

    run_id = run.name.removeprefix("runs/")
    assert [r.call.request_id for r in stack.gateway.requests] == [
        f"{run_id}/1/0/0",
        f"{run_id}/2/0/0",
    ]
    assert [r.call_prefix for r in stack.sandbox.executed] == [f"{run_id}/1/1", f"{run_id}/2/1"]
    assert {token.run for token in stack.gateway.tokens} == {run.name}


async def test_the_session_gets_the_context_and_is_deleted(stack: Stack) -> None:
    run, _ = await stack.ask(cell("FINAL(context)"))

    assert run.answer.text == "some text\n"
    await eventually(lambda: stack.sandbox.deleted == ["sessions/s1"])
    assert stack.sandbox.created[0].labels["run"] == run.name.removeprefix("runs/")


async def test_documents_reach_the_session_by_name(stack: Stack) -> None:
    context = await stack.upload_messages(
        start(Context.KIND_DOCUMENTS),
        document("a.txt"),
        chunk(b"one", 0),
        document("b.txt"),
        chunk("zwölf".encode(), 3),
    )
    stack.gateway.replies = [cell("FINAL(context)")]

    run = (await stack.watch(await stack.create(context=context)))[-1].run_changed

    assert run.answer.is_json
    assert run.answer.text == '{"a.txt": "one", "b.txt": "zw\\u00f6lf"}'
    mount = stack.sandbox.created[0].contexts[0]
    assert [(d.name, d.text_shape.code_point_max) for d in mount.documents] == [
        ("a.txt", ord("o")),
        ("b.txt", ord("ö")),
    ]
    assert "b.txt (5 characters)" in stack.gateway.prompts()[0]


async def test_an_unforeseen_error_ends_the_run_without_its_text(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Python's texts are for the log; they may hold paths and data."""

    def fail(_: str) -> None:
        raise KeyError("secret path")

    monkeypatch.setattr("orchestrator.runs.answers.replies.parse_reply", fail)

    run, _ = await stack.ask("FINAL(x)")

    assert run.state == Run.STATE_FAILED
    assert (run.error.code, run.error.message) == (13, "internal error")
    assert "secret" not in str(run)
    assert "secret path" in caplog.text


async def test_malformed_text_is_a_notice(stack: Stack) -> None:
    context = await stack.upload(b"ok \xff\xfe")
    stack.gateway.replies = [cell("FINAL(context)")]

    events = await stack.watch(await stack.create(context=context))

    assert notices(events) == ["CONTEXT_MALFORMED_UTF8"]
    assert events[-1].run_changed.answer.text == "ok \ufffd\ufffd"
    assert "2 byte sequences" in stack.gateway.prompts()[0]
