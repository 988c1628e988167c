"""Requests checked field by field, and answers put on the wire."""

from __future__ import annotations

from typing import Any

import pytest
from fathom.gateway.v1 import gateway_service_pb2 as service_pb2
from fathom.gateway.v1 import generation_pb2 as pb2

from common.errors import InvalidFieldError, LimitAboveCeilingError
from llm_gateway.answers import Answer, FinishReason, Spend, Tokens
from llm_gateway.prompts import Message, Role
from llm_gateway.wire import generation_to, models_page, prompt_from
from tests.support.gateway import catalog, completion, deployment, generate

SYSTEM, USER = pb2.Message.ROLE_SYSTEM, pb2.Message.ROLE_USER


def violations(request: service_pb2.GenerateRequest) -> set[str]:
    with pytest.raises(InvalidFieldError) as caught:
        prompt_from(request)
    return set(caught.value.violations)


def test_a_prompt_is_taken_with_all_it_says() -> None:
    request = generate(output_tokens_max=5, temperature=0, stop=["END"], seed=0)
    request.prompt.messages.insert(0, pb2.Message(role=SYSTEM, text="be brief"))

    prompt = prompt_from(request)

    assert prompt.messages == (Message(Role.SYSTEM, "be brief"), Message(Role.USER, "hello"))
    assert (prompt.output_tokens_max, prompt.temperature, prompt.seed) == (5, 0.0, 0)
    assert prompt.stop == ("END",)


def test_what_is_not_said_stays_unsaid() -> None:
    """Zero is a real temperature and a real seed."""
    prompt = prompt_from(generate())

    assert (prompt.output_tokens_max, prompt.temperature, prompt.seed) == (None, None, None)


def test_a_request_without_a_prompt_is_refused() -> None:
    assert violations(service_pb2.GenerateRequest()) == {"prompt"}


def test_every_bad_field_is_named_at_once() -> None:
    request = service_pb2.GenerateRequest(prompt=pb2.Prompt(output_tokens_max=0))

    assert violations(request) == {"prompt.messages", "prompt.output_tokens_max"}


@pytest.mark.parametrize("role", [pb2.Message.ROLE_UNSPECIFIED, 99])
def test_a_message_needs_a_role_and_a_text(role: Any) -> None:
    request = generate()
    request.prompt.messages.add(role=role, text="")

    assert violations(request) == {"prompt.messages[1].role", "prompt.messages[1].text"}


GOOD: list[dict[str, Any]] = [
    {"output_tokens_max": 1},
    {"temperature": 0},
    {"temperature": 2},
    {"stop": ["a"] * 4},
    {"stop": ["a" * 1_000]},
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"output_tokens_max": 0}, "prompt.output_tokens_max"),
    ({"temperature": -0.001}, "prompt.temperature"),
    ({"temperature": 2.001}, "prompt.temperature"),
    ({"temperature": float("nan")}, "prompt.temperature"),
    ({"stop": ["a"] * 5}, "prompt.stop"),
    ({"stop": ["a", ""]}, "prompt.stop[1]"),
    ({"stop": ["a", "a" * 1_001]}, "prompt.stop[1]"),
]


@pytest.mark.parametrize("fields", GOOD)
def test_a_limit_itself_is_accepted(fields: dict[str, Any]) -> None:
    prompt_from(generate(**fields))


@pytest.mark.parametrize(("fields", "named"), BAD)
def test_a_value_beyond_its_limit_is_named(fields: dict[str, Any], named: str) -> None:
    assert violations(generate(**fields)) == {named}


def test_a_prompt_has_at_most_ten_thousand_messages() -> None:
    """Found before any of them is looked at: that took seconds for millions, for every caller."""
    request = generate()
    request.prompt.messages.extend([pb2.Message(role=USER, text="a")] * 9_999)
    assert len(prompt_from(request).messages) == 10_000

    request.prompt.messages.add()
    with pytest.raises(LimitAboveCeilingError) as caught:
        prompt_from(request)
    assert caught.value.metadata["field"] == "prompt.messages"


