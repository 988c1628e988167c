"""Typed answers and citations over real gRPC: what fits a schema, what goes back to the model, and
which places of the context are verified."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Answer, Citation, Limits, Run, RunSpec

from common.errors import received
from tests.support.fake_gateway import Script
from tests.support.orchestrator import TIMEOUT_S, Stack, chunk, document, orchestrator, start

EXACT, NORMALISED = Citation.CHECK_EXACT, Citation.CHECK_NORMALISED
NOT_FOUND = Citation.CHECK_NOT_FOUND
PRICES = {
    "type": "object",
    "properties": {
        "items": {"type": "array", "items": {"properties": {"price": {"type": "number"}}}}
    },
    "required": ["items"],
}


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(tmp_path) as running:
        yield running


def cell(code: str) -> str:
    return f"I look.\n```repl\n{code}\n```"


async def create(
    stack: Stack, schema: Any, *, context: Context | None = None, **limits: Any
) -> Run:
    """Create a run with a schema for its answer, given as a value or as JSON text."""
    text = schema if isinstance(schema, str) else json.dumps(schema)
    context = context or await stack.upload()
    spec = RunSpec(
        question="What?",
        context=context.name,
        answer_schema_json=text,
        limits=Limits(**limits),
    )
    response = await stack.runs.CreateRun(pb.CreateRunRequest(spec=spec), timeout=TIMEOUT_S)
    return response.run


async def typed(
    stack: Stack, schema: Any, *replies: Script, **limits: Any
) -> tuple[Run, list[RunEvent]]:
    """Run a script of replies with a schema to its end."""
    stack.gateway.replies = list(replies)
    run = await create(stack, schema, **limits)
    events = await stack.watch(run)
    return events[-1].run_changed, events


@pytest.mark.parametrize(
    "reply",
    [
        cell("FINAL({'items': [{'price': 12.5}]})"),
        cell('FINAL(\'{"items": [{"price": 12.5}]}\')'),
        cell("x = {'items': [{'price': 12.5}]}\nFINAL_VAR('x')"),
        'FINAL({"items": [{"price": 12.5}]})',
        'FINAL(\n```json\n{"items": [{"price": 12.5}]}\n```\n)',
    ],
)
async def test_an_answer_that_fits_is_json(stack: Stack, reply: str) -> None:
    """However the model gives it: a caller parses it without looking."""
    run, _ = await typed(stack, PRICES, reply)

    assert run.state == Run.STATE_ANSWERED
    assert json.loads(run.answer.text) == {"items": [{"price": 12.5}]}
    assert (run.answer.is_json, list(run.answer.schema_errors)) == (True, [])


async def test_the_model_is_told_the_schema_and_what_does_not_fit(stack: Stack) -> None:
    run, events = await typed(
        stack,
        PRICES,
        cell("FINAL({'items': [{'price': 1}, {'price': '12 EUR'}]})"),
        cell("FINAL({'items': [{'price': 1}, {'price': 12}]})"),
    )

    asked = stack.gateway.prompts()
    assert json.dumps(PRICES) in asked[0]
    assert '- $.items[1].price: must be a number, is "12 EUR"' in asked[1]
    assert [e.notice.kind for e in events if e.HasField("notice")] == ["FINAL_REJECTED"]
    assert (run.state, run.turns) == (Run.STATE_ANSWERED, 2)


async def test_at_a_limit_json_is_asked_for_once_more(stack: Stack) -> None:
    """The last request states the schema, and holds the model to it where that can be done."""
    reply = 'Here it is:\n```json\n{"items": []}\n```'
    run, _ = await typed(stack, PRICES, cell("FINAL('none')"), reply, turns_max=1)

    last = stack.gateway.requests[-1].prompt
    assert last.response_schema_json == json.dumps(PRICES)
    assert json.dumps(PRICES) in last.messages[-1].text
    assert not stack.gateway.requests[0].prompt.response_schema_json
    assert (run.state, run.answer.text) == (Run.STATE_PARTIAL, '{"items": []}')
    assert (run.answer.source, run.answer.is_json) == (Answer.SOURCE_FORCED, True)
    assert (run.answer.limit_reached, list(run.answer.schema_errors)) == ("turns_max", [])


async def test_what_still_does_not_fit_is_partial_and_says_so(stack: Stack) -> None:
    """Half an answer is worth something to a caller that knows that it is one."""
    run, _ = await typed(stack, PRICES, cell("x = 1"), '{"items": 3}', turns_max=1)

    assert (run.state, run.answer.text) == (Run.STATE_PARTIAL, '{"items": 3}')
    assert list(run.answer.schema_errors) == ["$.items: must be an array, is 3"]
    assert not run.answer.is_json


async def test_an_answer_that_was_refused_is_better_than_none(stack: Stack) -> None:
    run, _ = await typed(stack, PRICES, cell("print('seen')\nFINAL({'items': 3})"), "", turns_max=1)

    assert (run.state, run.answer.source) == (Run.STATE_PARTIAL, Answer.SOURCE_SALVAGED)
    assert run.answer.text == '{"items": 3}'
    assert list(run.answer.schema_errors) == ["$.items: must be an array, is 3"]


def nested(levels: int) -> str:
    return '{"not":' * levels + "{}" + "}" * levels


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ("{", "$: is no JSON"),
        ("[]", "$: must be an object, true or false; is []"),
        ('"x"', '$: must be an object, true or false; is "x"'),
        ({"properties": {"a": {"type": "text"}}}, "$.properties.a.type: "),
        ({"items": {"pattern": "(?=a)"}}, "$.items.pattern: must be a regular expression"),
        ({"items": {"pattern": "(a{1000}){1000}"}}, "$.items.pattern: must be a regular"),
        ({"items": {"$ref": "https://example.org"}}, "$.items['$ref']: must be within"),
        ({"$ref": "#/$defs/none"}, "Pointer '/$defs/none' does not exist"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "$['$schema']: must be"),
        (nested(64), "$: is nested deeper than 64 levels"),
        ({"title": "x" * (64 << 10)}, "at most 65536 are allowed"),
    ],
)
async def test_a_schema_that_cannot_be_taken_is_refused_with_its_place(
    stack: Stack, schema: Any, problem: str
) -> None:
    """Before anything is spent; the error names the field and the place in it."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await create(stack, schema)

    error = received(caught.value)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason_name == "ERROR_REASON_INVALID_FIELD"
    assert error.metadata["field"] == "spec.answer_schema_json"
    assert problem in error.message


