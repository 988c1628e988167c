"""Failures recognised from statuses, headers and bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_gateway.failures import (
    FailureKind,
    failure_from_error_event,
    failure_from_http,
    retry_after_s,
)

NOW = 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, {}, FailureKind.REJECTED),
        (400, {"code": "context_length_exceeded"}, FailureKind.CONTEXT_OVERFLOW),
        (400, {"message": "This model's Maximum Context Length is"}, FailureKind.CONTEXT_OVERFLOW),
        (401, {}, FailureKind.CREDENTIAL),
        (402, {}, FailureKind.CREDENTIAL),
        (403, {}, FailureKind.CREDENTIAL),
        (404, {}, FailureKind.REJECTED),
        (408, {}, FailureKind.SERVER_ERROR),
        (409, {}, FailureKind.SERVER_ERROR),
        (413, {}, FailureKind.CONTEXT_OVERFLOW),
        (422, {}, FailureKind.REJECTED),
        (429, {}, FailureKind.RATE_LIMITED),
        (429, {"code": "insufficient_quota"}, FailureKind.CREDENTIAL),
        (429, {"type": "insufficient_quota"}, FailureKind.CREDENTIAL),
        (302, {}, FailureKind.REJECTED),
        (500, {}, FailureKind.SERVER_ERROR),
        (529, {}, FailureKind.SERVER_ERROR),
    ],
)
def test_a_status_means(status: int, error: dict[str, Any], kind: FailureKind) -> None:
    failure = failure_from_http(status, {}, json.dumps({"error": error}).encode(), now=NOW)

    assert failure.kind is kind
    assert failure.http_status == status


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"error": "text"}', b"\xff"])
def test_a_body_of_any_shape_is_recognised_by_its_status(body: bytes) -> None:
    """Balancers in front of providers answer with whatever they like."""
    assert failure_from_http(503, {}, body, now=NOW).kind is FailureKind.SERVER_ERROR


@pytest.mark.parametrize(
    ("headers", "document", "seconds"),
    [
        ({}, None, None),
        ({"retry-after-ms": "1500", "retry-after": "9"}, None, 1.5),
        ({"retry-after": "2"}, None, 2.0),
        ({"retry-after": "0.25"}, None, 0.25),
        ({"retry-after": "0"}, None, 0.0),
        ({"retry-after": "-5"}, None, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, None, 30.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:27:00 GMT"}, None, 0.0),
        ({"retry-after": "999999999"}, None, 86_400.0),
        ({"retry-after": "soon"}, None, None),
        ({"retry-after": "nan"}, None, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 +99999999999999999"}, None, None),
        ({}, [{"error": {"details": [{"x": 1}, {"retryDelay": "12.5s"}]}}], 12.5),
        ({}, {"error": {"retryDelay": "later"}}, None),
        ({"retry-after": "3"}, {"error": {"retryDelay": "12s"}}, 3.0),
    ],
)
def test_retry_after_is_read_in_each_form(
    headers: dict[str, str], document: Any, seconds: float | None
) -> None:
    assert retry_after_s(headers, document, now=NOW) == seconds


def test_an_error_inside_a_stream_keeps_its_meaning() -> None:
    document = {"error": {"code": 429, "message": "slow down"}}

    assert failure_from_error_event(document, now=NOW).kind is FailureKind.RATE_LIMITED


def test_an_error_inside_a_stream_without_a_status_is_a_broken_reply() -> None:
    failure = failure_from_error_event({"error": {"message": "oops"}}, now=NOW)

    assert (failure.kind, failure.problem) == (FailureKind.BROKEN_REPLY, "error_in_stream")


def test_a_failure_keeps_nothing_of_the_providers_text() -> None:
    """Error texts of providers repeat prompts and parts of keys."""
    failure = failure_from_http(401, {}, b'{"error":{"message":"bad key sk-12"}}', now=NOW)

    assert "sk-12" not in str(failure) + repr(vars(failure))
