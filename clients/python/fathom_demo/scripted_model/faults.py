"""Faults by rule: which request goes wrong, and how.

A rule matches by model, number of the call and text. What the wire then shows is made by the
server; a rule with an effect on the reply's content alone is applied here.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from fathom_demo.scripted_model.openai_wire import ChatRequest, Reply, error_body

EFFECTS = {
    "status": "answer with the HTTP `status`, `code`, `message` and retry forms of the rule",
    "hang": "take the request and never answer",
    "reset": "close the connection without an answer",
    "cut": "send half of the answer, then close the connection",
    "stall": "send half of the answer, then nothing more",
    "trickle": "send the answer in pieces of 16 bytes, `pause_ms` apart",
    "huge": "send `size_bytes` of white space before the answer",
    "garbage": "answer 200 with a body (or an event) that is not JSON",
    "wrong_type": "answer 200 with a page of HTML",
    "duplicate": "send each piece of a streamed answer twice",
    "empty": "answer with empty content",
    "ignore_schema": "answer as if no schema were asked for",
    "no_usage": "answer without usage",
    "zero_usage": "answer with a usage of zero tokens",
    "finish_reason": "end the answer for the rule's `finish_reason`; `none` leaves it out and"
    " `length` also halves the text",
}


class FaultRuleError(ValueError):
    """A fault rule that cannot be; the text names the field."""


@dataclass(frozen=True)
class FaultRule:
    """One rule. A request that fits all its conditions has its effect."""

    effect: str
    """One of EFFECTS."""
    model: str | None = None
    """Only requests to this model."""
    contains: str | None = None
    """Only requests with this text in a message."""
    nth: tuple[int, ...] = ()
    """Only these of the requests that fit the conditions above, counted from 1."""
    every: int | None = None
    """Only each so-many-th of them."""
    times: int | None = None
    """At most so many faults from this rule."""
    status: int = 500
    """HTTP status of `status`."""
    code: str | None = None
    """The error's `code`, such as `rate_limit_exceeded` or `insufficient_quota`."""
    message: str = "a fault was asked for by a rule"
    """The error's text."""
    retry_after: str | None = None
    """Header `retry-after`, sent as it is."""
    retry_after_date_s: float | None = None
    """Header `retry-after` as an HTTP date so many seconds ahead; the date has whole seconds."""
    retry_after_ms: str | None = None
    """Header `retry-after-ms`, sent as it is."""
    retry_delay: str | None = None
    """A delay in the error's body, such as `1.5s`."""
    finish_reason: str = "none"
    """How `finish_reason` ends the answer."""
    pause_ms: float = 20.0
    """Time between two pieces of `trickle`."""
    size_bytes: int = 64 << 20
    """How much `huge` sends before the answer."""

    def __post_init__(self) -> None:
        if self.effect not in EFFECTS:
            raise FaultRuleError(f"effect: {self.effect!r} is none of {', '.join(EFFECTS)}")
        if not 400 <= self.status <= 599:
            raise FaultRuleError(f"status: {self.status} is no error status")
        if self.every is not None and self.every < 1:
            raise FaultRuleError("every: must be at least 1")
        if self.pause_ms < 0 or self.size_bytes < 0:
            raise FaultRuleError("pause_ms and size_bytes: must be 0 or more")

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer that this rule's `status` effect sends."""
        headers = {"content-type": "application/json"}
        if self.retry_after is not None:
            headers["retry-after"] = self.retry_after
        if self.retry_after_date_s is not None:
            headers["retry-after"] = formatdate(time.time() + self.retry_after_date_s, usegmt=True)
        if self.retry_after_ms is not None:
            headers["retry-after-ms"] = self.retry_after_ms
        return headers

    @property
    def body(self) -> bytes:
        """Body of the answer that this rule's `status` effect sends."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.retry_delay is None:
            return error_body(self.message, kind, self.code)
        return error_body(self.message, kind, self.code, details=[{"retryDelay": self.retry_delay}])

    def changed(self, reply: Reply) -> Reply:
        """Return the reply as this rule lets it be said."""
        match self.effect:
            case "empty":
                return dataclasses.replace(reply, content="")
            case "no_usage":
                return dataclasses.replace(reply, has_usage=False)
            case "zero_usage":
                return dataclasses.replace(reply, is_usage_zero=True)
            case "finish_reason" if self.finish_reason == "none":
                return dataclasses.replace(reply, finish_reason=None)
            case "finish_reason" if self.finish_reason == "length":
                half = reply.content[: len(reply.content) // 2]
                return dataclasses.replace(reply, content=half, finish_reason="length")
            case "finish_reason":
                return dataclasses.replace(reply, finish_reason=self.finish_reason)
        return reply


class FaultBook:
    """The rules of one server, and how often each has fitted and fired."""

    def __init__(self, rules: Iterable[FaultRule] = ()) -> None:
        self._rules = tuple(rules)
        self._fitted: Counter[int] = Counter()
        self._fired: Counter[int] = Counter()

    def next_fault(self, request: ChatRequest) -> FaultRule | None:
        """Return the first rule that a request sets off, and count it; None for no fault."""
        fault: FaultRule | None = None
        for number, rule in enumerate(self._rules):
            if not _fits(rule, request):
                continue
            self._fitted[number] += 1
            if fault is None and self._is_due(number, rule):
                self._fired[number] += 1
                fault = rule
        return fault

    def _is_due(self, number: int, rule: FaultRule) -> bool:
        if rule.times is not None and self._fired[number] >= rule.times:
            return False
        call = self._fitted[number]
        if rule.nth and call not in rule.nth:
            return False
        return rule.every is None or call % rule.every == 0


def _fits(rule: FaultRule, request: ChatRequest) -> bool:
    if rule.model is not None and rule.model != request.model:
        return False
    return rule.contains is None or any(
        rule.contains in message.content for message in request.messages
    )


def rule_from_fields(fields: Mapping[str, Any]) -> FaultRule:
    """Return the rule that a JSON object describes; `nth` may be a number or a list of them.

    Raises FaultRuleError for an unknown field or a value that cannot be.
    """
    known = {field.name for field in dataclasses.fields(FaultRule)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise FaultRuleError(f"{unknown[0]}: unknown field")
    if "effect" not in fields:
        raise FaultRuleError("effect: is missing")
    values = dict(fields)
    try:
        if "nth" in values:
            nth = values["nth"]
            values["nth"] = tuple(map(int, nth)) if isinstance(nth, list) else (int(nth),)
        for name in ("every", "times", "status", "size_bytes"):
            if values.get(name) is not None:
                values[name] = int(values[name])
        for name in ("retry_after_date_s", "pause_ms"):
            if values.get(name) is not None:
                values[name] = float(values[name])
    except (TypeError, ValueError) as error:
        raise FaultRuleError(f"not a number: {error}") from error
    return FaultRule(**values)


def rule_from_text(text: str) -> FaultRule:
    """Return the rule in a text such as `effect=status,status=429,model=scripted-sub,nth=2`.

    Several numbers of calls are joined by `+`: `nth=1+3`. Raises FaultRuleError.
    """
    fields: dict[str, Any] = {}
    for part in text.split(","):
        name, separator, value = part.partition("=")
        if not separator:
            raise FaultRuleError(f"{part!r}: is not name=value")
        fields[name.strip()] = value.split("+") if name.strip() == "nth" else value
    return rule_from_fields(fields)
