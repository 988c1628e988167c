"""GetUsage from the wire, checked field by field, and its rows to the wire."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from fathom.gateway.v1 import quota_service_pb2 as pb2
from fathom.gateway.v1.generation_pb2 import Usage
from google.protobuf.timestamp_pb2 import Timestamp

from common.errors import InvalidFieldError
from common.page_tokens import make_page_token, page_size, read_page_token
from llm_gateway.catalog import MODEL_PREFIX
from llm_gateway.ledger.usage import DAY_US, Dimension, UsageQuery, UsageSum
from llm_gateway.quota_wire import TENANT

_PARENT = re.compile(rf"tenants/({TENANT})")
_TOKEN = re.compile(r"(\d{1,18}):(\d{1,9})")
"""End of the report in microseconds of Unix time, and rows before the page."""
_DIMENSIONS = {
    pb2.GetUsageRequest.GROUP_BY_RUN: Dimension.RUN,
    pb2.GetUsageRequest.GROUP_BY_MODEL: Dimension.MODEL,
    pb2.GetUsageRequest.GROUP_BY_TIER: Dimension.TIER,
    pb2.GetUsageRequest.GROUP_BY_DAY: Dimension.DAY,
}
_NANOS_A_MICRO = 1_000
_TIME_NEEDED = "is required, from year 1 to 9999"


@dataclasses.dataclass(frozen=True, kw_only=True)
class UsagePage:
    """Which page of which report is wanted."""

    query: UsageQuery
    """The report."""
    offset: int
    """Rows before the page."""
    size: int
    """Rows of the page at most."""
    scope: str
    """The report's filter, for page tokens."""


def usage_page_from(request: pb2.GetUsageRequest, *, now_us: int) -> UsagePage:
    """Return what a request wants; raises InvalidFieldError naming every bad field.

    `now_us` is Unix time. A report without an end ends now, and its later pages at the same time.
    """
    size = page_size(request.page_size)
    scope = _scope(request)
    end_us, offset = _read_token(scope, request.page_token)
    violations: dict[str, str] = {}
    parent = _PARENT.fullmatch(request.parent)
    if parent is None:
        violations["parent"] = "must have the form tenants/{tenant}"
    start_us = _micros(request.start_time) if request.HasField("start_time") else None
    if start_us is None:
        violations["start_time"] = _TIME_NEEDED
    if not end_us:
        given = _micros(request.end_time) if request.HasField("end_time") else now_us
        if given is None:
            violations["end_time"] = _TIME_NEEDED
        end_us = given or 0
    if start_us is not None and end_us < start_us:
        violations.setdefault("end_time", "must not be before start_time")
    if any(each not in _DIMENSIONS for each in request.group_by):
        violations["group_by"] = "must be RUN, MODEL, TIER or DAY"
    elif len(set(request.group_by)) != len(request.group_by):
        violations["group_by"] = "may name each dimension once"
    if violations or parent is None or start_us is None:
        raise InvalidFieldError.many(violations)
    query = UsageQuery(
        tenant=parent[1],
        start_us=start_us,
        end_us=end_us,
        dimensions=tuple(_DIMENSIONS[each] for each in request.group_by),
    )
    return UsagePage(query=query, offset=offset, size=size, scope=scope)


def usage_page_to(page: UsagePage, sums: Sequence[UsageSum]) -> pb2.GetUsageResponse:
    """Return the response for sums of which one more was asked for than the page holds."""
    more = len(sums) > page.size
    next_token = f"{page.query.end_us}:{page.offset + page.size}"
    return pb2.GetUsageResponse(
        rows=[_row(each) for each in sums[: page.size]],
        next_page_token=make_page_token(page.scope, next_token) if more else "",
    )


def _scope(request: pb2.GetUsageRequest) -> str:
    filtered = pb2.GetUsageRequest()
    filtered.CopyFrom(request)
    filtered.ClearField("page_size")
    filtered.ClearField("page_token")
    return f"usage {filtered.SerializeToString(deterministic=True).hex()}"


def _read_token(scope: str, token: str) -> tuple[int, int]:
    # What makes a token good is no secret, so that what it holds may be anybody's.
    held = _TOKEN.fullmatch(read_page_token(scope, token) or "0:0")
    if held is None:
        raise InvalidFieldError("page_token", "is not one that this list gave for this filter")
    return int(held[1]), int(held[2])


def _micros(time: Timestamp) -> int | None:
    """Return microseconds of Unix time; None for what is no time."""
    try:
        return time.ToNanoseconds() // _NANOS_A_MICRO
    except ValueError:
        return None


def _row(row: UsageSum) -> pb2.UsageRow:
    spend, values = row.spend, row.values
    wire = pb2.UsageRow(
        run=values.get(Dimension.RUN, ""),
        tier=values.get(Dimension.TIER, ""),
        usage=Usage(
            input_tokens=spend.tokens.input,
            output_tokens=spend.tokens.output,
            cached_input_tokens=spend.tokens.cached_input,
            reasoning_tokens=spend.tokens.reasoning,
            cost_usd_nanos=spend.cost_usd_nanos,
            calls=row.answers,
            estimated=spend.is_estimated,
        ),
        cache_hits=row.cache_hits,
    )
    if Dimension.MODEL in values:
        wire.model = MODEL_PREFIX + values[Dimension.MODEL]
    if Dimension.DAY in values:
        wire.day.FromMicroseconds(values[Dimension.DAY] * DAY_US)
    return wire
