"""The gateway as the orchestrator calls it: the root model's calls, and what models there are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1 import gateway_service_pb2 as pb
from fathom.gateway.v1 import gateway_service_pb2_grpc
from fathom.gateway.v1.generation_pb2 import CallContext, Generation, Message, Prompt

from common.errors import ReceivedError, received
from common.run_token import RUN_TOKEN_METADATA
from orchestrator.runs.ports import ModelCall, SettledCalls

MESSAGE_BYTES_MAX = 32 << 20
"""As the gateway's contract says."""
_PAGE_SIZE = 500
_LIST_TIMEOUT_S = 5.0
_COUNT_TIMEOUT_S = 5.0
_RETRY_S = 0.2
_RETRY_S_MAX = 2.0
_RETRY_S_MIN = 0.05
"""With less time left, nothing is asked again."""
Response = TypeVar("Response")


class ModelSource(Protocol):
    """Where models are listed."""

    async def list_models(self, run_token: str) -> list[pb.Model]:
        """Return the deployments that a run token permits; raises ReceivedError."""


class GatewayClient:
    """Calls of one gateway. The channel belongs to the caller."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = gateway_service_pb2_grpc.GatewayServiceStub(channel)

    async def generate(self, call: ModelCall) -> Generation:
        """Ask the root model; raises ReceivedError.

        The gateway owns the retries towards providers. What is retried here is only the way to
        the gateway itself, as when it restarts; the request id makes that safe.
        """
        prompt = Prompt(
            tier=call.tier,
            messages=call.messages,
            output_tokens_max=call.output_tokens_max,
            response_schema_json=call.response_schema_json,
        )
        request = pb.GenerateRequest(
            prompt=prompt, call=CallContext(request_id=call.request_id, turn=call.turn)
        )
        metadata = _metadata(call.run_token)
        response = await _patiently(
            lambda left_s: self._stub.Generate(request, timeout=left_s, metadata=metadata),
            timeout_s=call.timeout_s,
        )
        return response.generation

    async def count_tokens(
        self, tier: str, messages: Sequence[Message], *, run_token: str, timeout_s: float
    ) -> int:
        """Return the tokens of a conversation; raises ReceivedError."""
        request = pb.CountTokensRequest(prompt=Prompt(tier=tier, messages=messages))
        metadata = _metadata(run_token)
        response = await _patiently(
            lambda left_s: self._stub.CountTokens(request, timeout=left_s, metadata=metadata),
            timeout_s=min(timeout_s, _COUNT_TIMEOUT_S),
        )
        return response.input_tokens

    async def settle_calls(
        self, prefix: str, *, run_token: str, grace_s: float, timeout_s: float
    ) -> SettledCalls:
        """Return what calls took that nobody waits for, by the beginning of their request ids;
        raises ReceivedError."""
        request = pb.SettleCallsRequest(request_id_prefix=prefix)
        request.grace.FromNanoseconds(int(grace_s * 1e9))
        metadata = _metadata(run_token)
        response = await _patiently(
            lambda left_s: self._stub.SettleCalls(request, timeout=left_s, metadata=metadata),
            timeout_s=timeout_s,
        )
        return SettledCalls(response.calls, response.calls_open)

    async def list_models(self, run_token: str) -> list[pb.Model]:
        """Return the deployments that a run token permits; raises ReceivedError."""
        models: list[pb.Model] = []
        request = pb.ListModelsRequest(page_size=_PAGE_SIZE)
        metadata = _metadata(run_token)
        while True:
            response = await _patiently(
                lambda left_s: self._stub.ListModels(request, timeout=left_s, metadata=metadata),
                timeout_s=_LIST_TIMEOUT_S,
            )
            models.extend(response.models)
            request.page_token = response.next_page_token
            if not request.page_token:
                return models


async def _patiently(ask: Callable[[float], Awaitable[Response]], *, timeout_s: float) -> Response:
    """Return what a call gives that takes its own timeout; a gateway that is away is asked again
    as long as the time lasts. Raises ReceivedError."""
    until_s = time.monotonic() + timeout_s
    away: ReceivedError | None = None
    pause_s = _RETRY_S
    while True:
        try:
            return await ask(until_s - time.monotonic())
        except grpc.aio.AioRpcError as error:
            failure = received(error)
            left_s = until_s - time.monotonic()
            if away is not None and failure.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise away from error  # why the time is over
            if not _is_gateway_away(failure) or left_s <= _RETRY_S_MIN:
                raise failure from error
            away = failure
        wait_s = min(away.retry_after_s or pause_s, _RETRY_S_MAX)
        if wait_s + _RETRY_S_MIN >= left_s:
            await asyncio.sleep(left_s)
            raise away
        pause_s *= 2
        await asyncio.sleep(wait_s)


def _metadata(run_token: str) -> tuple[tuple[str, str]]:
    return ((RUN_TOKEN_METADATA, run_token),)


def _is_gateway_away(error: ReceivedError) -> bool:
    """Whether the gateway, or its ledger, could not be reached: a provider's errors are not for us
    to repeat."""
    return error.code is grpc.StatusCode.UNAVAILABLE and error.reason in {
        ErrorReason.ERROR_REASON_SERVICE_UNREACHABLE,
        ErrorReason.ERROR_REASON_DRAINING,
        ErrorReason.ERROR_REASON_LEDGER_UNAVAILABLE,
    }
