"""OperationsService on the wire: messages in, domain calls, messages out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from fathom.orchestrator.v1 import operations_service_pb2 as pb
from fathom.orchestrator.v1 import operations_service_pb2_grpc

from common.errors import InvalidFieldError, NotFoundError
from common.page_tokens import (
    make_page_token,
    page_length,
    page_size,
    read_page_number,
    read_page_token,
)
from common.server import Server
from orchestrator.contexts.upload_plan import check_length
from orchestrator.operations.audit_check import AuditCheck
from orchestrator.operations.audit_log import AuditEntry, AuditLog
from orchestrator.operations.kill_switches import KillSwitch, KillSwitches
from orchestrator.operations.statistics import HourErrors, SizeLatency, Statistics, UserCost
from orchestrator.tenants import caller_of, check_operator

_NAME = "fathom.orchestrator.v1.OperationsService"
_REASON_CHARACTERS_MAX = 500
_TARGET_CHARACTERS_MAX = 160
_COLLECTIONS = ("runs", "tenants", "profiles")
CallContext = grpc.aio.ServicerContext[Any, Any]
StopRuns = Callable[[str], Awaitable[int]]
"""Asks the unfinished runs of a kill switch's target to stop; returns how many."""


class OperationsServicer(operations_service_pb2_grpc.OperationsServiceServicer):
    """The service."""

    def __init__(
        self,
        statistics: Statistics,
        switches: KillSwitches,
        audit: AuditLog,
        check: AuditCheck,
        stop_runs: StopRuns,
    ) -> None:
        self._statistics = statistics
        self._switches = switches
        self._audit = audit
        self._check = check
        self._stop_runs = stop_runs

    def register(self, server: Server) -> None:
        """Add it to a server."""
        operations_service_pb2_grpc.add_OperationsServiceServicer_to_server(self, server.grpc)
        server.serves(_NAME)

    async def GetStatistics(
        self, request: pb.GetStatisticsRequest, context: CallContext
    ) -> pb.GetStatisticsResponse:
        """Answer the three questions."""
        tenant = _tenant(context, of_all=request.all_tenants)
        statistics = self._statistics
        return pb.GetStatisticsResponse(
            cost_by_user=[_cost(each) for each in await statistics.cost_by_user(tenant)],
            latency_by_context_size=[
                _latency(each) for each in await statistics.latency_by_context_size(tenant)
            ],
            errors_by_hour=[_errors(each) for each in await statistics.errors_by_hour(tenant)],
        )

    async def SetKillSwitch(
        self, request: pb.SetKillSwitchRequest, context: CallContext
    ) -> pb.SetKillSwitchResponse:
        """Stop a target."""
        caller = check_operator(context)
        switch = request.kill_switch
        target = _target("kill_switch.target", switch.target)
        reason = switch.reason.strip()
        check_length("kill_switch.reason", reason, _REASON_CHARACTERS_MAX, least=1)
        stored = await self._switches.set(target, reason, tenant=caller.tenant, by=caller.key)
        # After it is stored: a run that is created meanwhile is either refused or found here.
        stopped = await self._stop_runs(target)
        return pb.SetKillSwitchResponse(kill_switch=_switch(stored), runs_stopped=stopped)

    async def ListKillSwitches(
        self, request: pb.ListKillSwitchesRequest, context: CallContext
    ) -> pb.ListKillSwitchesResponse:
        """List switches by target."""
        check_operator(context)
        size, scope = page_size(request.page_size), "kill_switches"
        after = read_page_token(scope, request.page_token)
        found = await self._switches.page(after=after, count=size + 1)
        switches = [_switch(each) for each in found]
        length = page_length(switches, size)
        token = make_page_token(scope, found[length - 1].target) if len(found) > length else ""
        return pb.ListKillSwitchesResponse(kill_switches=switches[:length], next_page_token=token)

    async def DeleteKillSwitch(
        self, request: pb.DeleteKillSwitchRequest, context: CallContext
    ) -> pb.DeleteKillSwitchResponse:
        """Let a target work again."""
        caller = check_operator(context)
        target = _target("target", request.target)
        was_there = await self._switches.unset(target, tenant=caller.tenant, by=caller.key)
        if not was_there and not request.allow_missing:
            raise NotFoundError(f"killSwitches/{target}")
        return pb.DeleteKillSwitchResponse()

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: CallContext
    ) -> pb.ListAuditEntriesResponse:
        """List what was done, oldest first."""
        tenant = _tenant(context, of_all=request.all_tenants)
        size = page_size(request.page_size)
        check_length("subject", request.subject, _TARGET_CHARACTERS_MAX)
        scope = f"audit/{request.all_tenants}/{request.subject}"
        after = read_page_number(scope, request.page_token)
        found = await self._audit.page(
            tenant=tenant, subject=request.subject, after=after, count=size + 1
        )
        entries = [_entry(each) for each in found]
        length = page_length(entries, size)
        last = str(found[length - 1].sequence) if len(found) > length else ""
        token = make_page_token(scope, last) if last else ""
        return pb.ListAuditEntriesResponse(entries=entries[:length], next_page_token=token)

    async def VerifyAuditLog(
        self, _request: pb.VerifyAuditLogRequest, context: CallContext
    ) -> pb.VerifyAuditLogResponse:
        """Check the chain, and the events of runs against it."""
        check_operator(context)
        found = await self._check.verify()
        problems = [
            pb.AuditProblem(sequence=each.sequence, subject=each.subject, text=each.text)
            for each in found.problems
        ]
        return pb.VerifyAuditLogResponse(
            entries=found.entries, runs=found.runs, blake3=found.blake3, problems=problems
        )


