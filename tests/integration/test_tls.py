"""TLS between services: who is served, and whom a channel trusts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.channel import open_channel
from common.config import ConfigError, ServerConfig
from common.healthcheck import main as healthcheck
from common.server import Server
from common.tls import channel_credentials
from tests.support.certificates import Authority, Pair


def settings(pair: Pair, **files: Any) -> ServerConfig:
    return ServerConfig(
        drain_s=1.0, tls_certificate_file=pair.certificate, tls_key_file=pair.key, **files
    )


@contextlib.asynccontextmanager
async def serving(config: ServerConfig) -> AsyncIterator[str]:
    """Serve health alone; yields the address."""
    async with Server("test", config) as server:
        yield server.address


async def is_served(address: str, caller: ServerConfig | None) -> bool:
    """Whether a service with such a configuration is served; None is one that knows no TLS."""
    credentials = None if caller is None else channel_credentials(caller)
    async with open_channel(address, credentials=credentials) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return False
    return True


async def test_a_server_with_a_certificate_serves_over_tls_alone(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path), Authority(tmp_path, "stranger")
    async with serving(settings(ours.pair("server"))) as address:
        assert await is_served(address, ServerConfig(tls_ca_file=ours.file))
        assert not await is_served(address, ServerConfig(tls_ca_file=theirs.file))
        assert not await is_served(address, None)


async def test_a_server_that_asks_for_certificates_serves_nobody_without(tmp_path: Path) -> None:
    """Nor with one of somebody else's authority."""
    ours, theirs = Authority(tmp_path), Authority(tmp_path, "stranger")
    config = settings(ours.pair("server"), tls_client_ca_file=ours.file)
    async with serving(config) as address:
        assert await is_served(address, settings(ours.pair("client"), tls_ca_file=ours.file))
        assert not await is_served(address, settings(theirs.pair("other"), tls_ca_file=ours.file))
        assert not await is_served(address, ServerConfig(tls_ca_file=ours.file))


async def test_a_callers_certificate_does_not_pass_for_a_services(tmp_path: Path) -> None:
    """Whoever may call a service could otherwise stand in its place, and be brought run tokens."""
    authority = Authority(tmp_path)
    caller = authority.pair("analyst", is_server=False)
    async with serving(settings(caller)) as address:
        assert not await is_served(address, ServerConfig(tls_ca_file=authority.file))


async def test_a_certificate_that_is_renewed_in_its_place_is_shown_from_then_on(
    tmp_path: Path,
) -> None:
    """Without a restart; and a damaged file leaves the one before in use."""
    before, after = Authority(tmp_path, "before"), Authority(tmp_path, "after")
    async with serving(settings(before.pair("server", file="shown"))) as address:
        assert await is_served(address, ServerConfig(tls_ca_file=before.file))

        renewed = after.pair("server", file="shown")
        assert await is_served(address, ServerConfig(tls_ca_file=after.file))

        renewed.certificate.write_text("damaged")
        assert await is_served(address, ServerConfig(tls_ca_file=after.file))


async def test_the_health_check_speaks_tls(tmp_path: Path) -> None:
    """Probes of Kubernetes know plaintext alone, so containers run this instead."""
    authority = Authority(tmp_path)
    pair = authority.pair("server")
    config = settings(pair, tls_client_ca_file=authority.file)
    shown = ["--tls-certificate-file", str(pair.certificate), "--tls-key-file", str(pair.key)]
    async with serving(config) as address:
        given = [address, "--timeout-s", "5", "--tls-ca-file", str(authority.file)]

        assert await _in_thread(healthcheck, [*given, *shown]) == 0
        assert await _in_thread(healthcheck, given) == 1


async def _in_thread(check: Any, arguments: list[str]) -> int:
    return int(await asyncio.to_thread(check, arguments))


def test_files_that_are_no_pair_are_named(tmp_path: Path) -> None:
    """gRPC itself would start, serve nobody, and not say why."""
    authority = Authority(tmp_path)
    one, other = authority.pair("one"), authority.pair("other")
    bad: list[dict[str, Any]] = [
        {"tls_certificate_file": one.certificate, "tls_key_file": other.key},
        {"tls_certificate_file": tmp_path / "none", "tls_key_file": one.key},
    ]
    for files in bad:
        with pytest.raises(ConfigError, match=str(one.key.parent)):
            channel_credentials(ServerConfig(tls_ca_file=authority.file, **files))
    with pytest.raises(ConfigError, match="no certificate"):
        channel_credentials(ServerConfig(tls_ca_file=one.key))


@pytest.mark.parametrize(
    "files", [{"tls_certificate_file"}, {"tls_key_file"}, {"tls_client_ca_file"}]
)
def test_half_of_a_setting_is_refused(files: set[str]) -> None:
    given: dict[str, Any] = dict.fromkeys(files, Path("x.pem"))

    with pytest.raises(ConfigError, match="tls_"):
        ServerConfig(**given)
