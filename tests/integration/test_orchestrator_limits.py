"""Each limit of a run: what is left of it is respected, and reaching it ends in an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1 import gateway_service_pb2 as gateway_pb
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Answer, Run
from google.protobuf.duration_pb2 import Duration

from common.errors import ReceivedError
from tests.support.fake_gateway import COST_NANOS, INPUT_TOKENS, OUTPUT_TOKENS, ScriptedError
from tests.support.fake_sandbox import LimitError
from tests.support.orchestrator import Stack, orchestrator


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(tmp_path) as running:
        yield running


def cell(code: str) -> str:
    return f"```repl\n{code}\n```"


def reached(events: list[RunEvent]) -> list[tuple[str, int, int]]:
    limits = [event.limit_reached for event in events if event.HasField("limit_reached")]
    return [(limit.limit, limit.value, limit.spent) for limit in limits]


def asked_last(events: list[RunEvent]) -> list[bool]:
    return [e.turn_started.last_answer for e in events if e.HasField("turn_started")]


async def test_an_answer_in_the_last_turn_is_an_answer(stack: Stack) -> None:
    run, events = await stack.ask(cell("x = 1"), cell("FINAL('in time')"), turns_max=2)

    assert (run.state, run.answer.text) == (Run.STATE_ANSWERED, "in time")
    assert reached(events) == []
    assert "next turn is your last" in stack.gateway.prompts()[1]


async def test_no_answer_in_the_last_turn_gets_one_more_request(stack: Stack) -> None:
    """What was found is not thrown away: the model sums it up, without code."""
    run, events = await stack.ask(cell("x = 1"), cell("x = 2"), "About 2.", turns_max=2)

    assert run.state == Run.STATE_PARTIAL
    assert run.answer == Answer(
        text="About 2.", source=Answer.SOURCE_FORCED, limit_reached="turns_max"
    )
    assert reached(events) == [("turns_max", 2, 2)]
    assert asked_last(events) == [False, False, True]
    assert run.turns == 2
    last = stack.gateway.requests[-1].prompt
    assert "final answer now" in last.messages[-1].text
    assert last.output_tokens_max == stack.config.last_answer_tokens


@pytest.mark.parametrize(
    ("last", "text"),
    [
        ("So:\nFINAL(it is 4)", "it is 4"),
        ("FINAL_VAR(x)", "1"),
        ("FINAL(x)", "1"),
        ("It is 4.\n```repl\nprint(4)\n```", "It is 4."),
    ],
)
async def test_a_last_answer_is_taken_out_of_its_wrapping(
    stack: Stack, last: str, text: str
) -> None:
    """Models keep to the form they were taught, also where plain text is asked for."""
    run, _ = await stack.ask(cell("x = 1"), last, turns_max=1)

    assert (run.answer.text, run.answer.source) == (text, Answer.SOURCE_FORCED)


async def test_a_last_reply_of_nothing_but_code_is_no_answer(stack: Stack) -> None:
    run, _ = await stack.ask(cell("print('found 12')"), cell("print('more')"), turns_max=1)

    assert (run.answer.text, run.answer.source) == ("found 12", Answer.SOURCE_SALVAGED)


@pytest.mark.parametrize(
    "last",
    ["", ScriptedError(grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_PROVIDER_UNAVAILABLE)],
)
async def test_without_a_last_answer_the_last_output_is_salvaged(
    stack: Stack, last: str | Exception
) -> None:
    """Something was paid for and found: it is given, marked as what it is."""
    run, _ = await stack.ask(cell("print('found 12')"), last, turns_max=1)

    assert run.state == Run.STATE_PARTIAL
    assert run.answer == Answer(
        text="found 12", source=Answer.SOURCE_SALVAGED, limit_reached="turns_max"
    )


async def test_without_any_output_the_last_reply_is_salvaged(stack: Stack) -> None:
    run, _ = await stack.ask("It may be 4.", "", turns_max=1)

    assert (run.answer.text, run.answer.source) == ("It may be 4.", Answer.SOURCE_SALVAGED)


async def test_a_model_that_says_nothing_at_all_fails_the_run(stack: Stack) -> None:
    run, _ = await stack.ask("", turns_max=2)

    error = ReceivedError(run.error)
    assert run.state == Run.STATE_FAILED
    assert (error.code, error.reason_name) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "ERROR_REASON_RUN_NO_ANSWER",
    )
    assert error.metadata == {"run": run.name, "turns": "2", "limit": "turns_max"}
    assert error.message == "turns_max was reached before the model gave a usable reply"


@pytest.mark.parametrize(
    "failing", ["raise ValueError('a defect')", "this does not parse", "nothing = 'printed'"]
)
async def test_neither_a_traceback_nor_code_is_salvaged_as_an_answer(
    stack: Stack, failing: str
) -> None:
    """Whoever reads the answer would take it for one."""
    run, _ = await stack.ask("I look.\n" + cell(failing), cell("x = 1"), turns_max=1)

    assert run.answer.source == Answer.SOURCE_SALVAGED
    assert run.answer.text == "I look."


async def test_what_a_failing_cell_had_printed_is_salvaged(stack: Stack) -> None:
    run, _ = await stack.ask(cell("print('found 12')\n1 / 0"), cell("x"), turns_max=1)

    assert run.answer.text == "found 12"


async def test_a_run_that_has_nothing_but_code_has_no_answer(stack: Stack) -> None:
    run, _ = await stack.ask(cell("x = 1"), turns_max=1)

    assert ReceivedError(run.error).reason_name == "ERROR_REASON_RUN_NO_ANSWER"


async def test_a_last_request_contradicts_nothing_that_was_said_before(stack: Stack) -> None:
    """Told to write the next cell and that none will run, a small model writes one."""
    await stack.ask(cell("x = 1"), cell("llm_query('a')"), "About 2.", turns_max=2, sub_calls_max=0)

    asked = stack.gateway.prompts()
    assert "give the final answer with FINAL" not in asked[1]
    assert "next turn is your last" in asked[1]
    assert "sub-model calls have been used" in asked[2]
    assert "Go on with the next cell" not in asked[2]
    assert "next turn is your last" not in asked[2]


async def test_a_run_of_one_turn_is_not_told_to_wait_with_the_answer(stack: Stack) -> None:
    await stack.ask("FINAL(1)", turns_max=1)

    assert "do not answer yet" not in stack.gateway.prompts()[0]
    assert "your only one" in stack.gateway.prompts()[0]


async def test_a_variable_is_read_for_a_last_answer_also_when_the_time_was_used_up(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was kept back is for this too."""
    monkeypatch.setattr("orchestrator.runs.budget._TIME_RESERVE_SHARE", 0.75)
    run, _ = await stack.ask(
        cell("x = 41"), cell("hang()"), "FINAL_VAR(x)", time_max=Duration(seconds=6)
    )

    assert run.answer == Answer(
        text="41", source=Answer.SOURCE_FORCED, limit_reached="time_max", is_json=False
    )


async def test_the_last_permitted_sub_call_is_made(stack: Stack) -> None:
    run, events = await stack.ask(
        cell("a = [llm_query(str(n)) for n in range(3)]\nFINAL(len(a))"), sub_calls_max=3
    )

    assert (run.state, run.answer.text, run.sub_calls) == (Run.STATE_ANSWERED, "3", 3)
    assert reached(events) == []


async def test_one_sub_call_too_many_ends_the_run_with_a_last_answer(stack: Stack) -> None:
    run, events = await stack.ask(
        cell("for n in range(9):\n    print(llm_query(str(n)))"), "Up to 2.", sub_calls_max=3
    )

    assert (run.state, run.answer.text, run.sub_calls) == (Run.STATE_PARTIAL, "Up to 2.", 3)
    assert run.answer.limit_reached == "sub_calls_max"
    assert reached(events) == [("sub_calls_max", 3, 3)]
    assert "All permitted sub-model calls" in stack.gateway.prompts()[-1]
    assert "0\n1\n2" in stack.gateway.prompts()[-1]


async def test_no_sub_calls_is_a_limit_that_can_be_asked_for(stack: Stack) -> None:
    run, _ = await stack.ask(cell("llm_query('a')"), "None.", sub_calls_max=0)

    assert (run.answer.limit_reached, run.sub_calls) == ("sub_calls_max", 0)


async def test_code_that_answers_at_a_limit_gives_a_partial_answer(stack: Stack) -> None:
    """Careful code catches the limit and gives what it has."""
    code = "try:\n    llm_query('a')\nexcept RuntimeError:\n    FINAL('half')"

    run, _ = await stack.ask(cell(code), sub_calls_max=0)

    assert run.state == Run.STATE_PARTIAL
    assert run.answer == Answer(
        text="half", source=Answer.SOURCE_CELL, limit_reached="sub_calls_max"
    )
    assert len(stack.gateway.requests) == 1


@pytest.mark.parametrize("limit", ["tokens_max", "cost_usd_nanos_max"])
async def test_a_limit_that_the_gateway_holds_in_a_sub_call_ends_the_run(
    stack: Stack, limit: str
) -> None:
    stack.sandbox.answer = lambda _: LimitError(limit)

    run, events = await stack.ask(cell("llm_query('a')"), "So far: 1.")

    assert (run.state, run.answer.limit_reached) == (Run.STATE_PARTIAL, limit)
    assert [name for name, _, _ in reached(events)] == [limit]
    assert run.answer.source == Answer.SOURCE_FORCED


@pytest.mark.parametrize("limit", ["tokens_max", "cost_usd_nanos_max"])
async def test_a_limit_that_the_gateway_holds_at_the_root_ends_the_run(
    stack: Stack, limit: str
) -> None:
    run, _ = await stack.ask(cell("x = 1"), LimitError(limit), "So far: 1.")

    assert (run.state, run.answer.limit_reached, run.answer.text) == (
        Run.STATE_PARTIAL,
        limit,
        "So far: 1.",
    )


