"""A gateway that answers from a script, for tests of its callers. It keeps what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
from fathom.gateway.v1 import gateway_service_pb2 as pb
from fathom.gateway.v1 import gateway_service_pb2_grpc
from fathom.gateway.v1.generation_pb2 import Generation, Prompt, Usage

from common.config import Secret
from common.errors import ServiceError
from common.run_token import RUN_TOKEN_METADATA, RunToken, RunTokenVerifier
from common.server import Server

TOKEN_KEY = "a key of tests that is 32 bytes long"
INPUT_TOKENS, OUTPUT_TOKENS, COST_NANOS = 100, 10, 1_000

Context = grpc.aio.ServicerContext[Any, Any]
Script = str | Exception | Generation | Callable[[pb.GenerateRequest], str | Generation]


class FakeGateway(gateway_service_pb2_grpc.GatewayServiceServicer):
    """Answers Generate with one script entry after the other; the last one repeats.

    An exception is raised, a function is called with the request.
    """

    def __init__(self, replies: Iterable[Script] = ("FINAL(done)",)) -> None:
        self.replies = list(replies)
        self.requests: list[pb.GenerateRequest] = []
        self.tokens: list[RunToken] = []
        self.models = [
            pb.Model(name="models/large", tiers=["root"], context_tokens_max=100_000),
            pb.Model(name="models/small", tiers=["sub"], context_tokens_max=20_000),
        ]
        self.bytes_per_token = 3.0
        self.counts = 0
        self.lists = 0
        self.list_failures: list[Exception] = []
        """Raised by the next calls of ListModels."""
        self.hold = asyncio.Event()
        """Cleared, calls wait for it."""
        self.hold.set()
        self.asked = asyncio.Event()
        """Set once a call has come in."""
        self.settled = pb.SettleCallsResponse()
        """What SettleCalls answers: nothing that callers did not hear of."""
        self.settling: list[pb.SettleCallsRequest] = []
        self.settle_failure: ServiceError | None = None
        """Raised by SettleCalls instead."""
        self._tokens = RunTokenVerifier(Secret(TOKEN_KEY))

    def register(self, server: Server) -> None:
        """Add it to a server."""
        gateway_service_pb2_grpc.add_GatewayServiceServicer_to_server(self, server.grpc)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        """Answer from the script."""
        self.requests.append(request)
        self.tokens.append(self._token(context))
        self.asked.set()
        await self.hold.wait()
        script = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(script, Exception):
            raise script
        if callable(script) and not isinstance(script, str | Generation):
            script = script(request)
        return pb.GenerateResponse(generation=generation(script))

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """List what the token permits."""
        self.lists += 1
        if self.list_failures:
            raise self.list_failures.pop(0)
        permitted = self._token(context).tiers
        return pb.ListModelsResponse(
            models=[
                model
                for model in self.models
                if model.name in permitted or set(model.tiers) & set(permitted)
            ]
        )

    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        """Refuse."""
        raise ServiceError("StreamGenerate: the fake does not stream")
        yield pb.StreamGenerateResponse()

    async def BatchGenerate(
        self,
        request_iterator: AsyncIterator[pb.BatchGenerateRequest],
        context: Context,
    ) -> AsyncIterator[pb.BatchGenerateResponse]:
        """Refuse."""
        raise ServiceError("BatchGenerate: the fake has no batches")
        yield pb.BatchGenerateResponse()

    async def CountTokens(
        self, request: pb.CountTokensRequest, context: Context
    ) -> pb.CountTokensResponse:
        """Count a token for so many bytes."""
        self.counts += 1
        tokens = int(prompt_bytes(request.prompt) / self.bytes_per_token)
        return pb.CountTokensResponse(input_tokens=tokens, exact=True)

    async def SettleCalls(
        self, request: pb.SettleCallsRequest, context: Context
    ) -> pb.SettleCallsResponse:
        """Tell what the test has set."""
        self._token(context)
        self.settling.append(request)
        if self.settle_failure is not None:
            raise self.settle_failure
        return self.settled

    def prompts(self) -> list[str]:
        """Return the newest message of each request."""
        return [request.prompt.messages[-1].text for request in self.requests]

    def _token(self, context: Context) -> RunToken:
        metadata = dict(context.invocation_metadata() or ())
        return self._tokens.verify(str(metadata.get(RUN_TOKEN_METADATA, "")), now=0.0)


class ScriptedError(ServiceError):
    """An error of any code and reason."""

    def __init__(self, code: grpc.StatusCode, reason: int, **metadata: str) -> None:
        super().__init__("as the script says", retry_after_s=None, **metadata)
        self.code = code
        self.reason = reason  # type: ignore[assignment]


def prompt_bytes(prompt: Prompt) -> int:
    """Return the bytes of a prompt's texts."""
    return sum(len(message.text.encode()) for message in prompt.messages)


def generation(answer: str | Generation) -> Generation:
    """Return an answer with the usage that the tests count on."""
    if isinstance(answer, Generation):
        return answer
    usage = Usage(
        input_tokens=INPUT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
        cost_usd_nanos=COST_NANOS,
        calls=1,
    )
    return Generation(
        text=answer,
        usage=usage,
        model="models/large",
        finish_reason=Generation.FINISH_REASON_STOP,
        attempts=1,
    )
