"""Keys and certificates: where they come from, how they change, and that nobody is told them."""

from __future__ import annotations

import logging
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from common.config import Secret
from llm_gateway import call_telemetry, reload
from llm_gateway.catalog import Provider
from llm_gateway.failures import FailureKind, ProviderError
from llm_gateway.openai_provider import OpenAIProvider
from llm_gateway.tls import Tls
from tests.support.eventually import eventually
from tests.support.gateway import (
    config_file,
    deployment,
    endpoint,
    generate,
    metadata,
    opened_gateway,
    prompt,
)
from tests.support.played_model import PlayedModel, fails


def keyed_config(folder: Path, base_url: str) -> Path:
    """Write a configuration whose key is in the file `key` of a folder of secrets."""
    path = config_file(folder / "c.toml", [base_url])
    text = path.read_text().replace('api_key_env = "PROVIDER_KEY"', 'api_key_file = "key"')
    path.write_text(f'secrets_dir = "{folder}"\n{text}')
    return path


async def keys_used(stub: Any, provider: PlayedModel) -> str:
    await stub.Generate(generate(), metadata=metadata(), timeout=30)
    return provider.headers[-1]["authorization"]


async def test_a_key_that_changes_in_its_file_is_used_without_a_restart(tmp_path: Path) -> None:
    """Keys are rotated by whoever mounts them; the gateway is not told."""
    (tmp_path / "key").write_text("sk-first\n")
    async with PlayedModel() as provider:
        path = keyed_config(tmp_path, provider.base_url)
        async with opened_gateway(path, credentials_check_s=0.02) as (stub, _):
            assert await keys_used(stub, provider) == "Bearer sk-first"
            (tmp_path / "key").write_text("sk-second\n")

            async def is_new() -> bool:
                return await keys_used(stub, provider) == "Bearer sk-second"

            await eventually(is_new)


@pytest.mark.parametrize("spoil", ["empty", "gone", "two lines"])
async def test_a_key_file_that_is_no_good_leaves_the_key_before_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    """A file is empty for a moment while it is written."""
    key = tmp_path / "key"
    key.write_text("sk-first")
    async with PlayedModel() as provider:
        path = keyed_config(tmp_path, provider.base_url)
        async with opened_gateway(path, credentials_check_s=0.02) as (stub, _):
            with caplog.at_level(logging.ERROR, "llm_gateway.reload"):
                if spoil == "gone":
                    key.unlink()
                else:
                    key.write_text("" if spoil == "empty" else "sk-second\nand more")
                await eventually(lambda: bool(caplog.records))

            assert await keys_used(stub, provider) == "Bearer sk-first"
    assert "sk-second" not in str(caplog.records[0].__dict__)


async def test_a_changed_key_file_does_not_bring_in_the_rest_of_a_changed_configuration(
    tmp_path: Path,
) -> None:
    """An edit that nobody has signalled yet may be half done."""
    (tmp_path / "key").write_text("sk-first")
    async with PlayedModel() as provider:
        path = keyed_config(tmp_path, provider.base_url)
        async with opened_gateway(path, credentials_check_s=0.02) as (stub, opened):
            path.write_text("[[")
            (tmp_path / "key").write_text("sk-second")

            async def is_new() -> bool:
                return await keys_used(stub, provider) == "Bearer sk-second"

            await eventually(is_new)
            assert [*opened.gateway.catalog.deployments] == ["m0"]


def test_nothing_that_is_printed_shows_a_credential() -> None:
    """What is logged by accident is logged by its repr."""
    of = endpoint(api_key=Secret("sk-secret"), proxy=Secret("http://user:proxy-secret@127.0.0.1:1"))

    shown = f"{of!r} {of} {deployment(provider=of)!r} {vars(OpenAIProvider(of))!r}"

    assert "sk-secret" not in shown
    assert "proxy-secret" not in shown


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority and two certificates of it, one for a server, one for a client."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        command = ["openssl", *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        *("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem"),
        *("-days", "2", "-subj", "/CN=authority"),
    )
    for name in ("server", "client"):
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", "csr", "-subj", f"/CN={name}")
        (folder / "extensions").write_text("subjectAltName=IP:127.0.0.1")
        openssl(
            *("x509", "-req", "-in", "csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-days", "2", "-extfile", "extensions", "-out", f"{name}.pem"),
        )
    return folder


