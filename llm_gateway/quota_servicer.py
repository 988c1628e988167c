"""QuotaService: wire in, domain call, wire out. For operators."""

from __future__ import annotations

import logging
from typing import Any

import grpc
from fathom.gateway.v1 import quota_service_pb2 as pb2
from fathom.gateway.v1.quota_service_pb2_grpc import (
    QuotaServiceServicer,
    add_QuotaServiceServicer_to_server,
)

from common.errors import NotFoundError
from common.page_tokens import make_page_token, page_size, read_page_token
from common.server import Server
from llm_gateway.accounts.quotas import QuotaBook, Scope
from llm_gateway.ledger.usage import UsageReports
from llm_gateway.meter import Meter
from llm_gateway.operators import OPERATOR_KEY_METADATA, OperatorGate
from llm_gateway.quota_wire import (
    quota_from,
    quota_name_from,
    quota_to,
    tenant_from,
    usage_to,
)
from llm_gateway.usage_wire import usage_page_from, usage_page_to

_NAME = "fathom.gateway.v1.QuotaService"
Context = grpc.aio.ServicerContext[Any, Any]
_audit = logging.getLogger("fathom.audit")


class QuotaServicer(QuotaServiceServicer):
    """Serves operators, and nobody without their key."""

    def __init__(
        self, gate: OperatorGate, usage: UsageReports, quotas: QuotaBook, meter: Meter
    ) -> None:
        self._gate = gate
        self._usage = usage
        self._quotas = quotas
        self._meter = meter

    def register(self, server: Server) -> None:
        """Add it to a server."""
        add_QuotaServiceServicer_to_server(self, server.grpc)
        server.serves(_NAME, admit=self._let_in)

    async def SetQuota(
        self, request: pb2.SetQuotaRequest, context: Context
    ) -> pb2.SetQuotaResponse:
        """Create or replace."""
        self._admit(context)
        stored = await self._quotas.set(quota_from(request.quota))
        _audit.info("a quota is set", extra={"quota": stored.name})
        return pb2.SetQuotaResponse(quota=quota_to(stored))

    async def GetQuota(
        self, request: pb2.GetQuotaRequest, context: Context
    ) -> pb2.GetQuotaResponse:
        """Return one, and what of it is used."""
        self._admit(context)
        found = await self._quotas.get(*quota_name_from(request.name))
        if found is None:
            raise NotFoundError(request.name)
        response = pb2.GetQuotaResponse(quota=quota_to(found))
        if found.scope is Scope.TENANT:
            state = await self._meter.state(await self._quotas.tenant_cap(found))
            response.used.CopyFrom(usage_to(state.taken))
            response.reserved.CopyFrom(usage_to(state.held))
        return response

    async def ListQuotas(
        self, request: pb2.ListQuotasRequest, context: Context
    ) -> pb2.ListQuotasResponse:
        """List a tenant's."""
        self._admit(context)
        tenant, size = tenant_from(request.parent), page_size(request.page_size)
        scope = f"quotas {tenant}"
        after = read_page_token(scope, request.page_token)
        found = await self._quotas.list_after(tenant, after, size + 1)
        page = found[:size]
        return pb2.ListQuotasResponse(
            quotas=[quota_to(each) for each in page],
            next_page_token=make_page_token(scope, page[-1].quota) if len(found) > size else "",
        )

    async def DeleteQuota(
        self, request: pb2.DeleteQuotaRequest, context: Context
    ) -> pb2.DeleteQuotaResponse:
        """Remove one."""
        self._admit(context)
        is_gone = await self._quotas.delete(*quota_name_from(request.name))
        if not is_gone and not request.allow_missing:
            raise NotFoundError(request.name)
        _audit.info("a quota is deleted", extra={"quota": request.name})
        return pb2.DeleteQuotaResponse()

    async def GetUsage(
        self, request: pb2.GetUsageRequest, context: Context
    ) -> pb2.GetUsageResponse:
        """Sum the ledger."""
        self._admit(context)
        page = usage_page_from(request, now_us=self._usage.now_us())
        sums = await self._usage.sums(page.query, offset=page.offset, size=page.size + 1)
        return usage_page_to(page, sums)

    def _let_in(self, _method: str, context: Context) -> None:
        self._admit(context)

    def _admit(self, context: Context) -> None:
        brought = dict(context.invocation_metadata() or ()).get(OPERATOR_KEY_METADATA, "")
        brought = brought if isinstance(brought, str) else brought.decode()
        self._gate.admit(brought, context.peer())