@pytest.mark.parametrize("schema", [nested(63), {"title": "x" * (60 << 10)}, True])
async def test_a_schema_within_the_bounds_is_taken(stack: Stack, schema: Any) -> None:
    stack.gateway.replies = [cell("FINAL(1)")]
    text = schema if isinstance(schema, str) else json.dumps(schema)

    assert (await create(stack, text)).spec.answer_schema_json == text


async def test_a_schema_that_takes_for_ever_stalls_nobody(stack: Stack) -> None:
    """The process that checks it is ended; others are served meanwhile."""
    levels = {
        f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}, {"$ref": f"#/$defs/a{n + 1}"}]}
        for n in range(40)
    }
    endless = {"$ref": "#/$defs/a0", "$defs": levels | {"a40": {"type": "string"}}}

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await create(stack, endless)

    assert "takes too long" in received(caught.value).message
    run, _ = await typed(stack, PRICES, cell("FINAL({'items': []})"))
    assert run.state == Run.STATE_ANSWERED


async def documents(stack: Stack, **texts: str) -> Context:
    """Store documents by name."""
    messages, offset = [start(Context.KIND_DOCUMENTS)], 0
    for name, text in texts.items():
        messages += [document(name), chunk(text.encode(), offset)]
        offset += len(text.encode())
    return await stack.upload_messages(*messages)


