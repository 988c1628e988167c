"""QuotaService: part of the contract, and UNIMPLEMENTED until the gateway keeps a ledger."""

from __future__ import annotations

from typing import Any

import grpc
from fathom.gateway.v1 import quota_service_pb2 as pb2
from fathom.gateway.v1.quota_service_pb2_grpc import (
    QuotaServiceServicer,
    add_QuotaServiceServicer_to_server,
)

from common.errors import NotBuiltYetError
from common.server import Server

_NAME = "fathom.gateway.v1.QuotaService"
Context = grpc.aio.ServicerContext[Any, Any]
_WHY = "quotas of tenants need the ledger of calls"


class QuotaServicer(QuotaServiceServicer):
    """Refuses everything."""

    def register(self, server: Server) -> None:
        """Add it to a server."""
        add_QuotaServiceServicer_to_server(self, server.grpc)
        server.serves(_NAME)

    async def SetQuota(
        self, _request: pb2.SetQuotaRequest, _context: Context
    ) -> pb2.SetQuotaResponse:
        """Answer UNIMPLEMENTED."""
        raise NotBuiltYetError("SetQuota", _WHY)

    async def GetQuota(
        self, _request: pb2.GetQuotaRequest, _context: Context
    ) -> pb2.GetQuotaResponse:
        """Answer UNIMPLEMENTED."""
        raise NotBuiltYetError("GetQuota", _WHY)

    async def ListQuotas(
        self, _request: pb2.ListQuotasRequest, _context: Context
    ) -> pb2.ListQuotasResponse:
        """Answer UNIMPLEMENTED."""
        raise NotBuiltYetError("ListQuotas", _WHY)

    async def DeleteQuota(
        self, _request: pb2.DeleteQuotaRequest, _context: Context
    ) -> pb2.DeleteQuotaResponse:
        """Answer UNIMPLEMENTED."""
        raise NotBuiltYetError("DeleteQuota", _WHY)

    async def GetUsage(
        self, _request: pb2.GetUsageRequest, _context: Context
    ) -> pb2.GetUsageResponse:
        """Answer UNIMPLEMENTED."""
        raise NotBuiltYetError("GetUsage", _WHY)
