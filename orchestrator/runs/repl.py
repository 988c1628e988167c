"""A run's Python session: opened beside the first model call, opened anew where it was lost,
deleted at the end. It runs one piece of code at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.sandbox.v1.execution_pb2 import ExecutionEvent, ExecutionResult

from common.errors import ReceivedError
from orchestrator.contexts.stored_context import StoredContext, StoredDocument
from orchestrator.runs.budget import Budget
from orchestrator.runs.passes import RunPasses
from orchestrator.runs.ports import CellOrder, Sandbox, SessionOrder

_log = logging.getLogger(__name__)
_INTERRUPT_GRACE_S = 1.0
"""What an interrupted cell gets to end by itself, before its call is cut."""
_CLOSE_WAIT_S = 5.0
_OPEN_RETRY_S = 0.25
_OPEN_ATTEMPTS_MAX = 5
"""For a sandbox that cannot be reached; one that is full is asked until the run's time is up."""
_LOSSES_MAX = 3
_IDLE_TTL_MAX_S = 1800.0
"""Longer than a model thinks; sessions of an orchestrator that was killed end after it."""


class SessionLostError(Exception):
    """The session is gone, with its variables; the next execution gets another one."""


class Repl:
    """The session of one run. `close` it, whatever happens."""

    def __init__(
        self,
        sandbox: Sandbox,
        context: StoredContext,
        documents: Sequence[StoredDocument],
        *,
        run_id: str,
        budget: Budget,
        passes: RunPasses,
        cell_time_max_s: float,
    ) -> None:
        self._sandbox = sandbox
        self._context = context
        self._documents = documents
        self._run_id = run_id
        self._budget = budget
        self._passes = passes
        self._cell_time_max_s = cell_time_max_s
        self._opening: asyncio.Task[str] | None = None
        self._losses = 0
        self._is_closed = False

    def open(self) -> None:
        """Begin to open a session, without waiting for it."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())

    async def execute(
        self,
        code: str,
        *,
        turn: int,
        call_prefix: str,
        on_event: Callable[[ExecutionEvent], None],
    ) -> ExecutionResult:
        """Run code and hand each event but the result to `on_event`.

        Code still running when the run's time for work is up is interrupted, and ends with that.
        Raises SessionLostError, and ReceivedError where the sandbox refuses or fails.
        """
        session = await self._session()
        left_s = self._budget.work_left_s
        order = CellOrder(
            session=session,
            code=code,
            run_token=self._passes.for_cell(),
            call_prefix=call_prefix,
            turn=turn,
            timeout_s=left_s + _INTERRUPT_GRACE_S,
        )
        watchdog = asyncio.create_task(self._interrupt_after(session, left_s))
        try:
            result = await self._result(order, on_event)
        except ReceivedError as error:
            if _is_time_up(error, self._budget):
                raise self._budget.reached("time_max") from error
            if not _is_loss(error) or self._losses == _LOSSES_MAX:
                raise
            result = None
        finally:
            watchdog.cancel()
        if result is None:
            self._opening = None
            self._losses += 1
            raise SessionLostError
        return result

    async def close(self) -> None:
        """Delete the session, one that is still being opened too. A failure is logged: the
        sandbox ends idle sessions by itself."""
        self._is_closed = True
        if self._opening is None:
            return
        done, _ = await asyncio.wait({self._opening}, timeout=_CLOSE_WAIT_S)
        if not done:
            self._opening.cancel()
        elif not self._opening.cancelled() and self._opening.exception() is None:
            try:
                await self._sandbox.delete_session(self._opening.result())
            except ReceivedError as error:
                _log.warning("a session was not deleted", extra={"reason": error.reason_name})

    async def _result(
        self, order: CellOrder, on_event: Callable[[ExecutionEvent], None]
    ) -> ExecutionResult | None:
        """Return the result; None where the stream ends without one.

        Where no worker can take the session just then, nothing has run, and it is asked again.
        """
        while True:
            try:
                return await _result(self._sandbox, order, on_event)
            except ReceivedError as error:
                wait_s = error.retry_after_s or _OPEN_RETRY_S
                if not _is_full(error) or wait_s >= self._budget.work_left_s:
                    raise
            await asyncio.sleep(wait_s)
            timeout_s = self._budget.work_left_s + _INTERRUPT_GRACE_S
            order = dataclasses.replace(order, timeout_s=timeout_s)

    async def _session(self) -> str:
        self.open()
        assert self._opening is not None
        try:
            return await asyncio.shield(self._opening)
        except ReceivedError as error:
            if _is_time_up(error, self._budget):
                raise self._budget.reached("time_max") from error
            raise

    async def _open(self) -> str:
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._sandbox.open_session(self._order())
            except ReceivedError as error:
                is_full = _is_full(error)
                is_away = error.code is grpc.StatusCode.UNAVAILABLE and attempt < _OPEN_ATTEMPTS_MAX
                wait_s = error.retry_after_s or _OPEN_RETRY_S * attempt
                if (
                    self._is_closed
                    or not (is_full or is_away)
                    or wait_s >= self._budget.work_left_s
                ):
                    raise
            await asyncio.sleep(wait_s)

    def _order(self) -> SessionOrder:
        left_s = self._budget.work_left_s
        return SessionOrder(
            run_id=self._run_id,
            request_id=f"{self._run_id}/{self._losses}",
            context=self._context,
            documents=self._documents,
            run_token=self._passes.for_cell(),
            sub_tier=self._passes.sub_tier,
            sub_calls_max=max(0, self._budget.limits.sub_calls_max - self._budget.sub_calls),
            execute_time_max_s=self._cell_time_max_s,
            idle_ttl_s=min(left_s + _INTERRUPT_GRACE_S, _IDLE_TTL_MAX_S),
            timeout_s=left_s,
        )

    async def _interrupt_after(self, session: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        # Where this fails the call's own deadline ends the cell.
        with contextlib.suppress(ReceivedError):
            await self._sandbox.interrupt(session)


async def _result(
    sandbox: Sandbox, order: CellOrder, on_event: Callable[[ExecutionEvent], None]
) -> ExecutionResult | None:
    """Return the result; None where the stream ends without one."""
    async with contextlib.aclosing(sandbox.execute(order)) as events:
        async for event in events:
            if event.HasField("result"):
                return event.result
            on_event(event)
    return None


def _is_full(error: ReceivedError) -> bool:
    return error.reason == ErrorReason.ERROR_REASON_SANDBOX_CAPACITY


def _is_time_up(error: ReceivedError, budget: Budget) -> bool:
    return error.code is grpc.StatusCode.DEADLINE_EXCEEDED and budget.is_work_over


def _is_loss(error: ReceivedError) -> bool:
    """Whether the session can no longer be used: its worker or its whole service has gone."""
    return error.reason == ErrorReason.ERROR_REASON_SESSION_LOST or error.code in {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNAVAILABLE,
    }
