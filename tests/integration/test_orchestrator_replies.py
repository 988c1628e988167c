"""What replies of all kinds come to, over real gRPC: answers, cells, and what the model is told of
those that are of no use.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fathom.gateway.v1.generation_pb2 import Generation
from fathom.orchestrator.v1.run_pb2 import Answer, Run

from tests.support.fake_gateway import (
    generation,
)
from tests.support.orchestrator import Stack, orchestrator
from tests.support.run_scripts import cell, endings, notices


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(tmp_path) as running:
        yield running


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


async def test_a_variable_is_still_known_after_a_cell_that_was_undone(stack: Stack) -> None:
    """Else its bare name would be the answer, in place of its value."""
    run, _ = await stack.ask(cell("total = 'forty-two'"), cell("time_out()"), "FINAL(total)")

    assert run.answer.text == "forty-two"


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
