"""What the gateway tells operators, and what it must never tell anybody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.gateway.v1 import gateway_service_pb2 as pb2
from fathom.gateway.v1 import gateway_service_pb2_grpc as pb2_grpc
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from common.run_token import Subtree
from llm_gateway import call_telemetry
from tests.support.eventually import eventually
from tests.support.gateway import (
    KEY,
    config_file,
    gateway_service,
    generate,
    metadata,
    stream_generate,
    wire_prompt,
)
from tests.support.played_model import PlayedModel, answers, fails

SECRETS = ("sk-provider-secret", KEY.reveal(), "a prompt in confidence", "an answer in confidence")


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Collects the gateway's spans."""
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(call_telemetry, "tracer", provider.get_tracer)
    return spans


async def spans_of(
    exporter: InMemorySpanExporter, provider: PlayedModel, path: Path, request: Any
) -> list[ReadableSpan]:
    async with gateway_service(config_file(path, [provider.base_url])) as stub:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await stub.Generate(request, metadata=metadata(), timeout=30)
    return list(exporter.get_finished_spans())


async def test_one_chat_span_covers_all_attempts(
    exporter: InMemorySpanExporter, tmp_path: Path
) -> None:
    request = generate(temperature=0.0)
    request.call.turn = 4
    request.call.batch_index = 2
    async with PlayedModel() as provider:
        provider.plan(fails(503))
        spans = await spans_of(exporter, provider, tmp_path / "c.toml", request)

    failed, answered, chat = spans
    assert chat.name == "chat id-0"
    assert chat.kind is SpanKind.CLIENT
    assert chat.status.status_code is StatusCode.OK
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "p0",
        "gen_ai.request.model": "id-0",
        "gen_ai.request.temperature": 0.0,
        "gen_ai.response.model": "served-model",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.conversation.id": "runs/1",
        "fathom.run.id": "runs/1",
        "fathom.turn": 4,
        "fathom.batch.index": 2,
        "fathom.tier": "sub",
        "fathom.cost.usd": 0.000016,
    }
    assert expected.items() <= dict(chat.attributes or {}).items()
    assert chat.context is not None
    for number, attempt in enumerate((failed, answered), start=1):
        assert attempt.parent is not None
        assert attempt.parent.span_id == chat.context.span_id
        assert (attempt.attributes or {})["fathom.attempt"] == number
    assert (failed.attributes or {})["http.response.status_code"] == 503
    assert answered.status.status_code is StatusCode.OK


async def test_what_a_child_run_asks_is_its_own_conversation(
    exporter: InMemorySpanExporter, tmp_path: Path
) -> None:
    above, own = Subtree(name="runs/2"), Subtree(name="runs/3")
    async with PlayedModel() as provider:
        async with gateway_service(config_file(tmp_path / "c.toml", [provider.base_url])) as stub:
            child = metadata(depth=2, subtrees=(above, own))
            await stub.Generate(generate(), metadata=child, timeout=30)

    attributes = exporter.get_finished_spans()[-1].attributes or {}
    assert attributes["gen_ai.conversation.id"] == "runs/3"
    assert attributes["fathom.run.id"] == "runs/1"


async def test_a_streamed_call_says_when_its_first_piece_came(
    exporter: InMemorySpanExporter, tmp_path: Path
) -> None:
    async with PlayedModel() as provider:
        path = config_file(tmp_path / "c.toml", [provider.base_url])
        async with gateway_service(path) as stub:
            call = stub.StreamGenerate(stream_generate(), metadata=metadata(), timeout=30)
            async for _ in call:
                pass

    attributes = dict(exporter.get_finished_spans()[-1].attributes or {})
    assert attributes["gen_ai.request.stream"] is True
    first_s = attributes["gen_ai.response.time_to_first_chunk"]
    assert isinstance(first_s, float)
    assert 0 < first_s < 10


async def test_a_failed_call_is_a_failed_span(
    exporter: InMemorySpanExporter, tmp_path: Path
) -> None:
    async with PlayedModel(fails(400)) as provider:
        spans = await spans_of(exporter, provider, tmp_path / "c.toml", generate())

    chat = spans[-1]
    assert chat.status.status_code is StatusCode.ERROR
    assert (chat.attributes or {})["error.type"] == "ERROR_REASON_PROVIDER_REJECTED"


async def test_spans_hold_no_prompt_no_answer_and_no_key(
    exporter: InMemorySpanExporter, tmp_path: Path
) -> None:
    async with PlayedModel(answers(SECRETS[3])) as provider:
        provider.plan(fails(500, {"message": " ".join(SECRETS)}))
        spans = await spans_of(exporter, provider, tmp_path / "c.toml", generate(SECRETS[2]))

    told = "".join(span.to_json() for span in spans)
    assert len(spans) == 3
    assert not [secret for secret in SECRETS if secret in told]


