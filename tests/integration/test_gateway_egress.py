"""The egress guard in the service: what the provider gets, what the caller and the traces see."""

from __future__ import annotations

import contextlib
from pathlib import Path

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from common.errors import received
from llm_gateway import call_telemetry
from tests.support.gateway import config_file, gateway_service, generate, metadata
from tests.support.played_model import PlayedModel, answers

KEY = "AKIA" + "Q" * 16
"""Put together, so that no scanner takes it for a leak."""


def with_egress(path: Path, base_url: str, rules: str) -> Path:
    config_file(path, [base_url])
    path.write_text(f"{path.read_text()}\n{rules}")
    return path


async def test_a_redacted_key_never_reaches_the_provider(tmp_path: Path) -> None:
    """The point of the guard, seen from the other end of the wire."""
    async with PlayedModel() as provider:
        path = with_egress(tmp_path / "c.toml", provider.base_url, '[egress]\nsecrets = "redact"')
        async with gateway_service(path) as stub:
            await stub.Generate(generate(f"the key is {KEY}."), metadata=metadata(), timeout=30)

    sent = provider.bodies[0]["messages"][0]["content"]
    assert sent == "the key is [redacted: aws_access_key]."


async def test_a_refused_prompt_is_never_sent_and_costs_nothing(tmp_path: Path) -> None:
    """The error tells message and kind, so that the caller can mend it without a log."""
    async with PlayedModel() as provider:
        rules = '[egress.tenants.acme]\nsecrets = "refuse"'
        path = with_egress(tmp_path / "c.toml", provider.base_url, rules)
        async with gateway_service(path) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Generate(generate(KEY), metadata=metadata(), timeout=30)
            await stub.Generate(generate(KEY), metadata=metadata(tenant="other"), timeout=30)

    error = received(refused.value)
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason_name == "ERROR_REASON_EGRESS_REFUSED"
    assert error.metadata == {"kind": "aws_access_key", "field": "prompt.messages[0]"}
    assert KEY not in error.message
    assert len(provider.bodies) == 1


@pytest.mark.parametrize("captured", [True, False])
async def test_content_is_in_traces_only_for_tenants_that_have_it_captured(
    captured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traces leave the trust boundary; content goes along on a tenant's own word alone."""
    spans = InMemorySpanExporter()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(call_telemetry, "tracer", tracing.get_tracer)
    async with PlayedModel(answers("an answer in confidence")) as provider:
        rules = "[egress.tenants.acme]\ncaptures_content = true"
        path = with_egress(tmp_path / "c.toml", provider.base_url, rules)
        tenant = "acme" if captured else "other"
        async with gateway_service(path) as stub:
            asked = generate("a prompt in confidence")
            await stub.Generate(asked, metadata=metadata(tenant=tenant), timeout=30)

    chat = dict(spans.get_finished_spans()[-1].attributes or {})
    expected = ("user: a prompt in confidence", "an answer in confidence")
    values = (chat.get("input.value"), chat.get("output.value"))
    assert values == (expected if captured else (None, None))


@pytest.mark.parametrize(("reaction", "captured"), [("redact", True), ("refuse", False)])
async def test_a_secret_that_must_not_leave_is_in_no_trace(
    reaction: str, captured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is captured is what left: traces go to a collector, which is outside as well."""
    spans = InMemorySpanExporter()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(call_telemetry, "tracer", tracing.get_tracer)
    async with PlayedModel() as provider:
        rules = f'[egress]\ncaptures_content = true\nsecrets = "{reaction}"'
        path = with_egress(tmp_path / "c.toml", provider.base_url, rules)
        async with gateway_service(path) as stub:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await stub.Generate(generate(KEY), metadata=metadata(), timeout=30)

    chat = dict(spans.get_finished_spans()[-1].attributes or {})
    expected = "user: [redacted: aws_access_key]" if captured else None
    assert chat.get("input.value") == expected
    assert KEY not in "".join(span.to_json() for span in spans.get_finished_spans())
