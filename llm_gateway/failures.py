"""How one exchange with a provider fails, recognised from what came back.

Recognition only: what follows from a failure is decided in `routes.py`.
"""

from __future__ import annotations

import email.utils
import enum
import math
import re
from collections.abc import Mapping
from typing import Any

import orjson

from llm_gateway.answers import Tokens

_RETRY_AFTER_S_MAX = 86_400.0
_NO_FUNDS = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_OVERFLOW_CODES = {"context_length_exceeded", "string_above_max_length"}
_OVERFLOW_TEXT = re.compile(
    r"maximum context length|context window|context length|prompt is too long|too many tokens",
    re.IGNORECASE,
)
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)s")


class FailureKind(enum.Enum):
    """What went wrong; the value is the word in metrics and traces."""

    UNREACHABLE = "unreachable"
    """No connection, or one that broke before an answer."""
    TIMED_OUT = "timed_out"
    """Nothing came for longer than the provider's time."""
    SERVER_ERROR = "server_error"
    """HTTP 408, 409 or 5xx."""
    RATE_LIMITED = "rate_limited"
    """HTTP 429, or a limit noted from an earlier one."""
    CREDENTIAL = "credential"
    """The key is refused or the account has no funds: HTTP 401, 402, 403, some 429."""
    CONTEXT_OVERFLOW = "context_overflow"
    """The messages do not fit the model's window."""
    REJECTED = "rejected"
    """Any other HTTP status: this request never succeeds here."""
    BROKEN_REPLY = "broken_reply"
    """An answer began and is not one that the protocol allows."""


class ProviderError(Exception):
    """One exchange failed. Its text is for logs and has no part of prompt, answer or key."""

    def __init__(
        self,
        kind: FailureKind,
        problem: str,
        *,
        http_status: int = 0,
        retry_after_s: float | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        super().__init__(f"{kind.value}: {problem}")
        self.kind = kind
        self.problem = problem
        self.http_status = http_status
        self.retry_after_s = retry_after_s
        """What the provider asked to wait; None where it did not say."""
        self.tokens = tokens
        """What the provider reported before it failed."""

    @property
    def status_label(self) -> str:
        """The HTTP status where there is one, else the kind, for metrics."""
        return str(self.http_status) if self.http_status else self.kind.value

    @property
    def may_be_billed(self) -> bool:
        """The provider may have worked: it took the request and gave no error of its own."""
        return self.kind in {FailureKind.TIMED_OUT, FailureKind.BROKEN_REPLY}


def failure_from_http(
    status: int, headers: Mapping[str, str], body: bytes, *, now: float
) -> ProviderError:
    """Recognise an answer with an error status; `now` is Unix time for dates in `retry-after`."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    kind = _kind(status, _error_of(document))
    return ProviderError(
        kind,
        f"HTTP {status}",
        http_status=status,
        retry_after_s=retry_after_s(headers, document, now=now),
    )


def failure_from_error_event(document: Any, *, now: float) -> ProviderError:
    """Recognise an error that came inside a stream of status 200."""
    error = _error_of(document)
    status = error.get("code") if isinstance(error.get("code"), int) else 0
    kind = _kind(int(status or 0), error)
    if kind is FailureKind.REJECTED:
        kind = FailureKind.BROKEN_REPLY
    after = retry_after_s({}, document, now=now)
    return ProviderError(kind, "error_in_stream", retry_after_s=after)


def _kind(status: int, error: Mapping[str, Any]) -> FailureKind:
    codes = {str(error.get("code")), str(error.get("type"))}
    if codes & _NO_FUNDS or status in {401, 402, 403}:
        return FailureKind.CREDENTIAL
    if status == 429:
        return FailureKind.RATE_LIMITED
    if status in {408, 409} or status >= 500:
        return FailureKind.SERVER_ERROR
    message = str(error.get("message", ""))
    if codes & _OVERFLOW_CODES or status == 413 or _OVERFLOW_TEXT.search(message):
        return FailureKind.CONTEXT_OVERFLOW
    return FailureKind.REJECTED


def retry_after_s(headers: Mapping[str, str], document: Any, *, now: float) -> float | None:
    """Return the seconds that a provider asks to wait, 0 to a day; None where it does not say.

    Looks, in this order, at `retry-after-ms`, `retry-after` (seconds or a date) and a
    `retryDelay` such as "12.5s" anywhere in the body. `headers` has lower-case names.
    """
    for candidate in (
        _number(headers.get("retry-after-ms"), 0.001),
        _number(headers.get("retry-after"), 1.0),
        _until(headers.get("retry-after"), now),
        _number(_retry_delay(document), 1.0),
    ):
        if candidate is not None:
            return min(max(candidate, 0.0), _RETRY_AFTER_S_MAX)
    return None


def _number(text: str | None, scale: float) -> float | None:
    try:
        value = float(text or "") * scale
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _until(text: str | None, now: float) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text or "").timestamp() - now
    except (ValueError, OverflowError):  # the latter for an offset of astronomical size
        return None


def _retry_delay(document: Any, depth: int = 0) -> str | None:
    if depth > 8:
        return None
    if isinstance(document, dict):
        delay = document.get("retryDelay")
        if isinstance(delay, str) and (match := _SECONDS.fullmatch(delay)):
            return match[1]
        parts = list(document.values())
    else:
        parts = document if isinstance(document, list) else []
    return next((found for part in parts if (found := _retry_delay(part, depth + 1))), None)


def _error_of(document: Any) -> Mapping[str, Any]:
    if isinstance(document, list) and document:
        document = document[0]  # how Gemini's compatible endpoint answers
    if not isinstance(document, dict):
        return {}
    error = document.get("error", document)
    return error if isinstance(error, dict) else {"message": error}
