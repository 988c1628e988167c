"""The gateway as the orchestrator asks it: run token, deadline, a request id of its own for each
call.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import grpc
from fathom.gateway.v1 import gateway_service_pb2, generation_pb2, quota_service_pb2
from fathom.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub
from fathom.gateway.v1.quota_service_pb2_grpc import QuotaServiceStub
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from common.config import Secret
from common.run_token import RUN_TOKEN_METADATA, RunToken, RunTokenSigner

TENANT = "bench"
_TIMEOUT_S = 60
_PLENTY = 1 << 50


class GatewayClient:
    """A client of one gateway."""

    def __init__(self, channel: grpc.aio.Channel, *, token_key: str, operator_key: str) -> None:
        self._stub = GatewayServiceStub(channel)
        self._quotas = QuotaServiceStub(channel)
        self._health: Any = HealthStub(channel)  # its types know no asyncio
        self._operator = (("fathom-operator-key", operator_key),)
        token = RunToken(
            tenant=TENANT,
            run="runs/bench",
            depth=0,
            tiers=("root", "sub"),
            tokens_max=_PLENTY,
            cost_usd_nanos_max=_PLENTY,
            tokens_spent=0,
            cost_usd_nanos_spent=0,
            expires_at=time.time() + 86_400,
        )
        self._metadata = ((RUN_TOKEN_METADATA, RunTokenSigner(Secret(token_key)).mint(token)),)
        self._numbers = itertools.count()
        self.paid = 0
        """Calls that a provider answered."""

    async def ping(self) -> None:
        """Have its health checked, which does nothing but what any call over gRPC takes."""
        await self._health.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)

    async def set_quota(self) -> None:
        """Limit the tenant in everything, by more than will be used."""
        quota = quota_service_pb2.Quota(
            name=f"tenants/{TENANT}/quotas/bench",
            calls_max=_PLENTY,
            tokens_max=_PLENTY,
            cost_usd_nanos_max=_PLENTY,
            concurrency_max=10_000,
        )
        quota.window.FromSeconds(3_600)
        request = quota_service_pb2.SetQuotaRequest(quota=quota)
        await self._quotas.SetQuota(request, metadata=self._operator, timeout=_TIMEOUT_S)

    async def booked(self) -> int:
        """Return how many calls the ledger has as answered."""
        request = quota_service_pb2.GetUsageRequest(parent=f"tenants/{TENANT}")
        request.start_time.FromSeconds(int(time.time()) - 86_400)
        usage = await self._quotas.GetUsage(request, metadata=self._operator, timeout=_TIMEOUT_S)
        return sum(row.usage.calls for row in usage.rows)

    async def ask(self, texts: Sequence[str]) -> None:
        """Have messages answered whole."""
        await self._generate(_prompt(texts, "sub"), attempts=1)
        self.paid += 1

    async def ask_again(self, texts: Sequence[str]) -> None:
        """Have messages answered from the cache; raises RuntimeError where they are not."""
        await self._generate(_prompt(texts, "sub", temperature=0.0), attempts=0)

    async def fill_cache(self, texts: Sequence[str]) -> None:
        """Have messages answered so that they are in the cache."""
        await self._generate(_prompt(texts, "sub", temperature=0.0), attempts=1)
        self.paid += 1

    async def first_piece_s(self, texts: Sequence[str]) -> float:
        """Have messages answered in pieces; return how long the first one took, after the last."""
        request = gateway_service_pb2.StreamGenerateRequest(
            prompt=_prompt(texts, "root"), call=self._context()
        )
        first = None
        started = time.perf_counter()
        stream = self._stub.StreamGenerate(request, metadata=self._metadata, timeout=_TIMEOUT_S)
        async for piece in stream:
            if first is None and piece.text_delta:
                first = time.perf_counter() - started
        if first is None:
            raise RuntimeError("the gateway streamed nothing")
        self.paid += 1
        return first

    async def _generate(self, prompt: generation_pb2.Prompt, *, attempts: int) -> None:
        request = gateway_service_pb2.GenerateRequest(prompt=prompt, call=self._context())
        response = await self._stub.Generate(request, metadata=self._metadata, timeout=_TIMEOUT_S)
        generation = response.generation
        if not generation.text or generation.attempts != attempts:
            raise RuntimeError(f"the gateway made {generation.attempts} attempts, not {attempts}")

    def _context(self) -> generation_pb2.CallContext:
        return generation_pb2.CallContext(request_id=f"bench/1/1/{next(self._numbers)}", turn=1)


def _prompt(
    texts: Sequence[str], tier: str, temperature: float | None = None
) -> generation_pb2.Prompt:
    role = generation_pb2.Message.ROLE_USER
    return generation_pb2.Prompt(
        tier=tier,
        messages=[generation_pb2.Message(role=role, text=text) for text in texts],
        output_tokens_max=1000,
        temperature=temperature,
    )
