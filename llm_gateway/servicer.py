"""GatewayService: wire in, domain call, wire out."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
from fathom.gateway.v1 import gateway_service_pb2 as pb2
from fathom.gateway.v1.gateway_service_pb2_grpc import (
    GatewayServiceServicer,
    add_GatewayServiceServicer_to_server,
)

from common import deadline
from common.errors import (
    InvalidFieldError,
    LimitAboveCeilingError,
    ServiceError,
)
from common.peers import peer_names
from common.run_token import RUN_TOKEN_METADATA, RunToken
from common.server import Server
from llm_gateway.answers import Answer
from llm_gateway.batches import CONCURRENCY_CEILING, CONCURRENCY_DEFAULT, work_concurrently
from llm_gateway.calls import Call
from llm_gateway.catalog import MODEL_PREFIX, Routing
from llm_gateway.gateway import Gateway
from llm_gateway.outlets import Started
from llm_gateway.permissions import Gate
from llm_gateway.prompts import Prompt
from llm_gateway.wire import (
    Asking,
    Counting,
    generation_to,
    models_page,
    prompt_from,
    settled_to,
    settling_from,
)

_NAME = "fathom.gateway.v1.GatewayService"
_log = logging.getLogger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]


class GatewayServicer(GatewayServiceServicer):
    """Serves one gateway."""

    def __init__(self, gateway: Gateway, gate: Gate, *, knows_callers: bool = True) -> None:
        """Not `knows_callers` is a server whose callers show no certificates: to ask each for its
        names takes a while."""
        self._gateway = gateway
        self._gate = gate
        self._knows_callers = knows_callers

    def register(self, server: Server) -> None:
        """Add it to a server."""
        add_GatewayServiceServicer_to_server(self, server.grpc)
        server.serves(_NAME, admit=self._let_in)

    async def Generate(
        self, request: pb2.GenerateRequest, context: Context
    ) -> pb2.GenerateResponse:
        """Answer whole."""
        call = _call(request, self._admit(context), self._gateway.catalog.routing)
        answer = await self._gateway.generate(call)
        return pb2.GenerateResponse(generation=generation_to(answer, call.prompt.tier))

    async def StreamGenerate(
        self, request: pb2.StreamGenerateRequest, context: Context
    ) -> AsyncIterator[pb2.StreamGenerateResponse]:
        """Answer in pieces."""
        call = _call(request, self._admit(context), self._gateway.catalog.routing, is_streamed=True)
        async for piece in self._gateway.stream(call):
            if isinstance(piece, Started):
                start = pb2.StreamStart(model=MODEL_PREFIX + piece.model)
                yield pb2.StreamGenerateResponse(start=start)
            elif isinstance(piece, Answer):
                generation = generation_to(piece, call.prompt.tier)
                yield pb2.StreamGenerateResponse(generation=generation)
            else:
                if piece.reasoning:
                    yield pb2.StreamGenerateResponse(reasoning_delta=piece.reasoning)
                if piece.text:
                    yield pb2.StreamGenerateResponse(text_delta=piece.text)

    async def BatchGenerate(
        self, request_iterator: AsyncIterator[pb2.BatchGenerateRequest], context: Context
    ) -> AsyncIterator[pb2.BatchGenerateResponse]:
        """Answer many, each as soon as it is ready."""
        self._admit(context)
        concurrency_max = await _read_start(request_iterator)

        async def answer(item: pb2.BatchItem) -> pb2.BatchGenerateResponse:
            return await self._answer_item(item, context)

        async for response in work_concurrently(_items(request_iterator), answer, concurrency_max):
            yield response

    async def CountTokens(
        self, request: pb2.CountTokensRequest, context: Context
    ) -> pb2.CountTokensResponse:
        """Count without asking anybody."""
        token = self._admit(context)
        call = Call(
            prompt=_prompt(request, token, self._gateway.catalog.routing),
            token=token,
            arrived=asyncio.get_running_loop().time(),
        )
        counted = await self._gateway.count_tokens(call)
        return pb2.CountTokensResponse(input_tokens=counted.tokens, exact=counted.is_exact)

    async def SettleCalls(
        self, request: pb2.SettleCallsRequest, context: Context
    ) -> pb2.SettleCallsResponse:
        """Tell what calls took that nobody waits for."""
        token = self._admit(context)
        prefix, grace_s = settling_from(request)
        return settled_to(await self._gateway.settle(token, prefix, grace_s=grace_s))

    async def ListModels(
        self, request: pb2.ListModelsRequest, context: Context
    ) -> pb2.ListModelsResponse:
        """List what the run token permits."""
        models = self._gateway.models(self._admit(context))
        return models_page(models, self._gateway.catalog, request)

    def _let_in(self, _method: str, context: Context) -> None:
        self._admit(context)

    def _admit(self, context: Context) -> RunToken:
        metadata = dict(context.invocation_metadata() or ())
        text = metadata.get(RUN_TOKEN_METADATA, "")
        text = text if isinstance(text, str) else text.decode()
        presenter = peer_names(context) if self._knows_callers else None
        return self._gate.admit(text, context.peer(), presenter)

    async def _answer_item(
        self, item: pb2.BatchItem, context: Context
    ) -> pb2.BatchGenerateResponse:
        response = pb2.BatchGenerateResponse(index=item.index)
        try:
            # With each item: a token must not be good for as long as somebody keeps a stream open.
            token = self._admit(context)
            call = _call(item, token, self._gateway.catalog.routing, index=item.index)
            answer = await self._gateway.generate(call)
            response.generation.CopyFrom(generation_to(answer, call.prompt.tier))
        except ServiceError as error:
            response.error.CopyFrom(error.to_status())
        except Exception as error:  # one item's defect must not end the others
            _log.exception("unforeseen error in a batch item", exc_info=error)
            response.error.CopyFrom(ServiceError("internal error").to_status())
        return response


def _call(
    request: Asking,
    token: RunToken,
    routing: Routing,
    *,
    is_streamed: bool = False,
    index: int | None = None,
) -> Call:
    now = asyncio.get_running_loop().time()
    remaining_s = deadline.remaining_s()
    if request.call.HasField("batch_index"):
        index = request.call.batch_index
    return Call(
        prompt=_prompt(request, token, routing),
        token=token,
        request_id=request.call.request_id,
        arrived=now,
        deadline=None if remaining_s is None else now + remaining_s,
        is_streamed=is_streamed,
        turn=request.call.turn,
        batch_index=index,
    )


def _prompt(request: Asking | Counting, token: RunToken, routing: Routing) -> Prompt:
    prompt = prompt_from(request)
    if prompt.tier:
        return prompt
    return dataclasses.replace(prompt, tier=routing.tier_at(token.depth))


async def _read_start(requests: AsyncIterator[pb2.BatchGenerateRequest]) -> int:
    """Return the batch's concurrency from its first message."""
    first = await anext(requests, None)
    if first is None or not first.HasField("start"):
        raise InvalidFieldError("start", "the first message of a batch must be its start")
    if not first.start.HasField("concurrency_max"):
        return CONCURRENCY_DEFAULT
    concurrency_max = first.start.concurrency_max
    if concurrency_max < 1:
        raise InvalidFieldError("start.concurrency_max", "must be at least 1")
    if concurrency_max > CONCURRENCY_CEILING:
        raise LimitAboveCeilingError("start.concurrency_max", concurrency_max, CONCURRENCY_CEILING)
    return concurrency_max


async def _items(
    requests: AsyncIterator[pb2.BatchGenerateRequest],
) -> AsyncIterator[pb2.BatchItem]:
    seen: set[int] = set()
    async for request in requests:
        if not request.HasField("item"):
            raise InvalidFieldError("item", "every message after the first must be an item")
        index = request.item.index
        if index < 0:
            raise InvalidFieldError("item.index", "must not be negative")
        if index in seen:
            raise InvalidFieldError("item.index", f"{index} was used before in this batch")
        seen.add(index)
        yield request.item
