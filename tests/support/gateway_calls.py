"""Calls to a gateway over a real port, and the errors that they end with."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from fathom.gateway.v1 import gateway_service_pb2 as pb2
from fathom.gateway.v1 import quota_service_pb2 as quota_pb2
from fathom.gateway.v1.generation_pb2 import Generation
from fathom.gateway.v1.quota_service_pb2_grpc import QuotaServiceStub

from common.errors import ReceivedError, received
from tests.support.gateway import KEY, generate, metadata

TIMEOUT_S = 30
OPERATOR = (("fathom-operator-key", KEY.reveal()),)
"""What an operator's call carries."""
COST = 10 * 1_000 + 3 * 2_000
"""Of one usual call, in nano-dollars."""


async def error_of(call: Any) -> ReceivedError:
    """Return the error that a unary call, or the reading of a stream, ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if isinstance(call, grpc.aio.UnaryUnaryCall):
            await call
        else:
            async for _ in call:
                pass
    return received(caught.value)


async def generation(stub: Any, **fields: Any) -> Generation:
    """Return the answer to a prompt of these fields."""
    return await ask(stub, generate(**fields))


def asked(request_id: str = "a", text: str = "hello", **fields: Any) -> pb2.GenerateRequest:
    """Return a request that can be repeated."""
    request = generate(text, **fields)
    request.call.request_id = request_id
    return request


async def ask(stub: Any, request: pb2.GenerateRequest, **claims: Any) -> Generation:
    """Return the answer to a request that carries a run token of these claims."""
    response = await stub.Generate(request, metadata=metadata(**claims), timeout=TIMEOUT_S)
    found: Generation = response.generation
    return found


def get_usage(
    channel: grpc.aio.Channel,
    *group_by: Any,
    start_s: float | None = 0,
    end_s: float | None = None,
    **fields: Any,
) -> Any:
    """Ask for a report of what a tenant took, as its operator."""
    values: dict[str, Any] = {"parent": "tenants/acme", "group_by": group_by}
    request = quota_pb2.GetUsageRequest(**values | fields)
    if start_s is not None:
        request.start_time.FromSeconds(int(start_s))
    if end_s is not None:
        request.end_time.FromSeconds(int(end_s))
    return QuotaServiceStub(channel).GetUsage(request, timeout=TIMEOUT_S, metadata=OPERATOR)
