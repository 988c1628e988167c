"""`llm_query(..., schema=...)` from a real guest: values that fit, and what becomes of others."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from fathom.gateway.v1.generation_pb2 import Message
from fathom.sandbox.v1 import session_pb2
from google.protobuf.duration_pb2 import Duration

from tests.support.sandbox import Sandbox, guest, sandbox

pytestmark = pytest.mark.guest
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
IMPORTS = "import asyncio, json\nfrom concurrent import futures\n"
PRELUDE = f"SCHEMA = {SCHEMA!r}\n"


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path) as running:
        yield running


@pytest.fixture
async def session(box: Sandbox) -> str:
    return await box.create()


def answering(*answers: str) -> Callable[[Sequence[Message]], str]:
    """Answer a conversation with the first of the answers, a corrected one with the next."""
    return lambda messages: answers[min(len(messages) // 2, len(answers) - 1)]


async def test_an_answer_is_the_value_that_fits(box: Sandbox, session: str) -> None:
    box.gateway.answer = answering('Sure:\n```json\n{"age": 41}\n```')
    ran = await box.run(session, PRELUDE + "llm_query('How old?', schema=SCHEMA)['age'] + 1")

    assert ran.out == "42\n"
    [request] = box.gateway.requests
    assert request.prompt.messages[-1].text.startswith("How old?\n\n")
    assert request.prompt.messages[-1].text.endswith(json.dumps(SCHEMA))


async def test_an_answer_that_does_not_fit_is_asked_for_again(box: Sandbox, session: str) -> None:
    """Each time is a sub-call of its own, under an identity that is the same on a replay."""
    answers = iter(["untyped", '{"age": "41"}', '{"age": 41.5}', '{"age": 41}'])
    box.gateway.answer = lambda _: next(answers)
    cell = PRELUDE + "llm_query('a')\nprint(llm_query('How old?', schema=SCHEMA))"
    ran = await box.run(session, cell, call_prefix="r/1/1", turn=1)

    assert ran.out == "{'age': 41}\n"
    ids = [request.call.request_id for request in box.gateway.requests]
    assert ids == ["r/1/1/1", "r/1/1/2", "r/1/1/3", "r/1/1/4"]
    second = box.gateway.requests[2].prompt.messages
    assert second[1].text == '{"age": "41"}'
    assert second[2].text == (
        'That does not fit the schema:\n- $.age: must be a whole number, is "41"\n\n'
        "Answer again, with the corrected JSON alone."
    )
    assert len(box.gateway.requests[3].prompt.messages) == 3


async def test_three_answers_that_do_not_fit_are_an_error_with_a_type(
    box: Sandbox, session: str
) -> None:
    box.gateway.answer = answering("no JSON at all")
    cell = (
        "try:\n    llm_query('How old?', schema=SCHEMA)\n"
        "except SchemaMismatchError as error:\n"
        "    print(error.reason, error.errors, error.text, isinstance(error, LLMQueryError))"
    )
    ran = await box.run(session, PRELUDE + cell)

    assert ran.out.startswith("SCHEMA_MISMATCH ['$: is no JSON: ")
    assert ran.out.endswith(" no JSON at all True\n")
    assert len(box.gateway.requests) == 3


async def test_of_a_batch_only_what_does_not_fit_is_asked_again(box: Sandbox, session: str) -> None:
    def answer(messages: Sequence[Message]) -> str:
        first = messages[0].text.split("\n")[0]
        return {"good": '{"age": 1}', "late": '{"age": 2}' if len(messages) > 1 else "{}"}.get(
            first, "[]"
        )

    box.gateway.answer = answer
    cell = "r = llm_query_batched(['good', 'late', 'never'], schema=SCHEMA)\nr"
    ran = await box.run(session, PRELUDE + cell)

    assert ran.out == (
        "[{'age': 1}, {'age': 2}, <FailedQuery #2: SCHEMA_MISMATCH: the answer does not fit the "
        "schema: $: must be an object, is []>]\n"
    )
    assert len(box.gateway.requests) == 3 + 2 + 1


@pytest.mark.parametrize(
    "cell",
    [
        "await asyncio.gather(*[llm_query(p, schema=SCHEMA) for p in 'ab'])",
        "list(futures.ThreadPoolExecutor(4).map(lambda p: llm_query(p, schema=SCHEMA), 'ab'))",
        "[await llm_query('a', schema=SCHEMA), llm_query('b', schema=json.dumps(SCHEMA))]",
    ],
)
async def test_every_way_of_asking_takes_a_schema(box: Sandbox, session: str, cell: str) -> None:
    box.gateway.answer = answering("{}", '{"age": 3}')
    ran = await box.run(session, IMPORTS + PRELUDE + cell)

    assert (ran.ending, ran.out) == ("completed", "[{'age': 3}, {'age': 3}]\n")
    assert len(box.gateway.requests) == 4


async def test_repeats_count_against_the_limit_of_sub_calls(box: Sandbox) -> None:
    """A schema that no model meets cannot spend more than the run may."""
    box.gateway.answer = answering("{}")
    session = await box.create(limits=session_pb2.SessionLimits(sub_calls_max=2))
    cell = (
        "try:\n    llm_query('a', schema=SCHEMA)\n"
        "except LimitExceededError as error:\n    print(error.reason)"
    )
    ran = await box.run(session, PRELUDE + cell)

    assert ran.out == "RUN_LIMIT_EXCEEDED\n"
    assert len(box.gateway.requests) == 2
    assert ran.result.HasField("limit_reached")


async def test_a_wrong_schema_is_told_before_anything_is_spent(box: Sandbox, session: str) -> None:
    ran = await box.run(session, "llm_query('a', schema={'type': 'text'})")

    assert ran.ending == "raised"
    assert ran.result.error.message.startswith("schema: $.type must be one of string, number")
    assert not box.gateway.requests


async def test_a_hostile_schema_and_answer_harm_only_their_cell(box: Sandbox) -> None:
    """Both are checked within the guest, so its walls are around them."""
    session = await box.create()
    box.gateway.answer = answering("[" * 100_000)
    deep = "s = {}\nfor _ in range(100_000):\n    s = {'not': s}\nllm_query('a', schema=s)"
    loop = "llm_query('a', schema={'$ref': '#'})"
    slow = "llm_query('a', schema={'type': 'string', 'pattern': '^(a+)+$'})"

    assert (await box.run(session, deep)).ending == "raised"
    assert (await box.run(session, loop)).ending == "raised"
    assert (await box.run(session, "1 + 1")).out == "2\n"
    limits = session_pb2.SessionLimits(execute_time_max=Duration(seconds=1))
    session = await box.create(limits=limits)
    box.gateway.answer = answering('"' + "a" * 60 + '!"')
    assert (await box.run(session, slow)).ending in {"out_of_fuel", "timed_out"}
    assert (await box.run_in_time(session, "1 + 1")).out == "2\n"
