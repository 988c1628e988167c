"""The chat-completions format, both ways."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_gateway.answers import Delta, FinishReason, Tokens
from llm_gateway.chat_format import PARTS_MAX, StreamedReply, parse_reply, request_body
from llm_gateway.failures import FailureKind, ProviderError
from llm_gateway.prompts import Message, Role
from llm_gateway.sse import EVENT_BYTES_MAX
from tests.support.gateway import deployment, endpoint, prompt


def reply(**changes: Any) -> bytes:
    document = {
        "id": "r1",
        "model": "served",
        "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }
    return json.dumps(document | changes).encode()


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def piece(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"delta": delta, "finish_reason": finish_reason}]})


def test_a_request_names_everything_that_was_asked() -> None:
    asked = prompt(
        messages=(Message(Role.SYSTEM, "be brief"), Message(Role.USER, "héllo")),
        temperature=0.0,
        stop=("END",),
        seed=7,
    )

    body = json.loads(request_body(deployment(), asked, 99, stream=False))

    assert body == {
        "model": "small-id",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "héllo"},
        ],
        "max_tokens": 99,
        "temperature": 0.0,
        "stop": ["END"],
        "seed": 7,
    }


def test_a_request_has_nothing_that_was_not_asked() -> None:
    """Some models refuse parameters, even at their defaults."""
    body = json.loads(request_body(deployment(), prompt(), 99, stream=False))

    assert set(body) == {"model", "messages", "max_tokens"}


def test_a_schema_is_sent_to_deployments_that_take_one() -> None:
    """Others refuse the parameter, or ignore it."""
    asked = prompt(response_schema='{"type":"object"}')

    taken = json.loads(request_body(deployment(structured_output=True), asked, 9, stream=False))
    left_out = json.loads(request_body(deployment(), asked, 9, stream=False))

    assert taken["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": {"type": "object"}},
    }
    assert "response_format" not in left_out


def test_a_streamed_request_wants_its_usage() -> None:
    body = json.loads(request_body(deployment(), prompt(), 99, stream=True))

    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}


def test_a_deployment_renames_the_limit_and_omits_parameters() -> None:
    """Reasoning models take max_completion_tokens and no temperature."""
    reasoning = deployment(
        provider=endpoint(output_limit_field="max_completion_tokens"),
        omit_parameters=frozenset({"temperature"}),
    )

    body = json.loads(request_body(reasoning, prompt(temperature=1.0, seed=1), 99, stream=False))

    assert set(body) == {"model", "messages", "max_completion_tokens", "seed"}


def test_a_reply_is_read_whole() -> None:
    completion = parse_reply(reply())

    assert completion.text == "yes"
    assert completion.finish_reason is FinishReason.STOP
    assert completion.tokens == Tokens(input=5, output=2)
    assert (completion.response_id, completion.response_model) == ("r1", "served")


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stop", FinishReason.STOP),
        ("eos", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("content_filter", FinishReason.FILTERED),
    ],
)
def test_a_finish_reason_means(word: str, reason: FinishReason) -> None:
    choice = {"message": {"content": "yes"}, "finish_reason": word}

    assert parse_reply(reply(choices=[choice])).finish_reason is reason


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_reasoning_is_kept_apart_from_the_answer(key: str) -> None:
    choice = {"message": {"content": None, key: "hmm"}, "finish_reason": "length"}

    completion = parse_reply(reply(choices=[choice]))

    assert (completion.text, completion.reasoning) == ("", "hmm")


def test_a_refusal_is_a_filtered_answer() -> None:
    choice = {"message": {"content": None, "refusal": "I cannot"}, "finish_reason": "stop"}

    completion = parse_reply(reply(choices=[choice]))

    assert (completion.text, completion.finish_reason) == ("I cannot", FinishReason.FILTERED)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (None, None),
        ({}, None),
        ({"prompt_tokens": 5}, None),
        ({"prompt_tokens": -1, "completion_tokens": 2}, None),
        ({"prompt_tokens": 5, "completion_tokens": "2"}, None),
        ({"prompt_tokens": 10**30, "completion_tokens": 2}, None),
        ({"prompt_tokens": 2**31, "completion_tokens": 2}, None),
        ({"prompt_tokens": 2**31 - 1, "completion_tokens": 2}, Tokens(input=2**31 - 1, output=2)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, Tokens(input=0, output=0)),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Tokens(input=9, output=5, cached_input=4, reasoning=3),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 20},
            Tokens(input=9, output=11),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 99},
            },
            Tokens(input=9, output=5, cached_input=9),
        ),
    ],
)
def test_usage_is_read_or_missing(usage: Any, tokens: Tokens | None) -> None:
    """An explicit zero is a report; damage is no report; reasoning outside is output."""
    assert parse_reply(reply(usage=usage)).tokens == tokens


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "not_json"),
        (b"<html>", "not_json"),
        (b"[]", "not_json"),
        (b"\xff\xfe", "not_json"),
        (reply(choices=[]), "no_choices"),
        (reply(choices=None), "no_choices"),
        (reply(choices=[{"finish_reason": "stop"}]), "no_message"),
        (reply(choices=[{"message": {"content": "half"}}]), "no_finish_reason"),
    ],
)
def test_a_reply_outside_the_format_is_broken(body: bytes, problem: str) -> None:
    with pytest.raises(ProviderError) as caught:
        parse_reply(body)

    assert caught.value.kind is FailureKind.BROKEN_REPLY
    assert caught.value.problem == problem


def test_a_reply_of_more_values_than_memory_is_meant_for_is_broken() -> None:
    """Parsed, thirty megabytes of empty lists take a gigabyte and stop everybody for a second."""
    room = PARTS_MAX - reply(junk=[[]]).count(b",") - reply(junk=[[]]).count(b"[") - 4
    text = reply(junk=["JUNK"])
    assert parse_reply(text.replace(b'"JUNK"', b"0," * room + b"0")).text == "yes"

    with pytest.raises(ProviderError) as caught:
        parse_reply(text.replace(b'"JUNK"', b"0," * (room + 4) + b"0"))
    assert (caught.value.kind, caught.value.problem) == (FailureKind.BROKEN_REPLY, "too_large")


def test_a_broken_reply_keeps_the_usage_it_reported() -> None:
    """It is paid all the same."""
    with pytest.raises(ProviderError) as caught:
        parse_reply(reply(choices=[]))

    assert caught.value.tokens == Tokens(input=5, output=2)


def test_a_stream_is_put_together() -> None:
    streamed = StreamedReply()
    data = (
        piece({"role": "assistant", "content": ""})
        + piece({"reasoning": "hmm"})
        + piece({"content": "he"})
        + piece({"content": "llo"}, "length")
        + event({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}})
        + b"data: [DONE]\n\n"
    )

    deltas = [*streamed.feed(data), *streamed.end()]
    completion = streamed.completion()

    assert deltas == [Delta(reasoning="hmm"), Delta(text="hello")], "what came together is one"
    assert (completion.text, completion.reasoning) == ("hello", "hmm")
    assert completion.finish_reason is FinishReason.LENGTH
    assert completion.tokens == Tokens(input=4, output=2)


def test_a_later_event_without_usage_does_not_undo_it() -> None:
    streamed = StreamedReply()
    usage = {"prompt_tokens": 4, "completion_tokens": 2}
    list(streamed.feed(event({"choices": [], "usage": usage})))
    list(streamed.feed(piece({"content": "x"}, "stop")))

    assert streamed.completion().tokens == Tokens(input=4, output=2)


@pytest.mark.parametrize("end", [b"", b"data: [DONE]\n\n"])
def test_a_stream_without_a_finish_reason_is_broken(end: bytes) -> None:
    """Half an answer must never pass for a short one."""
    streamed = StreamedReply()
    list(streamed.feed(piece({"content": "half of"}) + end))

    with pytest.raises(ProviderError) as caught:
        streamed.completion()

    assert caught.value.problem == "no_finish_reason"


def test_garbage_inside_a_stream_is_broken() -> None:
    """What came before it is not lost: it may have been sent on, and it is paid."""
    deltas = StreamedReply().feed(piece({"content": "so far"}) + b"data: {oops\n\n")

    assert next(deltas) == Delta(text="so far")
    with pytest.raises(ProviderError) as caught:
        next(deltas)
    assert caught.value.problem == "not_json"


def test_an_error_inside_a_stream_is_raised_with_the_usage_so_far() -> None:
    streamed = StreamedReply()
    list(streamed.feed(event({"usage": {"prompt_tokens": 4, "completion_tokens": 2}})))

    with pytest.raises(ProviderError) as caught:
        list(streamed.feed(event({"error": {"code": 503, "message": "overloaded"}})))

    assert caught.value.kind is FailureKind.SERVER_ERROR
    assert caught.value.tokens == Tokens(input=4, output=2)


def test_the_last_event_counts_without_a_blank_line() -> None:
    streamed = StreamedReply()

    assert list(streamed.feed(piece({"content": "x"}, "stop").rstrip())) == []
    assert list(streamed.end()) == [Delta(text="x")]
    assert streamed.completion().text == "x"


def test_an_event_that_is_too_large_is_a_broken_reply() -> None:
    with pytest.raises(ProviderError) as caught:
        StreamedReply().feed(b"data: " + b"x" * EVENT_BYTES_MAX)

    assert caught.value.problem == "too_large"