@asynccontextmanager
async def tls_server(certificates: Path, *, asks_client: bool = False) -> AsyncIterator[str]:
    """Serve answers over TLS; yields the base URL."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.pem")
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED if asks_client else ssl.CERT_NONE
    async with PlayedModel(tls=context) as serving:
        yield serving.base_url


async def text_from(of: Provider) -> str:
    provider = OpenAIProvider(of)
    try:
        return (await provider.complete(deployment(), prompt(), 50, None)).text
    finally:
        await provider.close()


async def test_an_endpoint_is_recognised_by_an_authority_of_ones_own(certificates: Path) -> None:
    async with tls_server(certificates) as url:
        trusted = Tls(ca_file=certificates / "ca.pem").read()
        assert await text_from(endpoint(base_url=url, tls=trusted)) == "hello there"

        with pytest.raises(ProviderError) as caught:
            await text_from(endpoint(base_url=url))
    assert caught.value.kind is FailureKind.UNREACHABLE


@pytest.mark.parametrize(
    "keys",
    [
        """tls_ca_file = "ca.pem"
        tls_client_cert_file = "client.pem"
        tls_client_key_file = "client.key"
        """,
        "tls_verify = false",
    ],
    ids=["certificates", "unverified"],
)
async def test_the_configuration_file_says_how_an_endpoint_is_recognised(
    certificates: Path, tmp_path: Path, keys: str
) -> None:
    """The whole way from the file to the connection."""
    async with tls_server(certificates, asks_client="client" in keys) as url:
        path = config_file(tmp_path / "c.toml", [url])
        text = path.read_text().replace("timeout_s = 5", keys)
        path.write_text(f'secrets_dir = "{certificates}"\n{text}')
        async with opened_gateway(path) as (stub, _):
            answer = await stub.Generate(generate(), metadata=metadata(), timeout=30)

    assert answer.generation.text == "hello there"


async def test_verification_can_be_turned_off(certificates: Path) -> None:
    async with tls_server(certificates) as url:
        blind = Tls(is_verified=False).read()

        assert await text_from(endpoint(base_url=url, tls=blind)) == "hello there"


async def test_an_endpoint_that_asks_for_a_certificate_gets_the_gateways(
    certificates: Path,
) -> None:
    authority = certificates / "ca.pem"
    known = Tls(
        ca_file=authority,
        client_cert_file=certificates / "client.pem",
        client_key_file=certificates / "client.key",
    ).read()
    async with tls_server(certificates, asks_client=True) as url:
        assert await text_from(endpoint(base_url=url, tls=known)) == "hello there"

        with pytest.raises(ProviderError):
            await text_from(endpoint(base_url=url, tls=Tls(ca_file=authority).read()))


async def test_a_certificate_that_is_renewed_in_its_place_is_noticed(
    certificates: Path, tmp_path: Path
) -> None:
    """Its name stays the same, so only what it holds can tell."""
    file = tmp_path / "ca.pem"
    file.write_bytes((certificates / "ca.pem").read_bytes())
    before = Tls(ca_file=file).read()
    assert before.read() is before

    file.write_bytes((certificates / "server.pem").read_bytes())

    assert before.read() != before


@pytest.mark.parametrize("by_environment", [False, True])
async def test_an_endpoint_is_reached_through_its_proxy(
    monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    """The proxy sees the whole URL and the credential for it; the endpoint itself is never met."""
    seen: dict[str, str] = {}

    async def forward(request: web.Request) -> web.StreamResponse:
        seen["url"] = str(request.url)
        seen["authorization"] = request.headers.get("proxy-authorization", "")
        message = {"message": {"content": "by proxy"}, "finish_reason": "stop"}
        return web.json_response({"choices": [message]})

    application = web.Application()
    application.router.add_route("*", "/{any:.*}", forward)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        proxy = Secret(f"http://user:password@127.0.0.1:{runner.addresses[0][1]}")
        of = endpoint(base_url="http://model.invalid/v1", proxy=proxy)
        if by_environment:
            monkeypatch.setenv("HTTP_PROXY", proxy.reveal())
            of = endpoint(base_url="http://model.invalid/v1")
        assert await text_from(of) == "by proxy"
    finally:
        await runner.cleanup()

    assert seen["url"] == "http://model.invalid/v1/chat/completions"
    assert seen["authorization"] == "Basic dXNlcjpwYXNzd29yZA=="


async def test_no_key_is_told_to_anybody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In no log at its most talkative, no span, no metric and no error, also while keys change
    and a provider echoes them."""
    spans, metrics = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([metrics])
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(call_telemetry, "tracer", tracers.get_tracer)
    for module in (call_telemetry, reload):
        monkeypatch.setattr(module, "meter", meters.get_meter)
    secrets = ("sk-first-secret", "sk-second-secret", "proxy-secret")
    monkeypatch.setenv("PROXY", f"http://user:{secrets[2]}@127.0.0.1:1")
    (tmp_path / "key").write_text(secrets[0])
    told = ""
    with caplog.at_level(logging.DEBUG):
        async with PlayedModel() as provider:
            provider.usual = fails(401, {"message": f"bad key {secrets[0]} or {secrets[1]}"})
            path = keyed_config(tmp_path, provider.base_url)
            async with opened_gateway(path, credentials_check_s=0.02) as (stub, opened):
                for _ in range(2):
                    told += await _failure(stub)
                    (tmp_path / "key").write_text(secrets[1])
                    await eventually(lambda: "taken over" in caplog.text)
                path.write_text(path.read_text().replace("timeout_s", 'proxy_env = "PROXY"\n#'))
                assert await opened.reloads.reload()
                told += await _failure(stub)
                path.write_text(f'api_key = "x"\n{path.read_text()}')
                assert not await opened.reloads.reload()
                told += repr(opened.gateway.catalog)

    told += "".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    told += "".join(span.to_json() for span in spans.get_finished_spans())
    data = metrics.get_metrics_data()
    told += "" if data is None else data.to_json()
    for fact in ("bad key", "ERROR_REASON_PROVIDER", "is refused", "chat.attempt", "reloads"):
        assert (fact in told) is (fact != "bad key"), fact
    assert not [secret for secret in secrets if secret in told]


async def _failure(stub: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(generate(), metadata=metadata(), timeout=30)
    return f"{caught.value!r} {caught.value.trailing_metadata()}"
