"""What operators see of a run: one trace over three processes, metrics, logs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.acceptance.conftest import Installed
from tests.support.child_processes import end_with_parent
from tests.support.eventually import eventually

MARKER = "zanzibar-4711"
"""Stands in the context and in the answer, and must not stand in telemetry."""


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, trace_pb2.Span]] = []

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [(names["service.name"], span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


class Observed:
    """A run that was asked while everything was observed."""

    def __init__(self, collector: Collector, logs: Path, metrics: dict[str, str]) -> None:
        self.collector = collector
        self.logs = logs
        self.metrics = metrics

    def named(self, name: str) -> list[trace_pb2.Span]:
        return [span for _, span in self.collector.spans if span.name == name]


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, str]]:
    server = grpc.server(ThreadPoolExecutor(2))
    collector = Collector()
    add_to_server: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(scope="module")
def observed(
    installed: Installed,
    user_environ: dict[str, str],
    collector: tuple[Collector, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Observed:
    """Ask one question of services that send spans and offer metrics, then end them."""
    home = tmp_path_factory.mktemp("observed")
    environ = user_environ | {
        "FATHOM_HOME": str(home),
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector[1],
    }
    for service in ("orchestrator", "sandbox", "gateway"):
        prefix = f"FATHOM_{service.upper()}_METRICS"
        environ[f"{prefix}_LISTEN"] = "127.0.0.1:0"
        environ[f"{prefix}_ADDRESS_FILE"] = str(home / f"{service}.metrics")
    file = home / "notes.txt"
    file.write_text(f"The vault code of the attic is {MARKER}.\n" + "Filler.\n" * 500)
    command = [installed.fathom, "up", "--scripted-model", "--listen", "127.0.0.1:0"]
    with (home / "up.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=log, preexec_fn=end_with_parent
        )
    assert process.stdout is not None
    try:
        assert process.stdout.readline(), (home / "up.log").read_text()
        question = "What is the vault code of the attic?"
        ask = [installed.fathom, "ask", question, str(file)]
        answered = subprocess.run(ask, env=environ, capture_output=True, text=True, timeout=100)
        assert MARKER in answered.stdout, answered.stderr
        # The answer may be out before it is counted.
        counted = 'fathom_runs_total{status="answered"} 1.0'
        asyncio.run(eventually(lambda: counted in scraped(home / "orchestrator.metrics")))
        metrics = {name: scraped(home / f"{name}.metrics") for name in ("orchestrator", "gateway")}
        metrics["sandbox"] = scraped(home / "sandbox.metrics")
    finally:
        process.terminate()
        process.wait(timeout=60)
        process.stdout.close()
    return Observed(collector[0], home / "logs", metrics)


def scraped(address_file: Path) -> str:
    address = address_file.read_text().strip()
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as response:
        return str(response.read().decode())


def test_a_run_is_one_trace_over_three_processes(observed: Observed) -> None:
    """Whoever looks at a slow run sees its cells and model calls in one place."""
    [run] = observed.named("invoke_agent")

    of_run = {service for service, s in observed.collector.spans if s.trace_id == run.trace_id}

    assert of_run == {"fathom-orchestrator", "fathom-sandbox", "fathom-gateway"}


def test_sub_calls_hang_under_the_cell_that_made_them(observed: Observed) -> None:
    parents = {span.span_id: span.parent_span_id for _, span in observed.collector.spans}
    cells = {span.span_id for span in observed.named("execute_tool python")}
    [sub_call] = observed.named("chat scripted-sub")

    above, span_id = [], sub_call.span_id
    while span_id in parents:
        span_id = parents[span_id]
        above.append(span_id)

    assert cells & set(above)


def test_telemetry_holds_no_text_of_the_run(observed: Observed) -> None:
    spans = "".join(str(span) for _, span in observed.collector.spans)
    logs = "".join(path.read_text() for path in observed.logs.glob("*.log"))

    assert MARKER not in spans + logs + "".join(observed.metrics.values())


@pytest.mark.parametrize(
    ("service", "name"),
    [
        ("orchestrator", 'fathom_runs_total{status="answered"} 1.0'),
        ("orchestrator", "fathom_run_duration_seconds_count"),
        ("sandbox", "fathom_sandbox_exec_duration_seconds_count"),
        ("gateway", "gen_ai_client_token_usage"),
        ("gateway", "fathom_gateway_upstream_total"),
    ],
)
def test_each_service_offers_its_metrics_to_prometheus(
    observed: Observed, service: str, name: str
) -> None:
    assert name in observed.metrics[service]


def test_the_log_of_a_run_names_its_trace(observed: Observed) -> None:
    """From a line of the log to the trace, without guessing by the time."""
    [run] = observed.named("invoke_agent")
    lines = (observed.logs / "orchestrator.log").read_text().splitlines()

    [ended] = [each for each in map(json.loads, lines) if each["message"] == "a run has ended"]

    assert ended["trace_id"] == run.trace_id.hex()


def test_logs_are_one_json_object_a_line(observed: Observed) -> None:
    for service in ("orchestrator", "sandbox", "gateway"):
        for line in (observed.logs / f"{service}.log").read_text().splitlines():
            assert {"level", "logger", "message", "timestamp"} <= set(json.loads(line))