def _tenant(context: CallContext, *, of_all: bool) -> str | None:
    """Return whose things are asked for; None for everyone's."""
    if of_all:
        check_operator(context)
        return None
    return caller_of(context).tenant


def _target(field: str, target: str) -> str:
    collection, _, name = target.partition("/")
    if collection not in _COLLECTIONS or not name or len(target) > _TARGET_CHARACTERS_MAX:
        raise InvalidFieldError(
            field, "must be `runs/{run}`, `tenants/{tenant}` or `profiles/{profile}`"
        )
    check_length(field, target, _TARGET_CHARACTERS_MAX)
    return target


def _switch(switch: KillSwitch) -> pb.KillSwitch:
    message = pb.KillSwitch(
        target=switch.target, reason=switch.reason, created_by=switch.created_by
    )
    message.create_time.FromMicroseconds(switch.created_us)
    return message


def _entry(entry: AuditEntry) -> pb.AuditEntry:
    deed = entry.deed
    message = pb.AuditEntry(
        sequence=entry.sequence,
        tenant=deed.tenant,
        actor=deed.actor,
        action=deed.action,
        subject=deed.subject,
        details=deed.details,
        previous_blake3=entry.previous_blake3,
        blake3=entry.blake3,
    )
    message.entry_time.FromMicroseconds(entry.entered_us)
    return message


def _cost(cost: UserCost) -> pb.UserCost:
    return pb.UserCost(
        tenant=cost.tenant,
        user=cost.user,
        runs=cost.runs,
        tokens=cost.tokens,
        cost_usd_nanos=cost.cost_usd_nanos,
    )


def _latency(latency: SizeLatency) -> pb.SizeLatency:
    message = pb.SizeLatency(
        tenant=latency.tenant,
        context_bytes_from=latency.context_bytes_from,
        runs=latency.runs,
    )
    message.p50.FromMicroseconds(latency.p50_us)
    message.p95.FromMicroseconds(latency.p95_us)
    return message


def _errors(errors: HourErrors) -> pb.HourErrors:
    message = pb.HourErrors(tenant=errors.tenant, runs=errors.runs, failed=errors.failed)
    message.hour.FromMicroseconds(errors.hour_us)
    return message
