"""The chat-completions wire format."""

from __future__ import annotations

import orjson
import pytest
from fathom_demo.scripted_model.openai_wire import (
    BadRequestError,
    ChatRequest,
    Message,
    Reply,
    completion_body,
    cut_to_limit,
    parse_request,
    stream_chunks,
    usage_of,
)

REQUEST = ChatRequest("m", (Message("user", "12345678"),))


def chunks_of(request: ChatRequest, reply: Reply) -> list[dict[str, object]]:
    """Return the parsed events of a stream without its end mark."""
    events = b"".join(stream_chunks(request, reply, "id")).decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [orjson.loads(event.removeprefix("data: ")) for event in events[:-2]]


def test_a_request_is_read_from_its_body() -> None:
    """All that the server acts on."""
    body = {
        "model": "m",
        "messages": [
            {"role": "system", "content": None},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
    }

    assert parse_request(orjson.dumps(body)) == ChatRequest(
        "m", (Message("system", ""), Message("user", "a\nb")), True, True, 5
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not JSON"),
        (b"[]", "must be an object"),
        (b'{"messages":[{"role":"user","content":"x"}]}', "model: "),
        (b'{"model":"m","messages":[]}', "messages: "),
        (b'{"model":"m","messages":["x"]}', r"messages\[0\].role: "),
        (b'{"model":"m","messages":[{"role":"user","content":5}]}', r"messages\[0\].content: "),
        (b'{"model":"m","messages":[{"role":"user"}],"max_tokens":0}', "max_completion_tokens: "),
    ],
)
def test_a_wrong_body_is_refused_with_the_field(body: bytes, reason: str) -> None:
    """A client's mistake must be plain in its own log."""
    with pytest.raises(BadRequestError, match=reason):
        parse_request(body)


def test_usage_follows_the_sizes_of_the_texts() -> None:
    """Four characters a token, four tokens a message, rounded up."""
    assert usage_of(REQUEST, Reply("12345")) == {
        "prompt_tokens": 6,
        "completion_tokens": 2,
        "total_tokens": 8,
    }


def test_a_reply_at_the_token_limit_is_left_whole() -> None:
    """The limit's lower side."""
    request = ChatRequest("m", REQUEST.messages, completion_tokens_max=2)

    assert cut_to_limit(request, Reply("12345678")) == Reply("12345678")


def test_a_reply_above_the_token_limit_is_cut_and_says_so() -> None:
    """The limit's upper side."""
    request = ChatRequest("m", REQUEST.messages, completion_tokens_max=2)

    assert cut_to_limit(request, Reply("123456789")) == Reply("12345678", "length")


def test_a_body_without_usage_has_no_usage_field() -> None:
    """A missing usage is not a zero usage."""
    assert "usage" in orjson.loads(completion_body(REQUEST, Reply("x"), "id"))
    assert "usage" not in orjson.loads(completion_body(REQUEST, Reply("x", has_usage=False), "id"))


def test_the_pieces_of_a_stream_make_up_the_reply() -> None:
    """Nothing is lost or doubled, even with text of several bytes a character."""
    text = "Größe " * 1000
    pieces = [choice for chunk in chunks_of(REQUEST, Reply(text)) for choice in chunk["choices"]]  # type: ignore[attr-defined]

    assert "".join(piece["delta"].get("content", "") for piece in pieces) == text
    assert [piece["finish_reason"] for piece in pieces if piece["finish_reason"]] == ["stop"]
    assert 10 < len(pieces) < 40


def test_a_stream_tells_usage_only_when_asked() -> None:
    """As providers do, in a last chunk without choices."""
    asked = ChatRequest("m", REQUEST.messages, wants_stream_usage=True)

    assert chunks_of(asked, Reply("x"))[-1]["usage"] == usage_of(asked, Reply("x"))
    assert not any("usage" in chunk for chunk in chunks_of(REQUEST, Reply("x")))
