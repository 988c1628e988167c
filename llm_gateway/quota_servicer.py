"""QuotaService: wire in, domain call, wire out. For operators; setting quotas is UNIMPLEMENTED."""

from __future__ import annotations

import time
from typing import Any

import grpc
from fathom.gateway.v1 import quota_service_pb2 as pb2
from fathom.gateway.v1.quota_service_pb2_grpc import (
    QuotaServiceServicer,
    add_QuotaServiceServicer_to_server,
)

from common.errors import NotBuiltYetError
from common.server import Server
from llm_gateway.ledger.usage import UsageReports
from llm_gateway.operators import OPERATOR_KEY_METADATA, OperatorGate
from llm_gateway.usage_wire import usage_page_from, usage_page_to

_NAME = "fathom.gateway.v1.QuotaService"
Context = grpc.aio.ServicerContext[Any, Any]
_WHY = "only the limits of runs are enforced"
_MICROS = 1_000_000


class QuotaServicer(QuotaServiceServicer):
    """Serves operators, and nobody without their key."""

    def __init__(self, gate: OperatorGate, usage: UsageReports) -> None:
        self._gate = gate
        self._usage = usage

    def register(self, server: Server) -> None:
        """Add it to a server."""
        add_QuotaServiceServicer_to_server(self, server.grpc)
        server.serves(_NAME)

    async def SetQuota(
        self, _request: pb2.SetQuotaRequest, context: Context
    ) -> pb2.SetQuotaResponse:
        """Answer UNIMPLEMENTED."""
        self._admit(context)
        raise NotBuiltYetError("SetQuota", _WHY)

    async def GetQuota(
        self, _request: pb2.GetQuotaRequest, context: Context
    ) -> pb2.GetQuotaResponse:
        """Answer UNIMPLEMENTED."""
        self._admit(context)
        raise NotBuiltYetError("GetQuota", _WHY)

    async def ListQuotas(
        self, _request: pb2.ListQuotasRequest, context: Context
    ) -> pb2.ListQuotasResponse:
        """Answer UNIMPLEMENTED."""
        self._admit(context)
        raise NotBuiltYetError("ListQuotas", _WHY)

    async def DeleteQuota(
        self, _request: pb2.DeleteQuotaRequest, context: Context
    ) -> pb2.DeleteQuotaResponse:
        """Answer UNIMPLEMENTED."""
        self._admit(context)
        raise NotBuiltYetError("DeleteQuota", _WHY)

    async def GetUsage(
        self, request: pb2.GetUsageRequest, context: Context
    ) -> pb2.GetUsageResponse:
        """Sum the ledger."""
        self._admit(context)
        page = usage_page_from(request, now_us=int(time.time() * _MICROS))
        sums = await self._usage.sums(page.query, offset=page.offset, size=page.size + 1)
        return usage_page_to(page, sums)

    def _admit(self, context: Context) -> None:
        brought = dict(context.invocation_metadata() or ()).get(OPERATOR_KEY_METADATA, "")
        self._gate.admit(brought if isinstance(brought, str) else brought.decode())
