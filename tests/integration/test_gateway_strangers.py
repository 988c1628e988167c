"""Who has no token is refused by the gateway before a request is read: one may have 32 MiB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.gateway.v1 import gateway_service_pb2, quota_service_pb2

from common.config import Secret
from llm_gateway.operators import OPERATOR_KEY_METADATA
from tests.support.gateway import config_file, gateway_channel, metadata

METHODS = [
    f"/{service.full_name}/{method.name}"
    for file in (gateway_service_pb2, quota_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


@pytest.mark.parametrize("carried", [(), metadata(expires_at=1.0)])
async def test_no_method_waits_for_the_request_of_a_stranger(tmp_path: Path, carried: Any) -> None:
    path = config_file(tmp_path / "gateway.toml", ["http://127.0.0.1:1/v1"])
    operator = Secret("an operator's key, of 32 bytes at least")
    forged = ((OPERATOR_KEY_METADATA, "forged"),)
    assert METHODS
    async with gateway_channel(path, operator_key=operator) as channel:
        for method in METHODS:
            silent: Any = channel.stream_stream(method)
            call = silent(metadata=carried + forged, timeout=30)
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED, method
