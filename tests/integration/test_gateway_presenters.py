"""Run tokens that are brought by another service than the one they were given to."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub
from fathom_demo.scripted_model import SUB_MODEL, ScriptedModel

from common.config import Secret, ServerConfig
from common.errors import received
from common.run_token import (
    ORCHESTRATOR,
    RUN_TOKEN_METADATA,
    SANDBOX,
    RunTokenSigner,
)
from common.tls import channel_credentials
from common.token_keys import new_key_pair
from tests.support.certificates import Authority
from tests.support.gateway import config_file, gateway_channel, generate, metadata, token


@contextlib.asynccontextmanager
async def called_by(name: str, path: Path, **settings: Any) -> AsyncIterator[Any]:
    """Serve a gateway that asks for certificates; yields the stub of a service of that name."""
    authority = Authority(path)
    server, client = authority.pair("fathom-gateway"), authority.pair(name)
    shown = ServerConfig(
        tls_certificate_file=client.certificate,
        tls_key_file=client.key,
        tls_ca_file=authority.file,
    )
    async with ScriptedModel() as model:
        file = config_file(path / "c.toml", [model.base_url])
        file.write_text(file.read_text().replace("id-0", SUB_MODEL))
        files = {
            "tls_certificate_file": server.certificate,
            "tls_key_file": server.key,
            "tls_client_ca_file": authority.file,
        }
        async with gateway_channel(
            file, credentials=channel_credentials(shown), **files | settings
        ) as channel:
            yield GatewayServiceStub(channel)


async def test_a_token_is_good_for_the_service_it_was_given_to(tmp_path: Path) -> None:
    async with called_by(SANDBOX, tmp_path) as stub:
        answered = await stub.Generate(
            generate(), metadata=metadata(presenters=(SANDBOX,)), timeout=30
        )

    assert answered.generation.text


async def test_a_token_that_is_replayed_elsewhere_is_refused_and_written_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever takes over a sandbox cannot use what the orchestrator asks the root model with."""
    carried = metadata(presenters=(ORCHESTRATOR,))
    async with called_by(SANDBOX, tmp_path) as stub:
        with (
            caplog.at_level(logging.WARNING, logger="fathom.audit"),
            pytest.raises(grpc.aio.AioRpcError) as caught,
        ):
            await stub.Generate(generate(), metadata=carried, timeout=30)

    error = received(caught.value)
    assert error.code is grpc.StatusCode.UNAUTHENTICATED
    assert error.reason_name == "ERROR_REASON_UNAUTHENTICATED"
    assert error.metadata == {"problem": "replayed"}
    (record,) = [each for each in caplog.records if each.name == "fathom.audit"]
    assert record.__dict__["problem"] == "replayed"
    assert SANDBOX in record.__dict__["presenter"]
    assert carried[0][1] not in str(record.__dict__)


async def test_a_gateway_with_the_public_half_takes_tokens_of_the_private_one(
    tmp_path: Path,
) -> None:
    """And none that are signed with the secret that both sides had before."""
    private, public = map(Secret, new_key_pair())
    minted = RunTokenSigner(private).mint(token(presenters=(SANDBOX,)))
    async with called_by(SANDBOX, tmp_path, run_token_key=public) as stub:
        good = ((RUN_TOKEN_METADATA, minted),)
        assert (await stub.Generate(generate(), metadata=good, timeout=30)).generation.text

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(generate(), metadata=metadata(), timeout=30)

    assert received(caught.value).metadata == {"problem": "malformed"}


async def test_a_token_that_is_good_for_too_long_is_refused(tmp_path: Path) -> None:
    async with called_by(SANDBOX, tmp_path, run_token_lifetime_max_s=60.0) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(generate(), metadata=metadata(), timeout=30)

    assert received(caught.value).metadata == {"problem": "overlong"}
