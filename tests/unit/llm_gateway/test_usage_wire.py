"""GetUsage from the wire: whatever an operator's tool sends is told by its field."""

from __future__ import annotations

from typing import Any

import pytest
from fathom.gateway.v1.quota_service_pb2 import GetUsageRequest
from google.protobuf.timestamp_pb2 import Timestamp

from common.errors import InvalidFieldError
from common.page_tokens import make_page_token
from llm_gateway.usage_wire import UsagePage, usage_page_from

LAST_S = 253_402_300_799
"""The end of the year 9999."""
GOOD: dict[str, Any] = {"parent": "tenants/acme", "start_time": Timestamp(seconds=5)}


def read(**fields: Any) -> UsagePage:
    return usage_page_from(GetUsageRequest(**GOOD | fields), now_us=10_000_000)


def violations(**fields: Any) -> set[str]:
    with pytest.raises(InvalidFieldError) as caught:
        read(**fields)
    return set(caught.value.violations)


def token(held: str) -> str:
    """Return a page token as anybody can make it."""
    scope = f"usage {GetUsageRequest(**GOOD).SerializeToString(deterministic=True).hex()}"
    return make_page_token(scope, held)


def test_a_report_without_an_end_ends_now() -> None:
    assert (read().query.start_us, read().query.end_us) == (5_000_000, 10_000_000)


@pytest.mark.parametrize("field", ["start_time", "end_time"])
@pytest.mark.parametrize(
    "no_time",
    [
        Timestamp(seconds=LAST_S + 1),
        Timestamp(seconds=-62_135_596_801),
        Timestamp(seconds=2**62),
        Timestamp(seconds=1, nanos=-1),
        Timestamp(seconds=1, nanos=1_000_000_000),
    ],
)
def test_what_is_no_time_is_named(field: str, no_time: Timestamp) -> None:
    assert violations(**{field: no_time}) == {field}


def test_the_last_time_there_is_is_one() -> None:
    assert read(end_time=Timestamp(seconds=LAST_S)).query.end_us == LAST_S * 1_000_000


@pytest.mark.parametrize(
    "parent", ["acme", "tenants/", "tenants/a/b", "tenants/a\0", "tenants/a\n"]
)
def test_a_parent_that_names_no_tenant_is_named(parent: str) -> None:
    """PostgreSQL takes no zero bytes in texts."""
    assert violations(parent=parent) == {"parent"}


def test_a_later_page_goes_on_where_the_first_one_ended() -> None:
    page = read(page_token=token("7000000:50"))

    assert (page.query.end_us, page.offset) == (7_000_000, 50)


@pytest.mark.parametrize("held", ["x:y", "1", "1:-1", f"{10**18}:1", f"1:{10**9}"])
def test_a_page_token_that_was_made_up_is_refused(held: str) -> None:
    assert violations(page_token=token(held)) == {"page_token"}
