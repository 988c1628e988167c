"""Reports of what a gateway's callers have taken, over its real ledger; and whose they are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.gateway.v1 import quota_service_pb2 as quota_pb2
from fathom.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub
from fathom.gateway.v1.quota_service_pb2_grpc import QuotaServiceStub

from common.config import Secret
from llm_gateway.ledger.shared_clock import SharedClock
from tests.support.gateway import KEY, config_file, gateway_channel, metadata, violated_fields
from tests.support.gateway_calls import COST, OPERATOR, ask, asked, error_of, get_usage
from tests.support.played_model import PlayedModel, answers


@pytest.fixture
def config(provider: PlayedModel, tmp_path: Path) -> Path:
    return config_file(tmp_path / "c.toml", [provider.base_url])


async def test_usage_is_summed_by_what_was_asked_for(
    config: Path, provider: PlayedModel, database_url: str
) -> None:
    provider.plan(answers("a"), answers("b"), answers("c", usage=None))
    async with gateway_channel(
        config, database_url=Secret(database_url), operator_key=KEY
    ) as channel:
        stub = GatewayServiceStub(channel)
        await ask(stub, asked("1"), run="runs/1")
        await ask(stub, asked("1", tier="models/m0"), run="runs/2")
        await ask(stub, asked("2"), run="runs/2")
        await ask(stub, asked("1"), run="runs/9", tenant="zeta")
        by_run = await get_usage(channel, quota_pb2.GetUsageRequest.GROUP_BY_RUN)
        by_all = await get_usage(
            channel,
            quota_pb2.GetUsageRequest.GROUP_BY_MODEL,
            quota_pb2.GetUsageRequest.GROUP_BY_TIER,
            quota_pb2.GetUsageRequest.GROUP_BY_DAY,
        )
        (whole,) = (await get_usage(channel)).rows
        nothing = await get_usage(channel, parent="tenants/nobody")

    assert [row.run for row in by_run.rows] == ["runs/2", "runs/1"]
    assert by_run.rows[1].usage.cost_usd_nanos == COST
    assert [row.usage.estimated for row in by_run.rows] == [True, False]
    assert {(row.model, row.tier) for row in by_all.rows} == {
        ("models/m0", "sub"),
        ("models/m0", "models/m0"),
    }
    assert {row.day.ToSeconds() % 86_400 for row in by_all.rows} == {0}
    assert by_all.rows[0].day.ToSeconds() <= time.time() < by_all.rows[0].day.ToSeconds() + 90_000
    assert whole.usage.calls == 3
    assert whole.usage.cost_usd_nanos == sum(r.usage.cost_usd_nanos for r in by_run.rows)
    assert not nothing.rows


async def test_a_report_ends_by_the_clock_that_calls_are_written_down_by(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database's may be ahead of this machine's: the last calls would be missing."""
    monkeypatch.setattr(SharedClock, "now", lambda _: time.time() + 60)
    async with gateway_channel(config, operator_key=KEY) as channel:
        await ask(GatewayServiceStub(channel), asked())
        (row,) = (await get_usage(channel)).rows

    assert row.usage.cost_usd_nanos == COST


async def test_usage_has_pages_and_a_range_of_time(config: Path, provider: PlayedModel) -> None:
    by_run = quota_pb2.GetUsageRequest.GROUP_BY_RUN
    async with gateway_channel(config, operator_key=KEY) as channel:
        for number in range(5):
            await ask(GatewayServiceStub(channel), asked(), run=f"runs/{number}")
        runs: list[str] = []
        token = ""
        while True:
            page = await get_usage(channel, by_run, page_size=2, page_token=token)
            runs += [row.run for row in page.rows]
            token = page.next_page_token
            if not token:
                break
        before = await get_usage(channel, by_run, end_s=time.time() - 60)
        first = await get_usage(channel, by_run, page_size=2)
        foreign = await error_of(get_usage(channel, page_token=first.next_page_token))

    assert runs == [f"runs/{number}" for number in range(5)]
    assert not before.rows
    assert violated_fields(foreign.status) == {"page_token"}


@pytest.mark.parametrize(
    ("fields", "violated"),
    [
        ({"parent": "acme"}, "parent"),
        ({"start_s": None}, "start_time"),
        ({"start_s": 2, "end_s": 1}, "end_time"),
        ({"group_by": [0]}, "group_by"),
        ({"group_by": [1, 1]}, "group_by"),
        ({"page_size": -1}, "page_size"),
    ],
)
async def test_a_report_that_cannot_be_made_is_refused(
    config: Path, fields: dict[str, Any], violated: str
) -> None:
    async with gateway_channel(config, operator_key=KEY) as channel:
        error = await error_of(get_usage(channel, **fields))

    assert violated_fields(error.status) == {violated}


@pytest.mark.parametrize(
    ("configured", "brought", "code", "reason"),
    [
        (KEY, "", "UNAUTHENTICATED", "UNAUTHENTICATED"),
        (KEY, "wrong", "UNAUTHENTICATED", "UNAUTHENTICATED"),
        (Secret(""), "", "PERMISSION_DENIED", "PERMISSION_DENIED"),
        (Secret(""), KEY.reveal(), "PERMISSION_DENIED", "PERMISSION_DENIED"),
    ],
)
async def test_only_the_operator_uses_the_quota_service(
    config: Path, configured: Secret, brought: str, code: str, reason: str
) -> None:
    """Every method asks for the key before it does or says anything else."""
    with_key = ((OPERATOR[0][0], brought), *metadata()) if brought else metadata()
    async with gateway_channel(config, operator_key=configured) as channel:
        quotas = QuotaServiceStub(channel)
        for call in (
            quotas.SetQuota(quota_pb2.SetQuotaRequest(), timeout=30, metadata=with_key),
            quotas.GetQuota(quota_pb2.GetQuotaRequest(), timeout=30, metadata=with_key),
            quotas.ListQuotas(quota_pb2.ListQuotasRequest(), timeout=30, metadata=with_key),
            quotas.DeleteQuota(quota_pb2.DeleteQuotaRequest(), timeout=30, metadata=with_key),
            quotas.GetUsage(quota_pb2.GetUsageRequest(), timeout=30, metadata=with_key),
        ):
            error = await error_of(call)

            assert error.code is grpc.StatusCode[code]
            assert error.reason_name == f"ERROR_REASON_{reason}"
