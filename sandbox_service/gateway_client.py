"""The gateway behind the SubModels port: one call by Generate, several by BatchGenerate."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1 import gateway_service_pb2 as wire
from fathom.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub
from fathom.gateway.v1.generation_pb2 import CallContext, Generation, Message, Prompt

from common.errors import ReceivedError, ServiceError, received
from common.run_token import RUN_TOKEN_METADATA
from sandbox_service.run_pass import RunPass
from sandbox_service.sub_calls import SubCall

MESSAGE_BYTES_MAX = 32 << 20
"""Size of a message that the gateway takes; its prompts may be large."""
_PAUSE_S = 0.2
_PAUSE_S_MAX = 2.0
_AWAY_MAX_S = 300.0
"""So long a gateway that cannot be reached is waited for; the run's own time may end before."""
_ROLES = {
    "system": Message.ROLE_SYSTEM,
    "user": Message.ROLE_USER,
    "assistant": Message.ROLE_ASSISTANT,
}


class GatewaySubModels:
    """Sub-models over gRPC."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        call_timeout_s: float,
        concurrency_max: int,
        away_max_s: float = _AWAY_MAX_S,
    ) -> None:
        self._stub = GatewayServiceStub(channel)
        self._call_timeout_s = call_timeout_s
        self._concurrency_max = concurrency_max
        self._away_max_s = away_max_s

    async def ask(
        self, calls: Sequence[SubCall], run_pass: RunPass
    ) -> AsyncIterator[tuple[int, Generation | ServiceError]]:
        """Yield the outcome of each call.

        Calls that found no gateway are repeated until there is one, since a restart must not
        change what code sees; providers' errors are not, since the gateway has done so already.
        """
        left = dict(enumerate(calls))
        until_s, pause_s = time.monotonic() + self._away_max_s, _PAUSE_S
        while left:
            is_last = time.monotonic() + pause_s > until_s
            repeat = {}
            async for position, outcome in self._once(left, run_pass.token):
                if not is_last and _is_unreachable(outcome, left[position]):
                    repeat[position] = left[position]
                else:
                    yield position, outcome
            if repeat:
                await asyncio.sleep(pause_s)
            left, pause_s = repeat, min(pause_s * 2, _PAUSE_S_MAX)

    def _once(
        self, calls: dict[int, SubCall], run_token: str
    ) -> AsyncIterator[tuple[int, Generation | ServiceError]]:
        metadata = ((RUN_TOKEN_METADATA, run_token),)
        if len(calls) == 1:
            return self._single(*next(iter(calls.items())), metadata)
        return self._batch(calls, metadata)

    async def _single(
        self, position: int, call: SubCall, metadata: tuple[tuple[str, str], ...]
    ) -> AsyncIterator[tuple[int, Generation | ServiceError]]:
        request = wire.GenerateRequest(prompt=_prompt(call), call=_context(call))
        try:
            response = await self._stub.Generate(
                request, timeout=self._call_timeout_s, metadata=metadata
            )
        except grpc.aio.AioRpcError as error:
            yield position, received(error)
        else:
            yield position, response.generation

    async def _batch(
        self, calls: dict[int, SubCall], metadata: tuple[tuple[str, str], ...]
    ) -> AsyncIterator[tuple[int, Generation | ServiceError]]:
        rounds = math.ceil(len(calls) / self._concurrency_max)
        stream = self._stub.BatchGenerate(
            self._requests(calls), timeout=self._call_timeout_s * rounds, metadata=metadata
        )
        unanswered = set(calls)
        failure: ServiceError = ServiceError("the gateway left the call unanswered")
        try:
            async for response in stream:
                if response.index in unanswered:
                    unanswered.remove(response.index)
                    yield response.index, _outcome(response)
        except grpc.aio.AioRpcError as error:
            failure = received(error)
        finally:
            stream.cancel()
        for position in sorted(unanswered):
            yield position, failure

    async def _requests(
        self, calls: dict[int, SubCall]
    ) -> AsyncIterator[wire.BatchGenerateRequest]:
        yield wire.BatchGenerateRequest(
            start=wire.BatchStart(concurrency_max=self._concurrency_max)
        )
        for position, call in calls.items():
            item = wire.BatchItem(index=position, prompt=_prompt(call), call=_context(call))
            item.call.batch_index = position
            yield wire.BatchGenerateRequest(item=item)


def _prompt(call: SubCall) -> Prompt:
    return Prompt(
        tier=call.tier,
        messages=[Message(role=_ROLES[m.role], text=m.text) for m in call.messages],
        output_tokens_max=call.output_tokens_max,
        temperature=call.temperature,
    )


def _context(call: SubCall) -> CallContext:
    return CallContext(request_id=call.request_id, turn=call.turn)


def _outcome(response: wire.BatchGenerateResponse) -> Generation | ServiceError:
    if response.WhichOneof("outcome") == "generation":
        return response.generation
    return ReceivedError(response.error)


def _is_unreachable(outcome: Generation | ServiceError, call: SubCall) -> bool:
    """Tell whether a call may be repeated: the gateway was away, and would know it again."""
    return (
        isinstance(outcome, ServiceError)
        and outcome.code is grpc.StatusCode.UNAVAILABLE
        and outcome.reason
        in (
            ErrorReason.ERROR_REASON_SERVICE_UNREACHABLE,
            ErrorReason.ERROR_REASON_DRAINING,
            ErrorReason.ERROR_REASON_LEDGER_UNAVAILABLE,
        )
        and bool(call.request_id)
    )
