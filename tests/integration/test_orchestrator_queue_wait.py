"""The metric of how long runs wait for their begin, where a run is begun once and driven twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from tests.support.eventually import eventually
from tests.support.fake_gateway import FakeGateway
from tests.support.orchestrator import orchestrator


async def test_a_run_that_goes_on_elsewhere_has_waited_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every takeover would look like a queue as long as the runs that were taken over."""
    first, second = InMemoryMetricReader(), InMemoryMetricReader()
    gateway = FakeGateway(["```repl\nFINAL('done')\n```"] * 2)
    gateway.hold.clear()
    monkeypatch.setattr("orchestrator.runs.meters.meter", MeterProvider([first]).get_meter)
    async with orchestrator(tmp_path, gateway=gateway) as stack:
        run = await stack.create()
        await eventually(lambda: waits(first) == 1)
    gateway.hold.set()
    monkeypatch.setattr("orchestrator.runs.meters.meter", MeterProvider([second]).get_meter)
    async with orchestrator(tmp_path, gateway=gateway) as stack:
        await stack.watch(run)

        await eventually(lambda: "fathom.run.duration" in counts(second))
    assert waits(second) == 0


def waits(reader: InMemoryMetricReader) -> int:
    """Return how many waits were recorded."""
    return counts(reader).get("fathom.queue.wait", 0)


def counts(reader: InMemoryMetricReader) -> dict[str, int]:
    """Return how often each histogram was recorded to."""
    data = reader.get_metrics_data()
    return {
        metric.name: sum(getattr(point, "count", 0) for point in metric.data.data_points)
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