@contextlib.asynccontextmanager
async def process(
    path: Path, folder: Path, **environ: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the gateway as its own process, with Prometheus; terminate it at the end."""
    address = folder / "address"
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "llm_gateway",
        stderr=asyncio.subprocess.PIPE,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "FATHOM_GATEWAY_CONFIG": str(path),
            "FATHOM_GATEWAY_LISTEN": "127.0.0.1:0",
            "FATHOM_GATEWAY_ADDRESS_FILE": str(address),
            "FATHOM_GATEWAY_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/gateway.sqlite",
            "FATHOM_GATEWAY_LEDGER_ANSWERS": str(folder / "answers"),
            "FATHOM_GATEWAY_RUN_TOKEN_KEY": KEY.reveal(),
            "PROVIDER_KEY": SECRETS[0],
        }
        | environ,
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


async def test_the_log_of_a_process_holds_no_prompt_no_answer_and_no_key(tmp_path: Path) -> None:
    """At DEBUG, where libraries log whole requests, through success, faults and a drain."""
    metrics = tmp_path / "metrics"
    settings = {
        "FATHOM_GATEWAY_LOG_LEVEL": "DEBUG",
        "OPENAI_LOG": "debug",
        "FATHOM_GATEWAY_METRICS_LISTEN": "127.0.0.1:0",
        "FATHOM_GATEWAY_METRICS_ADDRESS_FILE": str(metrics),
    }
    async with PlayedModel(answers(SECRETS[3])) as provider:
        provider.plan(fails(401, {"message": f"incorrect key {SECRETS[0]}"}))
        path = config_file(tmp_path / "c.toml", [provider.base_url])
        async with process(path, tmp_path, **settings) as running:
            assert running.stderr is not None
            log = asyncio.create_task(running.stderr.read())
            await eventually((tmp_path / "address").exists)
            async with grpc.aio.insecure_channel((tmp_path / "address").read_text()) as channel:
                told = await _talk(pb2_grpc.GatewayServiceStub(channel))
            told += await _scrape(metrics.read_text())
            running.terminate()
            told += (await log).decode()
            await running.wait()

    assert running.returncode == 0
    assert '"fathom-gateway has stopped"' in told
    assert "exchange failed" in told
    for name in ("fathom_gateway_upstream", "fathom_cost_usd", "gen_ai_client_operation_duration"):
        assert name in told
    assert not [secret for secret in SECRETS if secret in told]


async def _talk(stub: Any) -> str:
    """Make calls that end in every way; return what the errors say."""
    told = ""
    for carried in (metadata(), metadata(), metadata(tokens_max=1), ()):
        call = stub.Generate(generate(SECRETS[2]), metadata=carried, timeout=30)
        try:
            assert (await call).generation.text == SECRETS[3]
        except grpc.aio.AioRpcError as error:
            told += f"{error.debug_error_string()} {error.trailing_metadata()}"
    item = pb2.BatchItem(index=0, prompt=wire_prompt(SECRETS[2]))
    requests = iter(
        [
            pb2.BatchGenerateRequest(start=pb2.BatchStart()),
            pb2.BatchGenerateRequest(item=item),
        ]
    )
    async for response in stub.BatchGenerate(requests, metadata=metadata(), timeout=30):
        assert response.generation.text == SECRETS[3]
    return told


async def _scrape(address: str) -> str:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return text


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"FATHOM_GATEWAY_RUN_TOKEN_KEY": ""}, "FATHOM_GATEWAY_RUN_TOKEN_KEY"),
        ({"FATHOM_GATEWAY_RUN_TOKEN_KEY": "short"}, "32 bytes"),
        ({"PROVIDER_KEY": ""}, "PROVIDER_KEY is not set"),
        ({"FATHOM_GATEWAY_CONFIG": "/nowhere.toml"}, "cannot be read"),
        ({"FATHOM_GATEWAY_LISTENS": "x"}, "there is no such setting"),
    ],
    ids=["no key", "short key", "no provider key", "no file", "typo"],
)
async def test_a_process_that_is_not_configured_refuses_to_start(
    tmp_path: Path, environ: dict[str, str], expected: str
) -> None:
    """Fail closed, with one line that names the setting."""
    path = config_file(tmp_path / "c.toml", ["http://127.0.0.1:1/v1"])

    async with process(path, tmp_path, **environ) as running:
        _, log = await running.communicate()

    last_line = log.decode().strip().splitlines()[-1]
    assert running.returncode != 0
    assert last_line.startswith("fathom-gateway: ")
    assert expected in last_line


@pytest.mark.parametrize("newer", [False, True])
async def test_the_newer_metric_names_are_told_where_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, newer: bool
) -> None:
    """Older tools read the older names, which are always there."""
    reader = InMemoryMetricReader()
    metrics = MeterProvider(metric_readers=[reader])
    monkeypatch.setattr(call_telemetry, "meter", metrics.get_meter)
    async with PlayedModel(answers("yes")) as provider:
        path = config_file(tmp_path / "gateway.toml", [provider.base_url])
        async with gateway_service(path, newer_metric_names=newer) as stub:
            await stub.Generate(generate(), metadata=metadata(), timeout=30)
    data = reader.get_metrics_data()
    assert data is not None
    told = {m.name for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}
    assert {"gen_ai.client.operation.duration", "gen_ai.client.token.usage"} <= told
    names = {
        "gen_ai.client.inference.duration",
        "gen_ai.client.inference.usage.input_tokens",
        "gen_ai.client.inference.usage.output_tokens",
    }
    assert told & names == (names if newer else set())
