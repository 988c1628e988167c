"""Spans for services whose every call has several: for samplers and exporters what the SDK's own
are, at a third of their cost. Attributes are kept as they are given, since all of them come from
our own code; what the environment may limit is left to the SDK (`telemetry.py`).
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)
from opentelemetry.util._decorator import _agnosticcontextmanager
from opentelemetry.util.types import AnyValue, Attributes

_UNSET = Status(StatusCode.UNSET)
_FLAGS = tuple(
    TraceFlags(flags) for flags in range((TraceFlags.SAMPLED | TraceFlags.RANDOM_TRACE_ID) + 1)
)


class SpanProvider(trace.TracerProvider):
    """Makes tracers whose spans go to one processor once they have ended."""

    def __init__(self, settings: TracerProvider, processor: SpanProcessor | None) -> None:
        """`settings` has sampler, ids and resource as the environment says. Without a processor
        spans have their ids, for logs and the next service, and nothing is noted of them."""
        self.settings = settings
        """As given."""
        self.processor = processor
        """As given."""

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> trace.Tracer:
        """See `trace.TracerProvider`."""
        scope = InstrumentationScope(
            instrumenting_module_name, instrumenting_library_version, schema_url, attributes
        )
        return _Tracer(self.settings, self.processor, scope)

    def shutdown(self) -> None:
        """Send what has ended, and nothing from then on."""
        if self.processor is not None:
            self.processor.shutdown()


class _Tracer(trace.Tracer):
    def __init__(
        self,
        settings: TracerProvider,
        processor: SpanProcessor | None,
        scope: InstrumentationScope,
    ) -> None:
        self._sampler = settings.sampler
        self._ids = settings.id_generator
        self._resource = settings.resource
        self._processor = processor
        self._scope = scope

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> trace.Span:
        del record_exception, set_status_on_exception  # for spans that are used as blocks
        parent: SpanContext | None = trace.get_current_span(context).get_span_context()
        if parent is not None and parent.is_valid:
            trace_id, random = parent.trace_id, parent.trace_flags & TraceFlags.RANDOM_TRACE_ID
        else:
            parent, trace_id = None, self._ids.generate_trace_id()
            random = self._ids.is_trace_id_random() * TraceFlags.RANDOM_TRACE_ID
        result = self._sampler.should_sample(context, trace_id, name, kind, attributes, links)
        is_sampled = result.decision is Decision.RECORD_AND_SAMPLE
        sampled = TraceFlags.SAMPLED if is_sampled else TraceFlags.DEFAULT
        span_context = SpanContext(
            trace_id,
            self._ids.generate_span_id(),
            is_remote=False,
            trace_flags=_FLAGS[random | sampled],
            trace_state=result.trace_state,
        )
        if self._processor is None or result.decision is Decision.DROP:
            return NonRecordingSpan(span_context)
        return _Span(
            self._processor,
            name=name,
            context=span_context,
            parent=parent,
            resource=self._resource,
            attributes=dict(result.attributes or ()),
            links=links or (),
            kind=kind,
            status=_UNSET,
            start_time=start_time or time.time_ns(),
            instrumentation_scope=self._scope,
        )

    @_agnosticcontextmanager
    def start_as_current_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> Iterator[trace.Span]:
        span = self.start_span(name, context, kind, attributes, links, start_time)
        with trace.use_span(span, end_on_exit, record_exception, set_status_on_exception):
            yield span


class _Span(trace.Span, ReadableSpan):
    """A span under way, and once it has ended what the processor is given."""

    def __init__(
        self, processor: SpanProcessor, *, attributes: dict[str, Any], **facts: Any
    ) -> None:
        ReadableSpan.__init__(self, attributes=attributes, **facts)
        self._processor = processor
        self._noted = attributes
        self._happened: list[Event] = []

    def get_span_context(self) -> SpanContext:
        assert self._context is not None
        return self._context

    def is_recording(self) -> bool:
        return self._end_time is None

    def set_attribute(self, key: str, value: AnyValue) -> None:
        if self.is_recording():
            self._noted[key] = value

    def set_attributes(self, attributes: Mapping[str, AnyValue]) -> None:
        if self.is_recording():
            self._noted.update(attributes)

    def update_name(self, name: str) -> None:
        if self.is_recording():
            self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        if isinstance(status, StatusCode):
            status = Status(status, description)
        # As the specification has it: what went well stays so, and nothing is unset again.
        is_final = self._status.status_code is StatusCode.OK
        if self.is_recording() and not is_final and not status.is_unset:
            self._status = status

    def add_event(
        self, name: str, attributes: Attributes = None, timestamp: int | None = None
    ) -> None:
        if self.is_recording():
            self._happened.append(Event(name, attributes, timestamp))

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        kind = type(exception)
        is_builtin = kind.__module__ == "builtins"
        facts = {
            "exception.type": ("" if is_builtin else f"{kind.__module__}.") + kind.__qualname__,
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**facts, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        if self.is_recording():
            self._events = self._happened
            self._end_time = end_time or time.time_ns()
            self._processor.on_end(self)
