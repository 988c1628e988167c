"""What the path of a call makes of deployments that fail, hang or refuse."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from common.errors import ServiceError
from llm_gateway import call_telemetry, upstreams
from llm_gateway.failures import FailureKind, ProviderError
from tests.support.gateway import completion, deployment, endpoint
from tests.support.gateway_bench import Bench, Held

SERVER_ERROR = ProviderError(FailureKind.SERVER_ERROR, "HTTP 500", http_status=500)


async def test_a_deployment_with_a_refused_credential_is_passed_by() -> None:
    bench = Bench(deployment("a"), deployment("b", provider=endpoint("other")))
    bench.provider.plan(ProviderError(FailureKind.CREDENTIAL, "HTTP 401", http_status=401))

    assert (await bench.ask()).model == "b"
    assert bench.clock.slept == []


async def test_calls_stay_away_from_a_deployment_that_keeps_failing() -> None:
    """The verdicts of exchanges reach the breaker: the third call does not ask `a` at all."""
    bench = Bench(
        deployment("a"), deployment("b", provider=endpoint("q")), attempts_per_deployment_max=3
    )
    bench.provider.plan(*[SERVER_ERROR] * 3, completion(), SERVER_ERROR, SERVER_ERROR)

    answers = [await bench.ask() for _ in range(3)]

    assert [name for name, _ in bench.provider.asked] == ["a"] * 3 + ["b"] + ["a"] * 2 + ["b", "b"]
    assert [answer.attempts for answer in answers] == [4, 3, 1]


@pytest.mark.parametrize("kind", [FailureKind.RATE_LIMITED, FailureKind.REJECTED])
async def test_a_refusal_is_no_sign_of_ill_health(kind: FailureKind) -> None:
    """One caller's bad requests must not take a deployment away from the others."""
    bench = Bench(deployment("a"), attempts_max=1)
    bench.provider.plan(*[ProviderError(kind, "refused", http_status=400)] * 5)
    for _ in range(5):
        with pytest.raises(ServiceError):
            await bench.ask()

    assert (await bench.ask()).attempts == 1


async def is_left_alone_when_hung(bench: Bench) -> bool:
    """Ask somebody who never answers, for a moment each time; returns how the breaker is then."""
    breaker = bench.gateway.offering.upstreams["a"].breaker
    bench.provider.plan(*[Held(completion())] * 50)
    asked = 0
    # On a busy machine a moment may be over before anybody is asked.
    while len(bench.provider.asked) < 10 and asked < 50 and not breaker.is_open:
        asked += 1
        deadline = asyncio.get_running_loop().time() + 0.01
        with pytest.raises(ServiceError):
            await bench.ask(deadline=deadline)
        await asyncio.sleep(0)
    await bench.gateway.close()
    return breaker.is_open


@pytest.mark.parametrize(("hung_s_min", "is_left_alone"), [(0.0, True), (10.0, False)])
async def test_silence_that_outlasts_its_callers_opens_the_breaker(
    monkeypatch: pytest.MonkeyPatch, hung_s_min: float, is_left_alone: bool
) -> None:
    """A provider that hangs for longer than anybody waits fails no exchange by itself. A caller in
    a hurry is no proof of that: the silence must be long in itself."""
    monkeypatch.setattr(upstreams, "_HUNG_S_MIN", hung_s_min)

    assert await is_left_alone_when_hung(Bench(deployment("a"), drain_s=0.0)) is is_left_alone


async def test_silence_must_be_longer_than_what_is_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow model is no broken one, even where its callers are impatient."""
    monkeypatch.setattr(upstreams, "_HUNG_S_MIN", 0.0)
    bench = Bench(deployment("a"), drain_s=0.0)
    load = bench.gateway.offering.upstreams["a"].load
    for _ in range(20):
        load.begin()
        load.end(30.0, is_good=True)

    assert not await is_left_alone_when_hung(bench)


async def test_callers_who_lose_interest_say_nothing_of_the_provider(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that is cancelled drops all its calls at once, to a provider that is well."""
    monkeypatch.setattr(upstreams, "_HUNG_S_MIN", 0.0)
    bench = Bench(deployment("a"), drain_s=0.0)
    for _ in range(5):
        held = Held(completion())
        bench.provider.plan(held)
        asking = asyncio.create_task(bench.ask())
        await held.reached.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await bench.gateway.close()

    assert not bench.gateway.offering.upstreams["a"].breaker.is_open


async def test_operators_are_told_who_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A gauge that is 1 meanwhile, and a log record at either end."""
    metrics = InMemoryMetricReader()
    monkeypatch.setattr(call_telemetry, "meter", MeterProvider([metrics]).get_meter)
    bench = Bench(deployment("a"), attempts_max=1)
    bench.provider.plan(*[SERVER_ERROR] * 5)
    for _ in range(5):
        with pytest.raises(ServiceError):
            await bench.ask()
    while_open = _gauge(metrics, "fathom.gateway.breaker.open")
    # As if its time had passed: the next call is the probe.
    bench.gateway.offering.upstreams["a"].breaker._not_before = 0.0
    await bench.ask()

    assert while_open == {"a": 1}
    assert _gauge(metrics, "fathom.gateway.breaker.open") == {"a": 0}
    told = [record.getMessage() for record in caplog.records]
    assert told.count("a deployment is left alone") == 1
    assert told.count("a deployment is asked again") == 1


def _gauge(metrics: InMemoryMetricReader, name: str) -> dict[Any, Any]:
    data = metrics.get_metrics_data()
    assert data is not None
    return {
        (point.attributes or {})["model"]: point.value
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
        if isinstance(point, NumberDataPoint)
    }
