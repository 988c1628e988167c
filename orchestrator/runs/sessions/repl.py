"""A run's Python session: opened beside the first model call, rebuilt where it was lost, deleted
at the end. It runs one piece of code at a time.

How a session comes back is `session_source.py`'s business; what code means for the run is not
known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Mapping

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1.run_event_pb2 import ExecutionRecord
from fathom.sandbox.v1.execution_pb2 import ExecutionEvent, ExecutionResult
from google.rpc.status_pb2 import Status

from common.errors import ReceivedError
from orchestrator.runs.budget import Budget
from orchestrator.runs.log.recorded import Place
from orchestrator.runs.passes import RunPasses
from orchestrator.runs.ports import CellOrder, Sandbox, StoredSession
from orchestrator.runs.sessions.executions import PastExecution, Transcript, ending_word
from orchestrator.runs.sessions.session_calls import is_full, is_store_away
from orchestrator.runs.sessions.session_source import SessionBrokenError, SessionSource

_INTERRUPT_GRACE_S = 1.0
"""What an interrupted cell gets to end by itself, before its call is cut."""
_CLOSE_WAIT_S = 5.0
_RETRY_S = 0.25
_LOSSES_MAX = 5
"""Times that a piece of code may take its worker or its session with it."""
_ABSENCES_MAX = 20
"""Times that the sandbox service may be away or restarted while the same code runs."""


class SessionLostError(Exception):
    """The session is gone with its variables; the next execution gets an empty one."""


class CodeLostError(Exception):
    """The code takes every session with it; the next execution gets the session as it was before
    the code."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeOrder:
    """A piece of code of a run."""

    code: str
    """Python source."""
    turn: int
    """Turn of the run."""
    cell: int
    """Its place among the turn's executions."""
    sub_calls_before: int
    """Sub-calls that the run had made before it."""
    failed_sub_calls: Callable[[], Mapping[int, Status]]
    """Its sub-calls that are known to have failed by then, by position. Where it runs anew they
    are not made again: what that took would be told nowhere."""


@dataclasses.dataclass(frozen=True)
class Executed:
    """What an execution came to."""

    result: ExecutionResult
    """How it ended."""
    record: ExecutionRecord
    """What running it again takes."""


