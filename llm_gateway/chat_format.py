"""The chat-completions format: request bodies, whole replies and streamed chunks.

Bytes in, bytes out. Replies are hostile input: whatever does not fit raises a ProviderError with
a word for the problem and nothing of the content.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import orjson

from llm_gateway.answers import Completion, Delta, FinishReason, Tokens, merged
from llm_gateway.catalog import Deployment
from llm_gateway.failures import FailureKind, ProviderError, failure_from_error_event
from llm_gateway.prompts import Message, Prompt
from llm_gateway.sse import EventParser, EventTooLargeError

_FINISH_REASONS = {
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "content_filter": FinishReason.FILTERED,
}
"""Every other word is STOP: compatible servers use many for it."""
PARTS_MAX = 2 << 20
"""Values of a reply, about: an empty list is two bytes of a reply, and sixty of memory."""
_COUNT_MAX = 2**31
"""Tokens beyond any model's are damage: their prices would not add up to what a number holds."""
_DONE = b"[DONE]"
_SCHEMA_NAME = "answer"
"""Providers want one, and may show it to the model."""


def request_body(
    deployment: Deployment, prompt: Prompt, output_tokens_max: int, *, stream: bool
) -> bytes:
    """Return the body of `POST /chat/completions`; parameters the deployment omits are left out."""
    body: dict[str, Any] = {
        "model": deployment.model,
        "messages": orjson.Fragment(
            messages_json(prompt.messages) if prompt.history is None else prompt.history.json
        ),
        deployment.provider.output_limit_field: output_tokens_max,
    }
    if prompt.temperature is not None:
        body["temperature"] = prompt.temperature
    if prompt.stop:
        body["stop"] = list(prompt.stop)
    if prompt.seed is not None:
        body["seed"] = prompt.seed
    if prompt.response_schema and deployment.structured_output:
        schema = orjson.Fragment(prompt.response_schema)
        # Without `strict`, under which providers refuse most schemas.
        described = {"name": _SCHEMA_NAME, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": described}
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    for parameter in deployment.omit_parameters:
        body.pop(parameter, None)
    return orjson.dumps(body)


def messages_json(messages: Sequence[Message]) -> bytes:
    """Return messages as a body has them: an array."""
    return orjson.dumps([{"role": m.role.value, "content": m.text} for m in messages])


def parse_reply(body: bytes) -> Completion:
    """Read a whole reply; raises ProviderError (BROKEN_REPLY) for anything else."""
    document = _json_object(body)
    choice = _first_choice(document)
    if choice is None:
        _broken("no_choices", document)
    message = choice.get("message")
    if not isinstance(message, dict):
        _broken("no_message", document)
    if not choice.get("finish_reason"):
        _broken("no_finish_reason", document)
    refusal = _text(message, "refusal")
    finish_reason = _FINISH_REASONS.get(str(choice["finish_reason"]), FinishReason.STOP)
    return Completion(
        text=_text(message, "content") or refusal,
        reasoning=_reasoning(message),
        finish_reason=FinishReason.FILTERED if refusal else finish_reason,
        tokens=_tokens(document),
        response_id=_text(document, "id"),
        response_model=_text(document, "model"),
    )


class StreamedReply:
    """Puts a completion together from the bytes of a stream."""

    def __init__(self) -> None:
        self._events = EventParser()
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._finish_reason: FinishReason | None = None
        self._tokens: Tokens | None = None
        self._id = ""
        self._model = ""

    def feed(self, data: bytes) -> Iterator[Delta]:
        """Give the pieces that `data` completes, neighbours as one, then raise where a
        ProviderError follows them."""
        try:
            events = self._events.feed(data)
        except EventTooLargeError:
            self._fail("too_large")
        return self._deltas(events)

    def end(self) -> Iterator[Delta]:
        """Give the pieces that the end of the stream completes; like `feed`."""
        return self._deltas(self._events.finish())

    def completion(self) -> Completion:
        """Return the whole, after the end.

        Raises ProviderError (BROKEN_REPLY, `no_finish_reason`) for a stream that was cut off: only
        the finish reason tells a short answer from half of one.
        """
        if self._finish_reason is None:
            self._fail("no_finish_reason")
        return Completion(
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            finish_reason=self._finish_reason,
            tokens=self._tokens,
            response_id=self._id,
            response_model=self._model,
        )

    def _deltas(self, events: list[bytes]) -> Iterator[Delta]:
        deltas, failure = [], None
        for event in events:
            try:
                delta = self._take(event)
            except ProviderError as error:
                failure = error
                break
            if delta is not None:
                deltas.append(delta)
        yield from merged(deltas)
        if failure is not None:
            raise failure

    def _take(self, event: bytes) -> Delta | None:
        if event == _DONE:
            return None
        try:
            document = _json_object(event)
        except ProviderError:
            self._fail("not_json")
        if document.get("error"):
            error = failure_from_error_event(document, now=time.time())
            error.tokens = self._tokens
            raise error
        if "usage" in document:
            self._tokens = _tokens(document) or self._tokens
        self._id = self._id or _text(document, "id")
        self._model = self._model or _text(document, "model")
        choice = _first_choice(document)
        return None if choice is None else self._append(choice)

    def _append(self, choice: dict[str, Any]) -> Delta | None:
        if choice.get("finish_reason"):
            word = str(choice["finish_reason"])
            self._finish_reason = _FINISH_REASONS.get(word, FinishReason.STOP)
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return None
        text, reasoning = _text(delta, "content"), _reasoning(delta)
        if not text and not reasoning:
            return None
        self._text.append(text)
        self._reasoning.append(reasoning)
        return Delta(text=text, reasoning=reasoning)

    def _fail(self, problem: str) -> NoReturn:
        raise ProviderError(FailureKind.BROKEN_REPLY, problem, tokens=self._tokens)


def _json_object(data: bytes) -> dict[str, Any]:
    if len(data) > PARTS_MAX and sum(map(data.count, (b",", b"[", b"{"))) > PARTS_MAX:
        _broken("too_large")
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        _broken("not_json")
    return document


def _first_choice(document: dict[str, Any]) -> dict[str, Any] | None:
    choices = document.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    return None


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    return value if isinstance(value, str) else ""


def _reasoning(message: dict[str, Any]) -> str:
    return _text(message, "reasoning_content") or _text(message, "reasoning")


def _tokens(document: dict[str, Any]) -> Tokens | None:
    usage = document.get("usage")
    if not isinstance(usage, dict):
        return None
    sent, received = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if sent is None or received is None:
        return None
    # Some providers count reasoning in the total only; it is billed as output.
    received = max(received, (_count(usage, "total_tokens") or 0) - sent)
    return Tokens(
        input=sent,
        output=received,
        cached_input=min(sent, _detail(usage, "prompt_tokens_details", "cached_tokens")),
        reasoning=min(received, _detail(usage, "completion_tokens_details", "reasoning_tokens")),
    )


def _detail(usage: dict[str, Any], group: str, key: str) -> int:
    details = usage.get(group)
    return (_count(details, key) or 0) if isinstance(details, dict) else 0


def _count(document: dict[str, Any], key: str) -> int | None:
    value = document.get(key)
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _COUNT_MAX
    return value if is_count else None


def _broken(problem: str, document: dict[str, Any] | None = None) -> NoReturn:
    tokens = None if document is None else _tokens(document)
    raise ProviderError(FailureKind.BROKEN_REPLY, problem, tokens=tokens)
