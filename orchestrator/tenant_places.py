"""How many calls each tenant has under way, so that none takes the places of the others: those that
its keys make, and those that the code of its runs makes.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator
from typing import Any

import grpc

from common.run_token import RunToken, RunTokenVerifier
from orchestrator.api_keys import RUN_TOKEN_METHODS, ApiKeys
from orchestrator.bearers import token_of
from orchestrator.errors import TenantBusyError
from orchestrator.tenants import tenant_of

_WATCH = "/fathom.orchestrator.v1.OrchestratorService/WatchRun"


class TenantPlaces:
    """Who is let in, before any request is read, and the places of each tenant in this process,
    for calls that bring an API key."""

    def __init__(
        self, keys: ApiKeys, tokens: RunTokenVerifier, *, calls_max: int, watchers_max: int
    ) -> None:
        """Bounds hold only where keys tell tenants apart: one alone may have all there is."""
        self._keys = keys
        self._tokens = tokens
        self._calls = _Places("concurrent_rpcs_max", calls_max)
        self._watchers = _Places("watchers_max", watchers_max)

    def admit(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Note whose call it is, and count it until it ends.

        Raises UnauthenticatedError and TenantBusyError.
        """
        if method in RUN_TOKEN_METHODS:
            token_of(self._tokens, context)
            return
        self._keys.admit(context)
        if not self._keys.tells_apart:
            return
        tenant = tenant_of(context)
        if method == _WATCH:
            self._until_done(self._watchers, tenant, context)
        self._until_done(self._calls, tenant, context)

    @staticmethod
    def _until_done(
        places: _Places, tenant: str, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        places.take(tenant)
        context.add_done_callback(lambda _: places.leave(tenant))  # type: ignore[arg-type]


class CellPlaces:
    """The places of each tenant in this process, for calls that bring a run token.

    Of child runs they are counted at each depth by itself: a child run waits in one, and where its
    own children found no place beside it, neither would ever end. The deepest wait for none.
    """

    def __init__(self, keys: ApiKeys, *, calls_max: int) -> None:
        """Bounds hold only where keys tell tenants apart."""
        self._keys = keys
        self._calls = _Places("cell_calls_max", calls_max)

    def child_call(self, token: RunToken) -> contextlib.AbstractContextManager[None]:
        """Have a place for a call that waits for a child run while the block lasts; raises
        TenantBusyError. Code that is run again is told of children that have ended, by tokens that
        know no depth."""
        kind = "replay" if token.is_for_replay else f"depth {token.depth}"
        return self._place((token.tenant, kind))

    def tool_call(self, token: RunToken) -> contextlib.AbstractContextManager[None]:
        """Have a place for a call of a host tool while the block lasts; raises TenantBusyError."""
        return self._place((token.tenant, "tools"))

    @contextlib.contextmanager
    def _place(self, whose: tuple[str, str]) -> Iterator[None]:
        if not self._keys.tells_apart:
            yield
            return
        self._calls.take(whose)
        try:
            yield
        finally:
            self._calls.leave(whose)


class _Places:
    """Places of one kind."""

    def __init__(self, limit: str, most: int) -> None:
        self._limit = limit
        self._most = most
        self._taken: collections.Counter[object] = collections.Counter()

    def take(self, whose: object) -> None:
        """Take a place; raises TenantBusyError."""
        if self._taken[whose] >= self._most:
            raise TenantBusyError(self._limit, self._most)
        self._taken[whose] += 1

    def leave(self, whose: object) -> None:
        """Give one back."""
        self._taken[whose] -= 1
        if not self._taken[whose]:
            del self._taken[whose]
