"""A gateway that plays models by the question that they are asked, keeps a ledger, and enforces
what run tokens say: of the root, and of every subtree that the caller is in.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1 import gateway_service_pb2 as pb
from fathom.gateway.v1.generation_pb2 import CallContext, Generation, Prompt, Usage

from common.config import Secret
from common.errors import ServiceError
from common.run_token import RUN_TOKEN_METADATA, RunToken, RunTokenVerifier
from tests.support.fake_gateway import TOKEN_KEY, Context, FakeGateway

TOKENS, COST_NANOS = 100, 1_000
"""What every call takes."""
Reply = str | Exception | Callable[[str], Awaitable[str]]
_QUESTION = "Question:\n\n"


class LimitError(ServiceError):
    """A limit of a run would be crossed."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_RUN_LIMIT_EXCEEDED

    def __init__(self, limit: str, value: int, spent: int) -> None:
        super().__init__(f"{limit} exceeded", limit=limit, value=value, spent=spent)


@dataclasses.dataclass(frozen=True)
class Paid:
    """A call that was paid."""

    token: RunToken
    """What permitted it."""
    request_id: str
    """Its name."""
    usage: Usage
    """What it took."""


class TreeGateway(FakeGateway):
    """Answers root models from a script by question and turn; sub-models with their prompt."""

    def __init__(self, scripts: Mapping[str, Sequence[Reply]] | None = None) -> None:
        super().__init__()
        self.scripts = dict(scripts or {})
        """By question: the reply of each turn; the last one repeats. To a question that is not
        among them, the reply is a cell with the question itself."""
        self.paid: dict[str, Paid] = {}
        """By request id; each once."""
        self.asked_again = 0
        """Calls that were answered from the ledger."""
        self.spent: collections.Counter[str] = collections.Counter()
        """Money by `runs/{run}` that has a meter."""
        self.most: collections.Counter[str] = collections.Counter()
        """The most that any token let each of them spend."""
        self.sub_model: Callable[[str], str | Exception] = lambda prompt: f"re: {prompt}"
        self._answers: dict[str, Generation] = {}
        self._tokens = RunTokenVerifier(Secret(TOKEN_KEY))

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        """Answer one call."""
        self.requests.append(request)
        self.asked.set()
        return pb.GenerateResponse(
            generation=await self._answer(request.prompt, request.call, self._token(context))
        )

    async def BatchGenerate(
        self, request_iterator: AsyncIterator[pb.BatchGenerateRequest], context: Context
    ) -> AsyncIterator[pb.BatchGenerateResponse]:
        """Answer several."""
        items = [message.item async for message in request_iterator if message.HasField("item")]
        token = self._token(context)
        for item in items:
            response = pb.BatchGenerateResponse(index=item.index)
            try:
                answer = await self._answer(item.prompt, item.call, token)
                response.generation.CopyFrom(answer)
            except ServiceError as error:
                response.error.CopyFrom(error.to_status())
            yield response

    async def _answer(self, prompt: Prompt, call: CallContext, token: RunToken) -> Generation:
        known = self._answers.get(call.request_id)
        if known is not None:
            self.asked_again += 1
            repeated = Generation()
            repeated.CopyFrom(known)
            repeated.recorded_usage.CopyFrom(known.usage)
            repeated.ClearField("usage")
            return repeated
        self._pay(token)
        await self.hold.wait()
        reply = await self._reply(prompt, call)
        if isinstance(reply, Exception):
            raise reply
        usage = Usage(input_tokens=TOKENS, cost_usd_nanos=COST_NANOS, calls=1)
        self.paid[call.request_id] = Paid(token, call.request_id, usage)
        answer = Generation(
            text=reply,
            usage=usage,
            model="models/large" if prompt.tier == "root" else "models/small",
            finish_reason=Generation.FINISH_REASON_STOP,
        )
        self._answers[call.request_id] = answer
        await asyncio.sleep(0)
        return answer

    def _pay(self, token: RunToken) -> None:
        caps = [(token.run, token.cost_usd_nanos_max)]
        caps += [(each.name, each.cost_usd_nanos_max) for each in token.subtrees]
        for name, cost_max in caps:
            if cost_max is not None:
                self.most[name] = max(self.most[name], cost_max)
                if self.spent[name] + COST_NANOS > cost_max:
                    raise LimitError("cost_usd_nanos_max", cost_max, self.spent[name])
        for name, _ in caps:
            self.spent[name] += COST_NANOS

    async def _reply(self, prompt: Prompt, call: CallContext) -> str | Exception:
        first = next((m.text for m in prompt.messages if _QUESTION in m.text), "")
        if not first:
            return self.sub_model(prompt.messages[-1].text)
        question = first.split(_QUESTION, 1)[1].split("\n", 1)[0]
        replies = self.scripts.get(question, [f"```repl\n{question}\n```"])
        reply = replies[min(call.turn, len(replies)) - 1]
        if isinstance(reply, str | Exception):
            return reply
        return await reply(prompt.messages[-1].text)

    def _token(self, context: Context) -> RunToken:
        metadata = dict(context.invocation_metadata() or ())
        return self._tokens.verify(str(metadata.get(RUN_TOKEN_METADATA, "")), now=0.0)
