"""CountTokens over the wire; no provider is asked, so none is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.gateway.v1 import gateway_service_pb2 as pb2

from common.errors import received
from tests.support.gateway import config_file, gateway_service, metadata, wire_prompt

NOBODY = "http://127.0.0.1:1/v1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return config_file(
        tmp_path / "gateway.toml", [NOBODY], deployment_keys='vocabulary = "o200k_base"'
    )


async def test_tokens_are_counted_for_the_tiers_first_deployment(path: Path) -> None:
    async with gateway_service(path) as stub:
        counted = await stub.CountTokens(
            pb2.CountTokensRequest(prompt=wire_prompt("hello world")),
            metadata=metadata(),
            timeout=30,
        )

    assert counted == pb2.CountTokensResponse(input_tokens=2 + 4 + 3, exact=True)


@pytest.mark.parametrize(
    ("carried", "prompt", "code"),
    [
        (None, wire_prompt(), grpc.StatusCode.UNAUTHENTICATED),
        (metadata(tiers=("root",)), wire_prompt(), grpc.StatusCode.PERMISSION_DENIED),
        (metadata(), wire_prompt(tier="models/none"), grpc.StatusCode.INVALID_ARGUMENT),
        (metadata(), wire_prompt(""), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_counting_is_refused_where_asking_is(
    carried: Any, prompt: Any, code: grpc.StatusCode, path: Path
) -> None:
    """It would tell what is offered, and take time."""
    async with gateway_service(path) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CountTokens(
                pb2.CountTokensRequest(prompt=prompt), metadata=carried, timeout=30
            )

    assert caught.value.code() is code


@pytest.mark.parametrize(
    ("text", "reason"),
    [("x" * 101, "LIMIT_ABOVE_CEILING"), ("AKIA" + "Q" * 16, "EGRESS_REFUSED")],
)
async def test_what_may_not_leave_is_not_counted(path: Path, text: str, reason: str) -> None:
    """Counting takes time, and a prompt that is refused anyway has no count that is of use."""
    path.write_text(path.read_text() + '[egress]\nprompt_bytes_max = 100\nsecrets = "refuse"\n')
    async with gateway_service(path) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CountTokens(
                pb2.CountTokensRequest(prompt=wire_prompt(text)), metadata=metadata(), timeout=30
            )

    assert received(caught.value).reason_name == f"ERROR_REASON_{reason}"
