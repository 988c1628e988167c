"""How many calls each tenant has under way, so that none takes the places of the others.

Calls that cells make are not counted here: a child run waits in one, and where its own children
found no place beside it, neither would ever end.
"""

from __future__ import annotations

import collections
from typing import Any

import grpc

from orchestrator.api_keys import RUN_TOKEN_METHODS, ApiKeys
from orchestrator.errors import TenantBusyError
from orchestrator.tenants import tenant_of

_WATCH = "/fathom.orchestrator.v1.OrchestratorService/WatchRun"


class TenantPlaces:
    """The places of each tenant in this process."""

    def __init__(self, keys: ApiKeys, *, calls_max: int, watchers_max: int) -> None:
        """Bounds hold only where keys tell tenants apart: one alone may have all there is."""
        self._keys = keys
        self._calls = _Places("concurrent_rpcs_max", calls_max)
        self._watchers = _Places("watchers_max", watchers_max)

    def admit(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Note whose call it is, and count it until it ends.

        Raises UnauthenticatedError and TenantBusyError.
        """
        self._keys.admit(method, context)
        if method in RUN_TOKEN_METHODS or not self._keys.tells_apart:
            return
        tenant = tenant_of(context)
        if method == _WATCH:
            self._watchers.take(tenant, context)
        self._calls.take(tenant, context)


class _Places:
    """Places of one kind."""

    def __init__(self, limit: str, most: int) -> None:
        self._limit = limit
        self._most = most
        self._taken: collections.Counter[str] = collections.Counter()

    def take(self, tenant: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Take a place until the call has ended; raises TenantBusyError."""
        if self._taken[tenant] >= self._most:
            raise TenantBusyError(self._limit, self._most)
        self._taken[tenant] += 1
        context.add_done_callback(lambda _: self._leave(tenant))  # type: ignore[arg-type]

    def _leave(self, tenant: str) -> None:
        self._taken[tenant] -= 1
        if not self._taken[tenant]:
            del self._taken[tenant]
