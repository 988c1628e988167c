"""OpenAI's chat-completions wire format, as far as a server needs it.

Requests come in as bytes and answers go out as bytes; nothing here decides what is said.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4
_PIECES_MAX = 32
_PIECE_CHARACTERS_MIN = 64


class BadRequestError(ValueError):
    """A request body that is not a chat-completions request; the text says why."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: str
    """`system`, `user`, `assistant` or another role of the format."""
    content: str
    """Its text; the text parts of a multi-part message joined by line ends."""


@dataclass(frozen=True)
class ChatRequest:
    """What is asked of a model."""

    model: str
    """Name of the model that is to answer."""
    messages: tuple[Message, ...]
    """The conversation so far, oldest first, never empty."""
    is_stream: bool = False
    """Whether the reply is wanted in chunks."""
    wants_stream_usage: bool = False
    """Whether a stream shall end with a chunk that holds the usage."""
    completion_tokens_max: int | None = None
    """Where the reply is cut off, in tokens; None leaves it whole."""
    response_schema: dict[str, Any] | None = None
    """JSON Schema that the reply is to satisfy; None for any text."""


@dataclass(frozen=True)
class Reply:
    """What a model says to one request."""

    content: str
    """The text of the reply."""
    finish_reason: str | None = "stop"
    """Why it ends there; None stands for a server that does not say."""
    has_usage: bool = True
    """Whether the answer tells the usage."""
    is_usage_zero: bool = False
    """Whether the usage that it tells is of no tokens at all."""
    latency_ms: float | None = None
    """Time to the first byte; None takes the model's own."""
    reasoning: str = ""
    """What the model says to itself first, apart from the text; not counted in the usage."""
    usage: Mapping[str, Any] | None = None
    """The usage that the answer tells in place of its real one."""
    model: str = ""
    """Name of the model that the answer says it is of; the one that was asked where empty."""


def parse_request(body: bytes) -> ChatRequest:
    """Return the request in a body.

    Raises BadRequestError with the field at fault.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadRequestError("the body must be an object")
    model, messages = fields.get("model"), fields.get("messages")
    if not isinstance(model, str) or not model:
        raise BadRequestError("model: must be a string that is not empty")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("messages: must be a list that is not empty")
    most = fields.get("max_completion_tokens", fields.get("max_tokens"))
    if most is not None and (not isinstance(most, int) or most < 1):
        raise BadRequestError("max_completion_tokens: must be a positive integer")
    options = fields.get("stream_options")
    return ChatRequest(
        model=model,
        messages=tuple(_message(number, fields) for number, fields in enumerate(messages)),
        is_stream=fields.get("stream") is True,
        wants_stream_usage=isinstance(options, dict) and options.get("include_usage") is True,
        completion_tokens_max=most,
        response_schema=_response_schema(fields.get("response_format")),
    )


def _response_schema(wanted: Any) -> dict[str, Any] | None:
    if wanted is None or (isinstance(wanted, dict) and wanted.get("type") == "text"):
        return None
    described = wanted.get("json_schema") if isinstance(wanted, dict) else None
    if not isinstance(described, dict) or not isinstance(described.get("name"), str):
        raise BadRequestError("response_format.json_schema: must be an object that has a name")
    schema = described.get("schema")
    if not isinstance(schema, dict):
        raise BadRequestError("response_format.json_schema.schema: must be an object")
    return schema


def _message(number: int, fields: Any) -> Message:
    role = fields.get("role") if isinstance(fields, dict) else None
    if not isinstance(role, str):
        raise BadRequestError(f"messages[{number}].role: must be a string")
    content = fields.get("content")
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "\n".join(text for text in texts if isinstance(text, str))
    if content is None:
        content = ""
    if not isinstance(content, str):
        raise BadRequestError(f"messages[{number}].content: must be text")
    return Message(role, content)


def tokens_of(text: str) -> int:
    """Return the tokens a text is counted as: one for each four characters begun."""
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


def usage_of(request: ChatRequest, reply: Reply) -> Mapping[str, Any]:
    """Return the usage object of an exchange, from the sizes of its texts unless the reply has
    another one."""
    if reply.usage is not None:
        return reply.usage
    if reply.is_usage_zero:
        return dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0)
    asked = sum(tokens_of(each.content) + _TOKENS_PER_MESSAGE for each in request.messages)
    said = tokens_of(reply.content)
    return {
        "prompt_tokens": asked,
        "completion_tokens": said,
        "total_tokens": asked + said,
    }


def cut_to_limit(request: ChatRequest, reply: Reply) -> Reply:
    """Return the reply as a model says it that may say only so many tokens."""
    most = request.completion_tokens_max
    if most is None or tokens_of(reply.content) <= most:
        return reply
    said = reply.content[: most * _CHARACTERS_PER_TOKEN]
    return dataclasses.replace(reply, content=said, finish_reason="length")


def completion_body(request: ChatRequest, reply: Reply, completion_id: str) -> bytes:
    """Return the body of an answer that is not streamed."""
    message = {"role": "assistant", "content": reply.content, "refusal": None}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": reply.finish_reason,
        "logprobs": None,
    }
    body: dict[str, Any] = {
        "id": completion_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": reply.model or request.model,
        "choices": [choice],
    }
    if reply.has_usage:
        body["usage"] = usage_of(request, reply)
    return orjson.dumps(body)


def stream_chunks(request: ChatRequest, reply: Reply, completion_id: str) -> Iterator[bytes]:
    """Yield the server-sent events of a streamed answer, the `[DONE]` mark last."""
    head: dict[str, Any] = {
        "id": completion_id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": reply.model or request.model,
    }

    def event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return _event({**head, "choices": [choice]})

    yield event({"role": "assistant", "content": ""})
    if reply.reasoning:
        yield event({"reasoning_content": reply.reasoning})
    size = max(_PIECE_CHARACTERS_MIN, -(-len(reply.content) // _PIECES_MAX))
    for start in range(0, len(reply.content), size):
        yield event({"content": reply.content[start : start + size]})
    if reply.finish_reason is not None:
        yield event({}, reply.finish_reason)
    if reply.has_usage and request.wants_stream_usage:
        yield _event({**head, "choices": [], "usage": usage_of(request, reply)})
    yield b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def error_body(message: str, kind: str, code: str | None, **extra: object) -> bytes:
    """Return the body of an answer that tells an error, with extra fields inside `error`."""
    error = {"message": message, "type": kind, "param": None, "code": code, **extra}
    return orjson.dumps({"error": error})


def models_body(descriptions: dict[str, str]) -> bytes:
    """Return the list of models, each with its description."""
    models = [
        {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "fathom-scripted-model",
            "description": description,
        }
        for name, description in descriptions.items()
    ]
    return orjson.dumps({"object": "list", "data": models})
