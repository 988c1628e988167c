"""The gateway behind the SubModels port: one call by Generate, several by BatchGenerate."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1 import gateway_service_pb2 as wire
from fathom.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub
from fathom.gateway.v1.generation_pb2 import CallContext, Generation, Message, Prompt

from common.errors import ReceivedError, ServiceError, received
from common.run_token import RUN_TOKEN_METADATA
from sandbox_service.sub_calls import SubCall

MESSAGE_BYTES_MAX = 32 << 20
"""Size of a message that the gateway takes; its prompts may be large."""
_PAUSES_S = (0.2, 1.0)
"""Before each repeat, while the gateway itself cannot be reached."""
_ROLES = {
    "system": Message.ROLE_SYSTEM,
    "user": Message.ROLE_USER,
    "assistant": Message.ROLE_ASSISTANT,
}


class GatewaySubModels:
    """Sub-models over gRPC."""

    def __init__(
        self, channel: grpc.aio.Channel, *, call_timeout_s: float, concurrency_max: int
    ) -> None:
        self._stub = GatewayServiceStub(channel)
        self._call_timeout_s = call_timeout_s
        self._concurrency_max = concurrency_max

    async def ask(
        self, calls: Sequence[SubCall], run_token: str
    ) -> AsyncIterator[tuple[int, Generation | ServiceError]]:
        """Yield the outcome of each call.

        Calls that found no gateway are repeated shortly after; providers' errors are not, since
        the gateway has done so already.
        """
        left = dict(enumerate(calls))
        for pause_s in (*_PAUSES_S, None):
            repeat = {}
            async for position, outcome in self._once(left, run_token):
                if pause_s is not None and _is_unreachable(outcome, left[position]):
                    repeat[position] = left[position]
                else:
                    yield position, outcome
            if not repeat or pause_s is None:
                return
            await asyncio.sleep(pause_s)
            left = repeat

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
        in (ErrorReason.ERROR_REASON_SERVICE_UNREACHABLE, ErrorReason.ERROR_REASON_DRAINING)
        and bool(call.request_id)
    )
