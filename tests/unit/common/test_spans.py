"""The spans that services make, beside the SDK's own."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_OFF, DEFAULT_ON, Sampler
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from common.config import ServerConfig
from common.spans import SpanProvider
from common.telemetry import Telemetry

_RESOURCE = Resource({"service.name": "tested"})


def _ours(sampler: Sampler, exporter: InMemorySpanExporter) -> trace.TracerProvider:
    settings = TracerProvider(sampler=sampler, resource=_RESOURCE)
    return SpanProvider(settings, SimpleSpanProcessor(exporter))


def _sdks(sampler: Sampler, exporter: InMemorySpanExporter) -> trace.TracerProvider:
    provider = TracerProvider(sampler=sampler, resource=_RESOURCE)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def _use(provider: trace.TracerProvider) -> None:
    """Do everything with spans that services do."""
    tracer = provider.get_tracer("a.module", "1")
    parent = tracer.start_span("parent", kind=SpanKind.SERVER, attributes={"kept": 1, "new": "a"})
    parent.set_attribute("new", "b")
    parent.set_attributes({"list": ["x", "y"], "cost": 0.5})
    child = tracer.start_span("child", context=set_span_in_context(parent), kind=SpanKind.CLIENT)
    child.update_name("renamed")
    child.add_event("happened", {"why": "so"})
    child.set_status(Status(StatusCode.OK))
    child.set_status(Status(StatusCode.ERROR))
    child.end()
    parent.set_status(StatusCode.ERROR, "broken")
    parent.end()
    parent.set_attribute("late", True)
    parent.end()
    with pytest.raises(ValueError, match="wrong"), tracer.start_as_current_span("block") as block:
        assert trace.get_current_span() is block
        raise ValueError("wrong")


def _shown(span: ReadableSpan) -> dict[str, Any]:
    """Return all of a span that does not differ from run to run."""
    assert span.context is not None
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time <= span.end_time
    return {
        "name": span.name,
        "kind": span.kind,
        "attributes": {name: _listed(value) for name, value in (span.attributes or {}).items()},
        "events": [(event.name, set(event.attributes or {})) for event in span.events],
        "status": (span.status.status_code, span.status.description),
        "resource": span.resource,
        "scope": span.instrumentation_scope,
        "flags": span.context.trace_flags,
        "remote": span.context.is_remote,
        "has_parent": span.parent is not None,
    }


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_a_span_is_told_as_the_sdk_tells_it() -> None:
    """Collectors must not see a difference; the SDK's own spans are the measure."""
    told = []
    for make in (_ours, _sdks):
        exporter = InMemorySpanExporter()
        _use(make(DEFAULT_ON, exporter))
        told.append([_shown(span) for span in exporter.get_finished_spans()])

    ours, sdks = told
    assert [span["name"] for span in ours] == ["renamed", "parent", "block"]
    assert ours == sdks


def test_a_child_is_of_its_parents_trace() -> None:
    exporter = InMemorySpanExporter()
    _use(_ours(DEFAULT_ON, exporter))

    child, parent, block = exporter.get_finished_spans()
    assert child.parent == parent.context
    assert child.context.trace_id == parent.context.trace_id != block.context.trace_id


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
@pytest.mark.parametrize("sampler", [DEFAULT_ON, DEFAULT_OFF, ALWAYS_OFF])
def test_a_remote_parent_decides_as_it_does_with_the_sdk(sampler: Sampler, flags: int) -> None:
    """What is sampled is decided once for a trace, over all services, as its operator says."""
    state = TraceState([("vendor", "x")])
    remote = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(flags), trace_state=state)
    context = set_span_in_context(NonRecordingSpan(remote))
    seen = []
    for make in (_ours, _sdks):
        exporter = InMemorySpanExporter()
        span = make(sampler, exporter).get_tracer("a").start_span("of a remote", context)
        span.end()
        told = span.get_span_context()
        exported = len(exporter.get_finished_spans())
        seen.append((told.trace_id, told.trace_flags, told.trace_state, exported))

    ours, sdks = seen
    assert ours == sdks
    assert ours[0] == 7


def test_without_a_processor_spans_have_ids_and_note_nothing() -> None:
    """Logs and the next service need a trace's id, also where nobody collects traces."""
    tracer = SpanProvider(TracerProvider(sampler=DEFAULT_ON), None).get_tracer("a")

    with tracer.start_as_current_span("x", attributes={"a": 1}) as span:
        context = trace.get_current_span().get_span_context()

    assert context.is_valid
    assert context.trace_flags.sampled
    assert not span.is_recording()


@pytest.mark.parametrize(
    ("variable", "is_sdks"),
    [
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", True),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", True),
        ("OTEL_SDK_DISABLED", True),
        ("OTEL_TRACES_SAMPLER", False),
    ],
)
def test_limits_of_spans_are_the_sdks(variable: str, is_sdks: bool) -> None:
    """What an operator limits must hold, which the SDK's own spans see to."""
    telemetry = Telemetry("tested", ServerConfig(), {variable: "1"})

    assert isinstance(telemetry.traces, TracerProvider) is is_sdks
