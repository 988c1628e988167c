"""Long conversations over real gRPC: they stay within the root model's window, and the run ends as
it would in a larger one."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1 import gateway_service_pb2 as gateway_pb
from fathom.gateway.v1.generation_pb2 import Generation
from fathom.orchestrator.v1.run_event_pb2 import HistoryCompacted, RunEvent
from fathom.orchestrator.v1.run_pb2 import Answer, Run

from common.errors import ReceivedError
from tests.support.eventually import eventually
from tests.support.fake_gateway import (
    COST_NANOS,
    INPUT_TOKENS,
    FakeGateway,
    ScriptedError,
    prompt_bytes,
)
from tests.support.fake_sandbox import FakeSandbox
from tests.support.orchestrator import Stack, orchestrator

WINDOW_TOKENS = 8_000
TURNS = 60
TOO_LONG = ScriptedError(
    grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_CONTEXT_WINDOW_EXCEEDED
)


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    gateway = FakeGateway()
    gateway.models[0].context_tokens_max = WINDOW_TOKENS
    async with orchestrator(tmp_path, gateway=gateway) as running:
        yield running


def cell(code: str) -> str:
    return f"```repl\n{code}\n```"


def compactions(events: list[RunEvent]) -> list[HistoryCompacted]:
    return [event.history_compacted for event in events if event.HasField("history_compacted")]


class Investigator:
    """A model with a window of 8,000 tokens, which adds up what it finds, a number a turn."""

    def __init__(
        self, *, bytes_max: int = WINDOW_TOKENS * 3, note_failure: Exception | None = None
    ) -> None:
        self.bytes_max = bytes_max
        self.note_failure = note_failure
        self.turn = 0
        self.notes = 0
        self.longest = 0

    def __call__(self, request: gateway_pb.GenerateRequest) -> str | Generation:
        if request.prompt.tier == "sub":
            self.notes += 1
            if self.note_failure is not None:
                raise self.note_failure
            return f"the numbers so far are in `numbers` (notes {self.notes})"
        size = prompt_bytes(request.prompt)
        if size > self.bytes_max:
            raise TOO_LONG
        self.longest = max(self.longest, size)
        self.turn += 1
        if self.turn == TURNS:
            return cell("FINAL(sum(numbers))")
        begin = "numbers = []\n" if self.turn == 1 else ""
        return cell(f"{begin}numbers.append({self.turn})\nprint({self.turn}, 'n' * 400)")


async def test_sixty_turns_fit_a_small_window(stack: Stack) -> None:
    """The answer needs what the first turns found, long after they have left the conversation."""
    model = Investigator()

    run, events = await stack.ask(model, turns_max=TURNS)

    assert run.state == Run.STATE_ANSWERED
    assert run.answer.text == str(sum(range(1, TURNS)))
    made = compactions(events)
    assert len(made) == model.notes >= 2
    assert not any(each.refused or each.mechanical for each in made)
    assert all(each.tokens_after < each.tokens_before for each in made)
    assert model.longest <= WINDOW_TOKENS * 3 * 0.75


async def test_what_notes_cost_is_counted(stack: Stack) -> None:
    """Usage of a run is exact, whoever was asked."""
    model = Investigator()

    run, events = await stack.ask(model, turns_max=TURNS)

    calls = TURNS + model.notes
    assert run.usage.calls == calls
    assert run.usage.cost_usd_nanos == calls * COST_NANOS
    made = compactions(events)
    assert [each.usage.input_tokens for each in made] == [INPUT_TOKENS] * model.notes
    asked = [r for r in stack.gateway.requests if r.prompt.tier == "sub"]
    assert len({r.call.request_id for r in asked}) == model.notes
    assert all("/compact/" in r.call.request_id for r in asked)


async def test_the_beginning_stays_and_the_variables_are_listed(stack: Stack) -> None:
    """A prefix cache hits on what stays; a model that forgets its variables computes them anew."""
    await stack.ask(Investigator(), turns_max=TURNS)

    asked = [r.prompt.messages for r in stack.gateway.requests if r.prompt.tier == "root"]
    assert all(list(messages[:2]) == list(asked[0][:2]) for messages in asked)
    noted = [m[3].text for m in asked if len(m) > 3 and "left out here" in m[2].text]
    assert "the numbers so far are in `numbers`" in noted[-1]
    assert "- numbers: list" in noted[-1]
    shown = re.findall(r"turn (\d+) of", asked[-1][-1].text)
    assert shown == [str(TURNS - 1)]


async def test_the_log_keeps_every_turn(stack: Stack) -> None:
    _, events = await stack.ask(Investigator(), turns_max=TURNS)

    ended = [event.turn for event in events if event.HasField("cell_finished")]
    assert ended == list(range(1, TURNS + 1))


async def test_a_sub_tier_that_is_down_does_not_end_the_run(stack: Stack) -> None:
    away = ScriptedError(
        grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_PROVIDER_BROKEN_REPLY
    )

    run, events = await stack.ask(Investigator(note_failure=away), turns_max=TURNS)

    assert run.answer.text == str(sum(range(1, TURNS)))
    assert all(each.mechanical for each in compactions(events))


async def test_a_refused_conversation_is_compacted_and_asked_again(stack: Stack) -> None:
    """The provider counts otherwise, or its window is smaller than the catalog says."""
    run, events = await stack.ask(Investigator(bytes_max=14_000), turns_max=TURNS)

    assert (run.state, run.answer.text) == (Run.STATE_ANSWERED, str(sum(range(1, TURNS))))
    assert any(each.refused for each in compactions(events))
    ids = [r.call.request_id for r in stack.gateway.requests if r.prompt.tier == "root"]
    assert len(set(ids)) == len(ids)


async def test_turns_that_are_each_larger_than_the_window_end_no_run(stack: Stack) -> None:
    """A reply of 200 kB in a window of 24 kB: nothing of it can be kept whole."""
    long = [
        cell(f"x = 40\n# {'long ' * 40_000}\nprint(x)"),
        "words " * 40_000 + "\n\n" + cell("x += 1\nprint('y' * 100_000)"),
        cell("FINAL(x + 1)"),
    ]

    def model(request: gateway_pb.GenerateRequest) -> str:
        if request.prompt.tier == "sub":
            return "`x` is being counted up"
        if prompt_bytes(request.prompt) > WINDOW_TOKENS * 3:
            raise TOO_LONG
        return long.pop(0)

    run, events = await stack.ask(model)

    assert (run.state, run.answer.text) == (Run.STATE_ANSWERED, "42")
    assert [each.turns for each in compactions(events)] == [1, 2]


async def test_what_does_not_fit_even_so_ends_with_a_last_answer(stack: Stack) -> None:
    """What was found is given, and the limit is named."""

    def model(request: gateway_pb.GenerateRequest) -> str:
        if "final answer now" in request.prompt.messages[-1].text:
            return "About 12."
        if len(stack.gateway.requests) > 2:
            raise TOO_LONG
        return cell("print('found 12')")

    run, events = await stack.ask(model)

    assert run.state == Run.STATE_PARTIAL
    assert run.answer == Answer(
        text="About 12.", source=Answer.SOURCE_FORCED, limit_reached="context_tokens_max"
    )
    reached = [event.limit_reached for event in events if event.HasField("limit_reached")]
    assert [(each.limit, each.value) for each in reached] == [("context_tokens_max", WINDOW_TOKENS)]


async def test_a_conversation_that_never_fits_has_no_answer(stack: Stack) -> None:
    run, _ = await stack.ask(TOO_LONG)

    error = ReceivedError(run.error)
    assert run.state == Run.STATE_FAILED
    assert error.reason == ErrorReason.ERROR_REASON_CONTEXT_WINDOW_EXCEEDED


async def test_outputs_are_shown_as_the_window_allows(stack: Stack) -> None:
    """One print must not fill a small window by itself."""
    _, events = await stack.ask(cell("print('x' * 9000)"), "FINAL(seen)")

    (finished,) = [event.cell_finished for event in events if event.HasField("cell_finished")]
    assert finished.output_characters == 9_001
    assert 3_000 <= len(finished.output_shown) < 3_300


async def test_a_run_that_goes_on_elsewhere_has_the_same_conversation(tmp_path: Path) -> None:
    """What was summarised once is not summarised again, whatever window is offered by then."""
    gateway, sandbox, model = FakeGateway(), FakeSandbox(tmp_path / "objects"), Investigator()
    gateway.models[0].context_tokens_max = WINDOW_TOKENS

    def until_turn_40(request: gateway_pb.GenerateRequest) -> str | Generation:
        if model.turn == 39:
            gateway.hold.clear()
        return model(request)

    gateway.replies = [until_turn_40]
    async with orchestrator(tmp_path, gateway=gateway, sandbox=sandbox) as first:
        run = await first.create(turns_max=TURNS)
        await eventually(lambda: not gateway.hold.is_set())
        await eventually(lambda: len(gateway.requests) > 40 + model.notes)
    notes = model.notes
    sent = {r.call.request_id: r.prompt for r in gateway.requests}
    gateway.replies, gateway.models[0].context_tokens_max = [model], WINDOW_TOKENS // 2 * 3
    gateway.hold.set()
    async with orchestrator(tmp_path, gateway=gateway, sandbox=sandbox) as second:
        events = await second.watch(run)

    assert events[-1].run_changed.answer.text == str(sum(range(1, TURNS)))
    assert notes >= 1
    assert len(compactions(events)) == model.notes
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    again = [r for r in gateway.requests if r.call.request_id in sent]
    assert again
    assert all(r.prompt.messages == sent[r.call.request_id].messages for r in again)
