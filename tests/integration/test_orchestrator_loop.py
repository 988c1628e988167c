"""The loop over real gRPC: what replies of all kinds come to, and what is written down of it.

Long, because each kind of reply is a short test of its own, over one fixture.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1.generation_pb2 import Generation, Message
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Answer, Run
from google.protobuf.duration_pb2 import Duration

from common.errors import ReceivedError
from tests.support.eventually import eventually
from tests.support.fake_gateway import (
    COST_NANOS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    ScriptedError,
    generation,
)
from tests.support.orchestrator import Stack, chunk, document, orchestrator, start


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(tmp_path) as running:
        yield running


def cell(code: str) -> str:
    return f"I look.\n```repl\n{code}\n```"


def cases(events: list[RunEvent]) -> list[str | None]:
    return [event.WhichOneof("event") for event in events]


def notices(events: list[RunEvent]) -> list[str]:
    return [event.notice.kind for event in events if event.HasField("notice")]


def endings(events: list[RunEvent]) -> list[str]:
    return [event.cell_finished.ending for event in events if event.HasField("cell_finished")]


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


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ("I will now look at the data.", "no cell to run"),
        ("```json\n{}\n```", "no cell to run"),
        ("", "reply was empty"),
        ("  \n", "reply was empty"),
        ("```repl\nprint(1)", "never closed"),
        (cell("x = ("), "does not parse as Python"),
        (cell("1/0"), "ZeroDivisionError"),
        (cell("time_out()"), "took too long"),
        ("FINAL()", "was not taken: it was empty"),
        ("FINAL(cut off", "closing parenthesis"),
        ("FINAL_VAR(missing)", "no variable 'missing'"),
        (cell("FINAL('')"), "was not taken: it was empty"),
        (cell("FINAL('plan')\n1/0"), "a cell of that reply failed"),
        (cell("1/0") + "\nFINAL(plan)", "a cell of that reply failed"),
        ("FINAL(plan)\n```repl\nprint(", "not closed"),
        ('FINAL(f"{x}")', "f-string"),
    ],
)
async def test_a_reply_of_no_use_gets_a_useful_message(stack: Stack, reply: str, told: str) -> None:
    """Small models do all of this; the run goes on and the reply stays in the conversation."""
    run, _ = await stack.ask(reply, "FINAL(recovered)")

    assert run.answer == Answer(text="recovered", source=Answer.SOURCE_TEXT)
    messages = stack.gateway.requests[1].prompt.messages
    assert told in messages[-1].text
    assert messages[-2].text == (reply if reply.strip() else "(empty reply)")


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("Nothing.", "REPLY_WITHOUT_CODE"),
        ("FINAL()", "FINAL_REJECTED"),
        (cell("FINAL('plan')\n1/0"), "FINAL_REJECTED"),
    ],
)
async def test_what_people_should_know_is_a_notice(stack: Stack, reply: str, kind: str) -> None:
    _, events = await stack.ask(reply, "FINAL(recovered)")

    assert notices(events) == [kind]


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("FINAL(a (b) c)", "a (b) c"),
        (cell("x = 7") + "\nFINAL_VAR(x)", "7"),
        (cell("x = 7") + "\nFINAL(x)", "7"),
        (cell("x = 7") + "\nFINAL(y)", "y"),
        (cell("FINAL(1)\nFINAL(2)"), "2"),
        (cell("FINAL(1)") + "\n" + cell("print(2)"), "1"),
        ("FINAL(plan)\n" + cell("FINAL('found')"), "found"),
        (cell("FINAL('x')\nraise SystemExit"), "x"),
    ],
)
async def test_an_answer_is_taken_as_it_was_meant(stack: Stack, reply: str, answer: str) -> None:
    run, _ = await stack.ask(reply, "FINAL(not this)")

    assert (run.state, run.answer.text) == (Run.STATE_ANSWERED, answer)


async def test_the_cells_after_a_failing_one_are_not_run(stack: Stack) -> None:
    """They were written in the belief that the first one works."""
    _, events = await stack.ask(
        cell("a = 1") + "\n" + cell("1/0") + "\n" + cell("b = 2"), "FINAL(x)"
    )

    assert endings(events) == ["COMPLETED", "RAISED"]
    assert "1 of them" in stack.gateway.prompts()[1]


async def test_a_repeated_cell_is_run_and_the_model_is_told(stack: Stack) -> None:
    """Models that go in circles burn their turns without noticing."""
    _, events = await stack.ask(cell("print(1)"), cell(" print(1)".strip()), "FINAL(x)")

    assert notices(events) == ["CELL_REPEATED"]
    assert endings(events) == ["COMPLETED", "COMPLETED"]
    assert "exactly this cell before" in stack.gateway.prompts()[2]


async def test_long_output_is_cut_for_the_model_and_kept_whole(
    stack: Stack, tmp_path: Path
) -> None:
    code = "print('h' * 6000 + 'm' * 10000 + 'needle')"
    _, events = await stack.ask(cell(code), "FINAL(x)")

    finished = next(e.cell_finished for e in events if e.HasField("cell_finished"))
    assert finished.output_characters == 16_007
    assert finished.output_shown.endswith("needle\n")
    assert "6,007 of 16,007 characters not shown" in stack.gateway.prompts()[1]
    kept = (tmp_path / "objects" / finished.output_key).read_text()
    assert kept == "h" * 6000 + "m" * 10000 + "needle\n"


async def test_a_lost_session_comes_back_with_its_variables(stack: Stack) -> None:
    """A worker that dies costs time, and nothing that the model would see."""
    run, events = await stack.ask(
        cell("x = llm_query('a')"),
        cell("lose_session(times=1)\ny = llm_query(context)"),
        cell("FINAL(x + y)"),
    )

    assert run.answer.text == "ASOME TEXT\n"
    assert endings(events) == ["COMPLETED"] * 3
    numbers = [e.sub_call_started.sub_call for e in events if e.HasField("sub_call_started")]
    assert numbers == [1, 2]
    codes = [request.code for request in stack.sandbox.executed]
    assert codes.count("x = llm_query('a')\n") == 2


async def test_a_cell_that_loses_every_session_is_undone_and_the_model_is_told(
    stack: Stack,
) -> None:
    """The model must know which cell was too much, and keeps what it had before."""
    reply = "\n\n".join([cell("x = 'seen'"), cell("lose_session()"), cell("print('never')")])

    run, events = await stack.ask(reply, cell("FINAL(x)"))

    assert run.answer.text == "seen"
    assert endings(events) == ["COMPLETED", "WORKER_LOST", "COMPLETED"]
    assert "Cell 2 of 3 was lost" in stack.gateway.prompts()[1]
    assert "all from before it is kept" in stack.gateway.prompts()[1]


async def test_a_session_that_cannot_be_used_any_more_is_replaced_by_an_empty_one(
    stack: Stack,
) -> None:
    """Where one cell after the other is lost, what broke is older than both."""
    run, events = await stack.ask(
        cell("x = 1\nlose_session()"), cell("lose_session()"), cell("FINAL('x' in globals())")
    )

    assert run.answer.text == "false"
    assert endings(events) == ["WORKER_LOST", "SESSION_LOST", "COMPLETED"]
    assert "started anew" in stack.gateway.prompts()[2]


async def test_a_full_sandbox_is_asked_again(stack: Stack) -> None:
    busy = ScriptedError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, ErrorReason.ERROR_REASON_SANDBOX_CAPACITY
    )
    busy.retry_after_s = 0.01
    stack.sandbox.failures = [busy, busy]

    run, _ = await stack.ask(cell("FINAL(context)"))

    assert run.state == Run.STATE_ANSWERED
    assert len({request.request_id for request in stack.sandbox.created}) == 1


async def test_a_cell_that_finds_no_worker_is_run_a_moment_later(stack: Stack) -> None:
    """Its session is where it was: it only waits for a place to run in."""
    busy = ScriptedError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, ErrorReason.ERROR_REASON_SANDBOX_CAPACITY
    )
    busy.retry_after_s = 0.01
    stack.sandbox.execute_failures = [busy, busy]

    run, events = await stack.ask(cell("FINAL(context)"))

    assert run.state == Run.STATE_ANSWERED
    assert endings(events) == ["COMPLETED"]
    assert len(stack.sandbox.created) == 1


async def test_a_variable_is_still_known_after_a_cell_that_was_undone(stack: Stack) -> None:
    """Else its bare name would be the answer, in place of its value."""
    run, _ = await stack.ask(cell("total = 'forty-two'"), cell("time_out()"), "FINAL(total)")

    assert run.answer.text == "forty-two"


async def test_a_context_that_does_not_fit_ends_the_run_with_that_reason(stack: Stack) -> None:
    stack.sandbox.failures = [
        ScriptedError(
            grpc.StatusCode.FAILED_PRECONDITION,
            ErrorReason.ERROR_REASON_CONTEXT_TOO_LARGE,
            bytes_needed="5",
        )
    ]

    run, _ = await stack.ask(cell("print(1)"))

    error = ReceivedError(run.error)
    assert (run.state, error.code, error.reason_name, error.metadata) == (
        Run.STATE_FAILED,
        grpc.StatusCode.FAILED_PRECONDITION,
        "ERROR_REASON_CONTEXT_TOO_LARGE",
        {"bytes_needed": "5"},
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_PROVIDER_UNAVAILABLE),
        (grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_PROVIDER_CREDENTIAL),
        (grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_CONTEXT_WINDOW_EXCEEDED),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ErrorReason.ERROR_REASON_PROVIDER_TIMEOUT),
    ],
)
async def test_a_failing_provider_ends_the_run_with_the_gateways_reason(
    stack: Stack, code: grpc.StatusCode, reason: ErrorReason.ValueType
) -> None:
    """The gateway has retried already; its code, reason and metadata say what to do."""
    run, _ = await stack.ask(ScriptedError(code, reason, provider="p", model="m"))

    error = ReceivedError(run.error)
    assert run.state == Run.STATE_FAILED
    assert (error.code, error.reason) == (code, reason)
    assert error.metadata == {"provider": "p", "model": "m"}
    await eventually(lambda: stack.sandbox.deleted == ["sessions/s1"])


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


async def test_a_models_reasoning_is_kept_apart_from_its_reply(stack: Stack) -> None:
    reply = generation("FINAL(4)")
    reply.reasoning = "two and two"

    _, events = await stack.ask(Generation.FromString(reply.SerializeToString()))

    replied = next(e.model_replied for e in events if e.HasField("model_replied"))
    assert (replied.text, replied.reasoning, replied.model) == (
        "FINAL(4)",
        "two and two",
        "models/large",
    )


async def test_a_failed_sub_call_is_written_down_with_its_reason(stack: Stack) -> None:
    """A failure is a value for the model's code, and a fact for people."""
    stack.sandbox.answer = lambda _: ScriptedError(
        grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_PROVIDER_UNAVAILABLE
    )

    run, events = await stack.ask(cell("llm_query('a')"), "FINAL(gave up)")

    finished = next(e.sub_call_finished for e in events if e.HasField("sub_call_finished"))
    error = ReceivedError(finished.error)
    assert error.reason == ErrorReason.ERROR_REASON_PROVIDER_UNAVAILABLE
    assert (run.sub_calls, run.sub_calls_live, run.usage.calls) == (1, 0, 2)


