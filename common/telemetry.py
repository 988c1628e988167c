"""OpenTelemetry and logs for a service: traces and metrics by OTLP where the environment names a
collector, metrics for Prometheus where an address is configured, JSON logs with trace ids.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from wsgiref.simple_server import WSGIServer

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Tracer
from prometheus_client import start_http_server
from pythonjsonlogger.json import JsonFormatter

from common.addresses import write_address
from common.config import ServerConfig, split_address
from common.spans import SpanProvider

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_LEFT_TO_SDK = (
    "OTEL_ATTRIBUTE_",
    "OTEL_EVENT_",
    "OTEL_LINK_",
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED",
    "OTEL_SPAN_",
    "OTEL_SDK_DISABLED",
)
"""Variables, by what they begin with, about spans that the SDK makes."""
_SPANS_MAX = 128
"""Sent at a time: putting so many into bytes keeps calls waiting for a millisecond or two."""


def tracer(name: str) -> Tracer:
    """Return a tracer; spans started before Telemetry is entered go nowhere."""
    return trace.get_tracer(name)


def meter(name: str) -> Meter:
    """Return a meter; instruments made before Telemetry is entered connect to it then."""
    return metrics.get_meter(name)


class Telemetry:
    """The process's telemetry; a context manager that flushes at the end. One a process."""

    def __init__(self, service_name: str, config: ServerConfig, environ: Mapping[str, str]) -> None:
        resource = Resource.create({"service.name": service_name})
        self._config = config
        processor = None
        if _ENDPOINT in environ or "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" in environ:
            processor = BatchSpanProcessor(OTLPSpanExporter(), max_export_batch_size=_SPANS_MAX)
        self.traces = _tracer_provider(resource, processor, environ)
        """Makes the spans."""
        readers: list[MetricReader] = []
        if _ENDPOINT in environ or "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT" in environ:
            readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
        if config.metrics_listen:
            readers.append(PrometheusMetricReader(scope_info_enabled=False))
        # Examples of measurements would cost as much as the measurements.
        no_examples = AlwaysOffExemplarFilter()
        self._metrics = MeterProvider(readers, resource=resource, exemplar_filter=no_examples)
        self._is_measured = bool(readers)
        self._endpoint: WSGIServer | None = None

    def __enter__(self) -> Self:
        trace.set_tracer_provider(self.traces)
        if self._is_measured:  # else instruments lead nowhere, which costs nothing
            metrics.set_meter_provider(self._metrics)
        if self._config.metrics_listen:
            host, port = split_address(self._config.metrics_listen)
            self._endpoint, _ = start_http_server(port, host.strip("[]"))
            if self._config.metrics_address_file is not None:
                write_address(
                    self._config.metrics_address_file, f"{host}:{self._endpoint.server_port}"
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._endpoint is not None:
            self._endpoint.shutdown()
            self._endpoint.server_close()
        self._metrics.shutdown()
        self.traces.shutdown()


def _tracer_provider(
    resource: Resource, processor: SpanProcessor | None, environ: Mapping[str, str]
) -> SpanProvider | TracerProvider:
    sdk = TracerProvider(resource=resource)
    if not any(name.startswith(_LEFT_TO_SDK) for name in environ):
        return SpanProvider(sdk, processor)
    if processor is not None:
        sdk.add_span_processor(processor)
    return sdk


class _TraceIds(logging.Filter):
    """Adds the ids of the current span to each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            record.trace_id = trace.format_trace_id(span.trace_id)
            record.span_id = trace.format_span_id(span.span_id)
        return True


def log_to_stderr(level: str) -> None:
    """Write every log record of the process to stderr, one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_TraceIds())
    handler.setFormatter(
        JsonFormatter(
            "%(levelname)s %(name)s %(message)s",
            timestamp=True,
            rename_fields={"levelname": "level", "name": "logger"},
            static_fields={"pid": os.getpid()},
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