async def test_tokens_for_a_last_answer_are_kept_from_the_work(stack: Stack) -> None:
    """Without a reserve the run would end with nothing to show for its money."""
    per_call = INPUT_TOKENS + OUTPUT_TOKENS
    run, events = await stack.ask(cell("x = 1"), cell("x = 2"), "Two.", tokens_max=4 * per_call)

    work = {token.tokens_max for token in stack.gateway.tokens[:2]}
    assert work == {2 * per_call}
    assert stack.gateway.tokens[-1].tokens_max == 4 * per_call
    assert [token.tokens_spent for token in stack.gateway.tokens] == [0, per_call, 2 * per_call]
    assert run.answer.limit_reached == "tokens_max"
    assert reached(events) == [("tokens_max", 4 * per_call, 2 * per_call)]


async def test_money_for_a_last_answer_is_kept_from_the_work(stack: Stack) -> None:
    run, events = await stack.ask(
        cell("x = 1"), cell("x = 2"), "Two.", cost_usd_nanos_max=2 * COST_NANOS
    )

    allowed = [token.cost_usd_nanos_max for token in stack.gateway.tokens]
    assert allowed == [1_800, 1_800, 2_000]
    assert run.answer.limit_reached == "cost_usd_nanos_max"
    assert reached(events) == [("cost_usd_nanos_max", 2_000, 2_000)]


async def test_the_root_and_the_sub_calls_have_different_permissions(stack: Stack) -> None:
    await stack.ask(cell("FINAL(1)"))

    assert [token.tiers for token in stack.gateway.tokens] == [("root",)]


async def test_a_cell_is_stopped_when_the_time_is_up(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cell would never end by itself."""
    monkeypatch.setattr("orchestrator.runs.budget._TIME_RESERVE_SHARE", 0.75)
    for time_s in (6, 24):  # on a slow machine no cell begins within the first
        run, events = await stack.ask(
            cell("print('so far 3')\nhang()"), "Three so far.", time_max=Duration(seconds=time_s)
        )
        if run.answer.text == "Three so far.":
            break

    assert (run.state, run.answer.text) == (Run.STATE_PARTIAL, "Three so far.")
    assert run.answer.limit_reached == "time_max"
    finished = next(e.cell_finished for e in events if e.HasField("cell_finished"))
    assert (finished.ending, finished.output_shown) == ("INTERRUPTED", "so far 3\n")


async def test_a_model_that_never_answers_is_given_up_when_the_time_is_up(stack: Stack) -> None:
    limit = Duration()
    limit.FromMilliseconds(300)
    stack.gateway.hold.clear()

    run, events = await stack.ask("late", time_max=limit)

    assert run.state == Run.STATE_FAILED
    assert ReceivedError(run.error).reason == ErrorReason.ERROR_REASON_RUN_NO_ANSWER
    assert [name for name, _, _ in reached(events)] == ["time_max"]


async def test_the_last_request_of_a_long_conversation_is_cut_to_what_is_left(
    stack: Stack,
) -> None:
    """The gateway reserves the worst case: a request too long for the reserve would be refused."""
    replies = [cell(f"print('{n}' * 9000)") for n in range(9)]
    await stack.ask(*replies, "Sum.", turns_max=9)

    *_, before, last = [sum(len(m.text) for m in r.prompt.messages) for r in stack.gateway.requests]
    assert before > stack.config.last_request_bytes
    assert last <= stack.config.last_request_bytes + 1_000


async def test_a_dear_model_gets_a_shorter_last_request(stack: Stack) -> None:
    """At a dollar for a million tokens, what is left of the money buys so many bytes."""
    stack.gateway.models[0] = gateway_pb.Model(
        name="models/large",
        tiers=["root"],
        input_usd_nanos_per_million_tokens=1_000_000_000,
        output_usd_nanos_per_million_tokens=1_000_000_000,
    )
    replies = [cell(f"print('{n}' * 9000)") for n in range(5)]

    await stack.ask(*replies, "Sum.", turns_max=5, cost_usd_nanos_max=15_000_000)

    last = stack.gateway.requests[-1].prompt
    size = sum(len(m.text.encode()) for m in last.messages)
    assert size + stack.config.last_answer_tokens <= 15_000


async def test_a_gateway_that_forgot_what_a_cell_spent_cannot_make_it_cross_the_cap(
    stack: Stack,
) -> None:
    """A cell's token was made before its calls; a gateway that restarts knows nothing else."""
    calls = 20  # of INPUT_TOKENS + OUTPUT_TOKENS each, which the fake gateway does not limit
    cap = calls * (INPUT_TOKENS + OUTPUT_TOKENS)

    run, events = await stack.ask(
        cell("while True:\n    llm_query('a')\n    pause()"), "Enough.", tokens_max=cap
    )

    assert (run.state, run.answer.text) == (Run.STATE_PARTIAL, "Enough.")
    assert run.answer.limit_reached == "tokens_max"
    assert run.usage.input_tokens + run.usage.output_tokens <= cap
    assert len(reached(events)) == 1
