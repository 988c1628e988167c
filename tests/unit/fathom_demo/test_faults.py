"""Fault rules: how they are written, and which request sets them off."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import orjson
import pytest
from fathom_demo.scripted_model.faults import (
    FaultBook,
    FaultRule,
    FaultRuleError,
    rule_from_fields,
    rule_from_text,
)
from fathom_demo.scripted_model.openai_wire import ChatRequest, Message, Reply


def request(model: str = "m", text: str = "hello") -> ChatRequest:
    """Return a request with one message."""
    return ChatRequest(model, (Message("user", text),))


def fired(book: FaultBook, requests: list[ChatRequest]) -> list[bool]:
    """Tell for each request whether it set off a fault."""
    return [book.next_fault(each) is not None for each in requests]


def test_a_rule_without_conditions_fits_every_request() -> None:
    """The plainest rule: everything fails."""
    assert fired(FaultBook([FaultRule("empty")]), [request()] * 3) == [True] * 3


def test_a_rule_for_a_model_leaves_others_alone() -> None:
    """Sub-calls can fail while the root model works."""
    book = FaultBook([FaultRule("empty", model="sub")])

    assert fired(book, [request("sub"), request("root")]) == [True, False]


def test_a_rule_for_a_text_looks_into_the_messages() -> None:
    """One item of a batch can be made to fail."""
    book = FaultBook([FaultRule("empty", contains="item 7")])

    assert fired(book, [request(text="this is item 7."), request()]) == [True, False]


def test_nth_counts_the_requests_that_fit() -> None:
    """Requests to other models do not move the count."""
    book = FaultBook([FaultRule("empty", model="sub", nth=(2, 3))])
    requests = [request("sub"), request("root"), request("sub"), request("sub"), request("sub")]

    assert fired(book, requests) == [False, False, True, True, False]


def test_every_fires_at_a_steady_share() -> None:
    """A share of failures without chance."""
    assert (
        fired(FaultBook([FaultRule("empty", every=3)]), [request()] * 6)
        == [
            False,
            False,
            True,
        ]
        * 2
    )


def test_times_bounds_a_rule() -> None:
    """After its faults a rule lets everything pass."""
    assert fired(FaultBook([FaultRule("empty", times=1)]), [request()] * 2) == [True, False]


def test_the_first_rule_that_is_due_wins_and_the_others_keep_counting() -> None:
    """Rules that overlap behave the same whatever stands before them."""
    book = FaultBook([FaultRule("hang", nth=(1,)), FaultRule("empty", nth=(2,))])
    faults = [book.next_fault(request()) for _ in range(3)]

    assert [fault.effect if fault else None for fault in faults] == ["hang", "empty", None]


@pytest.mark.parametrize(
    ("rule", "reply"),
    [
        (FaultRule("empty"), Reply("")),
        (FaultRule("no_usage"), Reply("abcd", has_usage=False)),
        (FaultRule("finish_reason"), Reply("abcd", None)),
        (FaultRule("finish_reason", finish_reason="length"), Reply("ab", "length")),
        (
            FaultRule("finish_reason", finish_reason="content_filter"),
            Reply("abcd", "content_filter"),
        ),
        (FaultRule("hang"), Reply("abcd")),
    ],
)
def test_an_effect_on_content_changes_the_reply(rule: FaultRule, reply: Reply) -> None:
    """Effects on the wire leave the reply as it is."""
    assert rule.changed(Reply("abcd")) == reply


def test_every_form_of_retry_after_is_sent_as_written() -> None:
    """Providers write the wait in four ways."""
    rule = FaultRule("status", retry_after="1.5", retry_after_ms="1500", retry_delay="1.5s")

    assert (rule.headers["retry-after"], rule.headers["retry-after-ms"]) == ("1.5", "1500")
    assert orjson.loads(rule.body)["error"]["details"] == [{"retryDelay": "1.5s"}]


def test_a_retry_date_lies_ahead() -> None:
    """The HTTP date counts from the time of the answer."""
    rule = FaultRule("status", retry_after_date_s=60)
    ahead = parsedate_to_datetime(rule.headers["retry-after"]) - datetime.now(UTC)

    assert timedelta(seconds=50) < ahead <= timedelta(seconds=60)


def test_a_rule_is_read_from_text() -> None:
    """The command's short form."""
    assert rule_from_text("effect=status,status=429,model=sub,nth=1+3,retry_after=2") == FaultRule(
        "status", model="sub", nth=(1, 3), status=429, retry_after="2"
    )


def test_a_rule_is_read_from_fields() -> None:
    """The form of the rules file."""
    assert rule_from_fields({"effect": "hang", "nth": 2, "times": "1"}) == FaultRule(
        "hang", nth=(2,), times=1
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("status=429", "effect: is missing"),
        ("effect=explode", "effect: 'explode' is none of"),
        ("effect=hang,modell=x", "modell: unknown field"),
        ("effect=status,status=200", "status: 200 is no error status"),
        ("effect=hang,nth=x", "not a number"),
        ("effect=hang,every=0", "every: must be at least 1"),
        ("hang", "'hang': is not name=value"),
    ],
)
def test_a_wrong_rule_is_refused_with_the_field(text: str, reason: str) -> None:
    """A typo must not leave a test without its fault."""
    with pytest.raises(FaultRuleError, match=reason):
        rule_from_text(text)
