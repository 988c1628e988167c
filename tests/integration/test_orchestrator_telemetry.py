"""One trace a run, carried to the gateway and the sandbox; metrics that name no run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.gateway.v1 import gateway_service_pb2 as gateway_pb
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.support.eventually import eventually
from tests.support.fake_gateway import Context, FakeGateway, ScriptedError
from tests.support.orchestrator import orchestrator

CELL = "```repl\nFINAL(llm_query('a'))\n```"


class Traced(FakeGateway):
    """Keeps the trace that a call brings."""

    def __init__(self) -> None:
        super().__init__([CELL])
        self.traces: list[str] = []

    async def Generate(
        self, request: gateway_pb.GenerateRequest, context: Context
    ) -> gateway_pb.GenerateResponse:
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        self.traces.append(metadata["traceparent"].split("-")[1])
        return await super().Generate(request, context)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for module in ("orchestrator.runs.driver", "orchestrator.runs.sessions.code_steps"):
        monkeypatch.setattr(f"{module}.tracer", provider.get_tracer)
    return exporter


async def test_a_run_is_one_trace_with_a_span_a_cell(
    tmp_path: Path, spans: InMemorySpanExporter
) -> None:
    gateway = Traced()
    async with orchestrator(tmp_path, gateway=gateway) as stack:
        run, _ = await stack.ask(CELL)
        await eventually(lambda: len(spans.get_finished_spans()) == 2)

    by_name = {span.name: span for span in spans.get_finished_spans()}
    whole, cell = by_name["invoke_agent"], by_name["execute_tool python"]
    assert whole.context is not None
    assert cell.parent is not None
    assert cell.parent.span_id == whole.context.span_id
    assert gateway.traces == [f"{whole.context.trace_id:032x}"]
    assert whole.parent is None
    assert whole.attributes is not None
    assert cell.attributes is not None
    assert whole.attributes["fathom.run.id"] == run.name
    assert whole.attributes["status"] == "answered"
    assert (cell.attributes["fathom.turn"], cell.attributes["fathom.cell"]) == (1, 1)


async def test_runs_are_counted_by_how_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dashboards are built on these; a label by run would grow without end."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr("orchestrator.runs.meters.meter", provider.get_meter)
    async with orchestrator(tmp_path) as stack:
        await stack.ask(CELL)
        await stack.ask("```repl\nx = 1\n```", "so far", turns_max=1)
        await stack.ask(ScriptedError(grpc.StatusCode.UNAVAILABLE, 41))

    points = _points(reader)
    counts = {key: point.value for key, point in points.items() if hasattr(point, "value")}
    assert counts == {
        ("fathom.runs", "answered"): 1,
        ("fathom.runs", "partial"): 1,
        ("fathom.runs", "failed"): 1,
        ("fathom.runs.active",): 0,
        ("fathom.runs.waiting",): 0,
        ("fathom.limit.hit", "turns_max"): 1,
        ("fathom.subcalls",): 1,
    }
    assert ("fathom.queue.wait",) in points
    assert ("fathom.run.duration", "answered") in points


async def test_the_depth_of_the_queue_is_a_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas are added by it."""
    reader = InMemoryMetricReader()
    monkeypatch.setattr("orchestrator.runs.meters.meter", MeterProvider([reader]).get_meter)

    def waiting() -> int:
        point = _points(reader).get(("fathom.runs.waiting",))
        return point.value if point is not None else -1

    gateway = FakeGateway()
    gateway.hold.clear()
    async with orchestrator(tmp_path, gateway=gateway, runs_running_max=1) as stack:
        context = await stack.upload()
        for _ in range(3):
            await stack.create(context=context)

        await eventually(lambda: waiting() == 2)


def _points(reader: InMemoryMetricReader) -> dict[tuple[str, ...], Any]:
    """Return the points of all metrics, by name and labels."""
    data: Any = reader.get_metrics_data()
    return {
        (metric.name, *sorted(point.attributes.values())): point
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }
