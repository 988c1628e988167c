"""Calls to the sandbox service for one run, which have patience with it: nothing of a run is worth
ending because that is away or full for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.sandbox.v1.execution_pb2 import ExecutionEvent, ExecutionResult
from google.rpc.status_pb2 import Status

from common.errors import ReceivedError, status_number
from orchestrator.runs.budget import Budget
from orchestrator.runs.passes import RunPasses
from orchestrator.runs.ports import CellOrder, Sandbox
from orchestrator.runs.sessions.session_orders import GRACE_S
from orchestrator.runs.sessions.token_renewal import renewed_tokens

_RETRY_S = 0.25
_RETRY_S_MAX = 3.0
_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
"""A service that is overloaded or hangs answers no sooner than one that is down."""
_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
TakeEvent = Callable[[ExecutionEvent], None]


class SessionCalls:
    """The calls of one run."""

    def __init__(self, sandbox: Sandbox, budget: Budget, passes: RunPasses) -> None:
        self._sandbox = sandbox
        self._budget = budget
        self._passes = passes
        self.is_closed = False
        """Set where nothing is worth waiting for any more."""

    async def run(
        self, order: CellOrder, take: TakeEvent, mint: Callable[[], str]
    ) -> ExecutionResult:
        """Return how a piece of code ends; `take` gets the events before that, and `mint` makes
        the tokens that it gets while it runs.

        Where no worker can take the session just then, or what it is made of cannot be read,
        nothing has run, and it is asked again. Raises ReceivedError.
        """
        while True:
            renewing = renewed_tokens(self._sandbox, order.session, mint, self._passes.lifetime_s)
            try:
                async with renewing:
                    return await _result(self._sandbox, order, take)
            except ReceivedError as error:
                wait_s = error.retry_after_s or _RETRY_S
                has_run = not (is_full(error) or is_store_away(error))
                if has_run or wait_s >= self._budget.work_left_s:
                    raise
            await asyncio.sleep(wait_s)
            timeout_s = self._budget.work_left_s + GRACE_S
            order = dataclasses.replace(order, timeout_s=timeout_s, run_token=mint())

    async def discard(self, session: str) -> None:
        """Delete a session. A failure is logged: the sandbox ends idle sessions by itself."""
        try:
            await self._sandbox.delete_session(session)
        except ReceivedError as error:
            _log.warning("a session was not deleted", extra={"reason": error.reason_name})

    async def patiently(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return what a call gives that may be repeated; waits for a sandbox that is away or full,
        as long as the run has time."""
        attempt = 0
        while True:
            try:
                return await ask()
            except ReceivedError as error:
                is_away = error.code in _AWAY
                if self.is_closed or self._budget.is_work_over or not (is_away or is_full(error)):
                    raise
                backoff_s = min(_RETRY_S * 2 ** min(attempt, 8), _RETRY_S_MAX)
                wait_s = error.retry_after_s or backoff_s
            attempt += 1
            await asyncio.sleep(min(wait_s, self._budget.work_left_s))


async def _result(sandbox: Sandbox, order: CellOrder, take: TakeEvent) -> ExecutionResult:
    async with contextlib.aclosing(sandbox.execute(order)) as events:
        async for event in events:
            if event.HasField("result"):
                return event.result
            take(event)
    raise ReceivedError(
        Status(
            code=status_number(grpc.StatusCode.UNAVAILABLE),
            message="the sandbox broke off an execution",
        )
    )


def is_full(error: ReceivedError) -> bool:
    """Whether the service has no room for a session just then."""
    return error.reason == ErrorReason.ERROR_REASON_SANDBOX_CAPACITY


def is_store_away(error: ReceivedError) -> bool:
    """Whether the service cannot reach its object store just then."""
    return error.reason == ErrorReason.ERROR_REASON_OBJECT_STORE_UNAVAILABLE