class Repl:
    """The session of one run. `close` or `leave` it, whatever happens."""

    def __init__(
        self,
        sandbox: Sandbox,
        source: SessionSource,
        *,
        run_id: str,
        budget: Budget,
        passes: RunPasses,
    ) -> None:
        self._sandbox = sandbox
        self._source = source
        self._run_id = run_id
        self._budget = budget
        self._passes = passes
        self._opening: asyncio.Task[str] | None = None
        self._executions = source.beginning.mounted.executions
        self._at: tuple[str, int] = ("", 0)

    def open(self) -> None:
        """Begin to open a session, or to rebuild it, without waiting for it."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._source.open())

    async def execute(
        self,
        order: CodeOrder,
        *,
        on_event: Callable[[ExecutionEvent], None],
        on_restart: Callable[[], None],
    ) -> Executed:
        """Run code and hand each event but the result to `on_event`; where the session is lost
        meanwhile, it is rebuilt and the code runs anew, after `on_restart`. So it does where a
        worker died under it; code that each worker dies of ends as that.

        Code still running when the run's time for work is up is interrupted, and ends with that.
        Raises CodeLostError, SessionLostError, LimitReachedError, and ReceivedError where the
        sandbox refuses.
        """
        self._executions += 1
        losses = absences = 0
        while True:
            session = await self._session()
            transcript = Transcript()
            try:
                result = await self._run(session, order, transcript, on_event)
            except ReceivedError as error:
                if self._budget.is_work_over:
                    raise self._budget.reached("time_max") from error
                if not _is_gone(error):
                    raise
                is_loss = error.reason == ErrorReason.ERROR_REASON_SESSION_LOST
                losses, absences = losses + is_loss, absences + (not is_loss)
                await self._drop(session)
                if losses == _LOSSES_MAX or absences == _ABSENCES_MAX:
                    raise CodeLostError from error
                on_restart()
                await asyncio.sleep(0 if is_loss else _RETRY_S)
                continue
            if result.ending == ExecutionResult.ENDING_WORKER_LOST and losses + 1 < _LOSSES_MAX:
                losses += 1  # undone; code of another run may have been what its worker died of
                on_restart()
                continue
            return self._executed(order, session, transcript, result)

    def remember(self, past: PastExecution, *, is_kept: bool) -> None:
        """Take an execution from the log as one that the session has been through."""
        self._executions += 1
        if past.record.session_execution:
            self._at = past.record.session, past.record.session_execution
            self._source.expect(*self._at)
        if is_kept:
            self._source.add(past)

    def forget(self) -> None:
        """Take the session as empty from here on."""
        self._source.forget()
        self._at = ("", 0)

    def add_checkpoint(self, place: Place, key: str) -> None:
        """Take a checkpoint that has the session as it is after a place."""
        self._source.add_checkpoint(place, key)

    async def checkpoint(self, owner: str) -> tuple[Place, StoredSession] | None:
        """Store the session as it is after its newest execution, for an owner of checkpoints; None
        where it is not at rest, or has moved on meanwhile. Raises ReceivedError."""
        place = self._source.newest_place
        if place is None or self._opening is None or not self._opening.done():
            return None
        if self._opening.cancelled() or self._opening.exception() is not None:
            return None
        session, executions = self._opening.result(), self._at[1]
        if session != self._at[0]:
            return None
        stored = await self._sandbox.checkpoint(session, owner)
        return (place, stored) if stored.executions == executions else None

    async def checkpoint_at_end(self, owner: str) -> tuple[Place, StoredSession] | None:
        """Store the session as the run leaves it, rebuilt where it is lost, before or meanwhile;
        None where the run has executed nothing. An object store that is away, and a service that
        has no room, are waited for as long as the run has time. Raises SessionLostError,
        LimitReachedError and ReceivedError."""
        place, losses = self._source.newest_place, 0
        if place is None:
            return None
        while True:
            session = await self._session()
            try:
                return place, await self._sandbox.checkpoint(session, owner)
            except ReceivedError as error:
                if is_store_away(error) or is_full(error):
                    pause_s = error.retry_after_s or _RETRY_S
                    if pause_s >= self._budget.work_left_s:
                        raise
                else:
                    losses, pause_s = losses + 1, _RETRY_S
                    if not _is_gone(error) or losses == _ABSENCES_MAX:
                        raise
                    await self._drop(session)
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """Delete the session, one that is still being opened too. A failure is logged: the
        sandbox ends idle sessions by itself."""
        self._source.close()
        if self._opening is None:
            return
        done, _ = await asyncio.wait({self._opening}, timeout=_CLOSE_WAIT_S)
        if not done:
            self._opening.cancel()
        elif not self._opening.cancelled() and self._opening.exception() is None:
            await self._source.calls.discard(self._opening.result())

    def leave(self) -> None:
        """Let go of the session: whoever drives the run next finds it."""
        self._source.close()
        if self._opening is not None:
            self._opening.cancel()

    async def _session(self) -> str:
        self.open()
        assert self._opening is not None
        try:
            return await asyncio.shield(self._opening)
        except SessionBrokenError as error:
            self._opening = None
            raise SessionLostError from error
        except ReceivedError as error:
            self._opening = None
            if self._budget.is_work_over:
                raise self._budget.reached("time_max") from error
            raise

    async def _drop(self, session: str) -> None:
        """Let go of a session that is lost, or may be."""
        self._opening = None
        await self._source.calls.discard(session)

    async def _run(
        self,
        session: str,
        order: CodeOrder,
        transcript: Transcript,
        on_event: Callable[[ExecutionEvent], None],
    ) -> ExecutionResult:
        left_s = self._budget.work_left_s
        sub_calls_max = (
            self._budget.limits.sub_calls_max
            - self._budget.sub_calls_of_children
            - order.sub_calls_before
        )
        cell = CellOrder(
            session=session,
            code=order.code,
            run_token=self._passes.for_cell(),
            call_prefix=self._call_prefix(order),
            turn=order.turn,
            random_stream=self._executions,
            sub_calls_max=max(0, sub_calls_max),
            failed_sub_calls=order.failed_sub_calls(),
            timeout_s=left_s + _INTERRUPT_GRACE_S,
        )
        watchdog = asyncio.create_task(self._interrupt_after(session, left_s))

        def take(event: ExecutionEvent) -> None:
            transcript.take(event)
            on_event(event)

        try:
            return await self._source.calls.run(cell, take, self._passes.for_cell)
        finally:
            watchdog.cancel()

    def _executed(
        self, order: CodeOrder, session: str, transcript: Transcript, result: ExecutionResult
    ) -> Executed:
        nature = self._source.beginning.nature
        record = ExecutionRecord(
            session=session,
            session_execution=transcript.session_execution,
            random_stream=self._executions,
            seed=nature.seed,
            call_prefix=self._call_prefix(order),
            ledger_run=self._passes.ledger_run,
            sub_calls_before=order.sub_calls_before,
            output_digest=transcript.output_digest,
            tiers=self._passes.cell_tiers,
        )
        record.clock_time.FromNanoseconds(nature.clock_ns)
        self._at = session, transcript.session_execution
        if result.state_kept:
            self._source.add(
                PastExecution(
                    place=(order.turn, order.cell),
                    code=order.code,
                    ending=ending_word(result),
                    record=record,
                    sub_calls=transcript.sub_calls,
                    failed_sub_calls=transcript.failed_sub_calls,
                )
            )
        return Executed(result, record)

    def _call_prefix(self, order: CodeOrder) -> str:
        return f"{self._run_id}/{order.turn}/{order.cell}"

    async def _interrupt_after(self, session: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        # Where this fails the call's own deadline ends the cell.
        with contextlib.suppress(ReceivedError):
            await self._sandbox.interrupt(session)


def _is_gone(error: ReceivedError) -> bool:
    """Whether the session can no longer be used: its worker or its whole service has gone, or it
    still runs what an answer was never heard of."""
    return error.reason in {
        ErrorReason.ERROR_REASON_SESSION_LOST,
        ErrorReason.ERROR_REASON_SESSION_BUSY,
    } or error.code in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE}