def test_a_request_id_has_at_most_256_characters() -> None:
    request = generate()
    request.call.request_id = "é" * 256
    prompt_from(request)

    request.call.request_id += "x"
    assert violations(request) == {"call.request_id"}


@pytest.mark.parametrize("field", ["turn", "batch_index"])
def test_numbers_of_the_call_are_not_negative(field: str) -> None:
    request = generate()
    setattr(request.call, field, -1)

    assert violations(request) == {f"call.{field}"}


def test_a_schema_is_taken_without_its_white_space() -> None:
    """Two forms of one schema are one question; the order of keys is the one models answer in."""
    request = generate(
        response_schema_json='{ "type": "object",\n "properties": {"b": {}, "a": {}}}'
    )

    schema = prompt_from(request).response_schema

    assert schema == '{"type":"object","properties":{"b":{},"a":{}}}'


def nested(levels: int) -> str:
    return '{"not":' * (levels - 1) + "{}" + "}" * (levels - 1)


@pytest.mark.parametrize(
    "schema", ["{", "[]", "7", '"text"', nested(65), '{"a":"' + "x" * (65_536 - 7) + '"}']
)
def test_what_cannot_be_sent_as_a_schema_is_refused(schema: str) -> None:
    """A provider would refuse it too, after the call has waited and been counted."""
    assert violations(generate(response_schema_json=schema)) == {"prompt.response_schema_json"}


@pytest.mark.parametrize("schema", ["{}", nested(64), '{"a":"' + "x" * (65_536 - 8) + '"}'])
def test_a_schema_within_its_bounds_is_taken(schema: str) -> None:
    assert prompt_from(generate(response_schema_json=schema)).response_schema == schema


def test_an_answer_is_put_on_the_wire_whole() -> None:
    answer = Answer(
        completion=completion("yes", reasoning="hm", finish_reason=FinishReason.LENGTH),
        model="small",
        spend=Spend(
            tokens=Tokens(input=9, output=8, cached_input=7, reasoning=6),
            cost_usd_nanos=5,
            is_estimated=True,
        ),
        attempts=2,
        elapsed_s=1.25,
    )

    generation = generation_to(answer, "sub")

    expected = pb2.Generation(
        text="yes",
        reasoning="hm",
        finish_reason=pb2.Generation.FINISH_REASON_LENGTH,
        usage=pb2.Usage(
            input_tokens=9,
            output_tokens=8,
            cached_input_tokens=7,
            reasoning_tokens=6,
            cost_usd_nanos=5,
            calls=1,
            estimated=True,
        ),
        model="models/small",
        tier="sub",
        attempts=2,
    )
    expected.elapsed.FromMilliseconds(1250)
    assert generation == expected


@pytest.mark.parametrize("reason", FinishReason)
def test_every_finish_reason_has_a_wire_form(reason: FinishReason) -> None:
    answer = Answer(
        completion=completion(finish_reason=reason),
        model="small",
        spend=Spend(),
        attempts=1,
        elapsed_s=0.0,
    )

    name = pb2.Generation.FinishReason.Name(generation_to(answer, "sub").finish_reason)
    assert name == f"FINISH_REASON_{reason.name}"


@pytest.mark.parametrize(
    ("page_size", "sizes"), [(0, [50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 1]), (501, [500, 1])]
)
def test_pages_have_their_default_and_their_largest_size(page_size: int, sizes: list[int]) -> None:
    models = [deployment(f"m{index:03}") for index in range(501)]
    offered, token, seen = catalog(*models), "", list[int]()
    while not seen or token:
        request = service_pb2.ListModelsRequest(page_size=page_size, page_token=token)
        page = models_page(models, offered, request)
        seen.append(len(page.models))
        token = page.next_page_token

    assert seen == sizes


@pytest.mark.parametrize("page_token", ["!", "a", "_w=="])
def test_a_page_token_of_somebody_else_is_refused(page_token: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        models_page([], catalog(), service_pb2.ListModelsRequest(page_token=page_token))

    assert set(caught.value.violations) == {"page_token"}