async def test_a_gateway_that_restarts_is_asked_again(stack: Stack) -> None:
    """A rolling update must not fail the runs in progress; the request id stays the same."""
    away = ScriptedError(grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_DRAINING)

    run, events = await stack.ask(away, "FINAL(back)")

    assert run.answer.text == "back"
    assert len({request.call.request_id for request in stack.gateway.requests}) == 1
    assert cases(events).count("turn_started") == 1


async def test_a_gateway_that_stays_away_is_waited_for_until_the_run_is_out_of_time(
    stack: Stack,
) -> None:
    """Whoever restarts it has as long as the run has; what was found until then is not lost."""
    away = ScriptedError(grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_DRAINING)
    time_max = Duration()
    time_max.FromMilliseconds(3_000)

    run, _ = await stack.ask(cell("print('found')"), away, time_max=time_max)

    assert (run.state, run.answer.text) == (Run.STATE_PARTIAL, "found")
    assert run.answer.limit_reached == "time_max"
    assert len(stack.gateway.requests) > 3


@pytest.mark.parametrize("text", ["", "I think about", "FINAL(the answer is"])
async def test_a_model_is_told_that_its_reply_was_cut_off(stack: Stack, text: str) -> None:
    """A model that reasons up to its limit would be told again and again that it said nothing."""
    cut = generation(text)
    cut.finish_reason = Generation.FINISH_REASON_LENGTH

    await stack.ask(cut, "FINAL(done)")

    assert "was cut off" in stack.gateway.prompts()[1]


async def test_a_reply_beyond_all_measure_is_cut_so_that_its_event_can_be_watched(
    stack: Stack,
) -> None:
    """A provider that ignores the limit of output must not make a run that nobody can read."""
    huge = generation("FINAL(" + "\U0001f40b" * 900_000 + ")")

    run, events = await stack.ask(huge, "FINAL(done)")

    assert run.answer.text == "done"
    assert "was cut off" in stack.gateway.prompts()[1]
    assert max(event.ByteSize() for event in events) < 2 << 20