async def asked(stack: Stack, context: Context, reply: str) -> Answer:
    stack.gateway.replies = [reply]
    run = await stack.create(context=context)
    return (await stack.watch(run))[-1].run_changed.answer


def seen(answer: Answer) -> list[tuple[str, int, int, str, bool, int]]:
    return [(c.document, c.start, c.end, c.quote, c.verified, c.check) for c in answer.citations]


async def test_what_an_answer_quotes_is_looked_up_in_the_context(stack: Stack) -> None:
    """A quotation that a model made up looks like any other; here it does not."""
    context = await documents(stack, a="Über alles\nbezahlt am Montag.", b="Nothing was paid.")
    answer = await asked(
        stack,
        context,
        "FINAL(It says “alles bezahlt am Montag”, “Nothing was paid” [cite:b:0-16] and "
        "“nothing at all was paid”; see [cite:a:0-4], [cite:a:5-500] and [cite:c:0-4].)",
    )

    assert seen(answer) == [
        ("a", 5, 28, "alles bezahlt am Montag", True, NORMALISED),
        ("b", 0, 16, "Nothing was paid", True, EXACT),
        ("", 0, 0, "nothing at all was paid", False, NOT_FOUND),
        ("a", 0, 4, "Über", True, EXACT),
        ("a", 5, 500, "", False, NOT_FOUND),
        ("c", 0, 4, "", False, NOT_FOUND),
    ]


async def test_a_guest_that_lies_about_a_quote_is_not_believed(stack: Stack) -> None:
    """The guest runs what a model wrote over what anybody uploaded."""
    lies = (
        "cite('a', 0, 4, 'Paid')\ncite('a', 0, 4, 'Lies')\ncite('a', 9, 4, 'Paid')\n"
        "cite('a', -4, 4, 'Paid')\ncite('b', 0, 4, 'Paid')\ncite('a', 0, 1 << 62, 'Paid')\n"
        "cite('a', 0, 0, '')\ncite('a', 5, 5, 'in full')\n"
    )
    context = await documents(stack, a="Paid in full.")
    answer = await asked(stack, context, cell(f"{lies}FINAL('It was paid.')"))

    assert seen(answer) == [
        ("a", 0, 4, "Paid", True, EXACT),
        ("a", 0, 4, "Lies", False, NOT_FOUND),
        ("a", 9, 4, "Paid", False, NOT_FOUND),
        ("a", -4, 4, "Paid", False, NOT_FOUND),
        ("b", 0, 4, "Paid", False, NOT_FOUND),
        ("a", 0, 1 << 62, "Paid", False, NOT_FOUND),
        ("a", 0, 0, "", False, NOT_FOUND),
        ("a", 5, 12, "in full", True, EXACT),
    ]


async def test_ten_thousand_citations_are_cut_to_what_an_answer_may_have(stack: Stack) -> None:
    context = await documents(stack, a="x" * 20_000)
    code = "for n in range(10_000):\n    cite('a', n, n + 20, 'x' * 20)\nFINAL('Done.')"
    answer = await asked(stack, context, cell(code))

    assert len(answer.citations) == 500
    assert all(citation.verified for citation in answer.citations)


async def test_an_answer_without_quotations_has_no_citations(stack: Stack) -> None:
    answer = await asked(stack, await stack.upload(), "FINAL(It was paid.)")

    assert seen(answer) == []


async def test_evidence_in_a_typed_answer_is_looked_up(stack: Stack) -> None:
    context = await documents(stack, a="Paid in full.")
    stack.gateway.replies = [
        cell(
            "FINAL({'paid': True, 'evidence': [{'document': 'a', 'start': 0, 'end': 4, "
            "'quote': 'Paid'}, {'document': 'a', 'quote': 'in part'}]})"
        )
    ]
    run = await create(stack, {"type": "object"}, context=context)
    answer = (await stack.watch(run))[-1].run_changed.answer

    assert seen(answer) == [
        ("a", 0, 4, "Paid", True, EXACT),
        ("a", 0, 0, "in part", False, NOT_FOUND),
    ]
