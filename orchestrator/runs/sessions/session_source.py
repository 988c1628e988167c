"""Where a run's session comes from: a fresh one, the one that a dead orchestrator left, or one
rebuilt from the newest checkpoint and the executions after it.

What is run again is answered from the gateway's ledger, and may spend nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.sandbox.v1.execution_pb2 import ExecutionEvent, ExecutionResult

from common.errors import ReceivedError
from orchestrator.errors import HelperFailedError
from orchestrator.runs.budget import Budget
from orchestrator.runs.log.recorded import Place
from orchestrator.runs.passes import RunPasses
from orchestrator.runs.ports import CellOrder, Sandbox
from orchestrator.runs.sessions.beginning import Beginning
from orchestrator.runs.sessions.executions import PastExecution, Transcript, ending_word
from orchestrator.runs.sessions.session_calls import SessionCalls, is_full
from orchestrator.runs.sessions.session_orders import GRACE_S, SessionOrders

_log = logging.getLogger(__name__)
_RETRY_S = 0.25
_REBUILDS_MAX = 5
"""Times that a session may be lost again while it is rebuilt."""
_TRIES_MAX = 5
"""Times that code is run again that does not end as it did, but is undone."""
_BEFORE_ALL: Place = (0, 0)
_PRELUDE_STREAMS = 1 << 40
"""Streams of randomness that no cell draws from."""
_NO_CHECKPOINT = frozenset(
    {
        ErrorReason.ERROR_REASON_CHECKPOINT_DAMAGED,
        ErrorReason.ERROR_REASON_CHECKPOINT_INCOMPATIBLE,
        ErrorReason.ERROR_REASON_CONTEXT_UNREADABLE,
        ErrorReason.ERROR_REASON_RESOURCE_NOT_FOUND,
    }
)


class SessionBrokenError(Exception):
    """The session cannot be rebuilt: what it has been through breaks it each time."""


class SessionSource:
    """Opens the sessions of one run, each as the run's executions have left it."""

    def __init__(
        self,
        sandbox: Sandbox,
        beginning: Beginning,
        *,
        run_id: str,
        budget: Budget,
        passes: RunPasses,
        is_resumed: bool,
        on_difference: Callable[[PastExecution], None],
    ) -> None:
        """`is_resumed` says that another process may have left sessions of the run behind.
        `on_difference` is told of an execution that did not do the same again."""
        self._sandbox = sandbox
        self.calls = SessionCalls(sandbox, budget, passes)
        """How its sessions are used."""
        self.beginning = beginning
        """What a fresh session is."""
        self._run_id = run_id
        self._budget = budget
        self._passes = passes
        self._orders = SessionOrders(run_id, budget, passes)
        self._may_be_left = is_resumed
        self._on_difference = on_difference
        self._past: list[PastExecution] = []
        self._checkpoints: list[tuple[Place, str]] = []
        self._expected = ("", self.beginning.mounted.executions)

    @property
    def newest_place(self) -> Place | None:
        """The newest execution whose effects the session has; None for none."""
        return self._past[-1].place if self._past else None

    def add(self, past: PastExecution) -> None:
        """Take an execution as one whose effects the session has."""
        self._past.append(past)

    def add_checkpoint(self, place: Place, key: str) -> None:
        """Take a checkpoint that has all up to a place."""
        self._checkpoints.append((place, key))
        self._checkpoints.sort()

    def expect(self, session: str, executions: int) -> None:
        """Say which session has all that was added, once it has ended so many executions."""
        self._expected = session, executions

    def forget(self) -> None:
        """Begin anew with an empty session: what breaks it may be what it began with."""
        self.beginning = self.beginning.emptied()
        self._past.clear()
        self._checkpoints.clear()
        self._expected = ("", self.beginning.mounted.executions)

    def close(self) -> None:
        """Open nothing more."""
        self.calls.is_closed = True

    async def open(self) -> str:
        """Return `sessions/{session}`, as the executions so far have left it. Waits for a sandbox
        that is away or full, as long as the run has time.

        Raises SessionBrokenError, LimitReachedError and ReceivedError.
        """
        losses = 0
        while True:
            try:
                return await self._left() or await self._built()
            except ReceivedError as error:
                if self._budget.is_work_over:
                    raise self._budget.reached("time_max") from error
                if error.reason == ErrorReason.ERROR_REASON_SESSION_LOST:
                    losses += 1
                    if losses == _REBUILDS_MAX:
                        raise SessionBrokenError from error
                elif not _may_come_back(error):
                    raise
                if self.calls.is_closed:
                    raise
            await asyncio.sleep(min(_RETRY_S, self._budget.work_left_s))

    async def _left(self) -> str:
        """Return the session that another process left, if it is exactly where the log says; the
        others that there are of the run are deleted."""
        if not self._may_be_left:
            return ""
        found = ""
        name, executions = self._expected
        sessions = await self.calls.patiently(lambda: self._sandbox.sessions_of(self._run_id))
        for session in sessions:
            is_right = session.name == name and session.executions == executions
            if is_right and session.is_idle:
                found = session.name
            else:
                await self.calls.discard(session.name)
        self._may_be_left = False
        return found

    async def _built(self) -> str:
        """Make a session and bring it to where the run is."""
        session, after = await self._begun()
        try:
            if after == _BEFORE_ALL:
                await self._prepare(session)
            for past in [past for past in self._past if past.place > after]:
                await self._run_again(session, past)
        except BaseException:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(self.calls.discard(session))
            raise
        return session

    async def _begun(self) -> tuple[str, Place]:
        """Return a session, and up to where it has the run's executions."""
        while self._checkpoints:
            place, key = self._checkpoints[-1]
            again = self._orders.restored(key)
            try:
                restored = await self.calls.patiently(
                    functools.partial(self._sandbox.restore_session, again)
                )
            except ReceivedError as error:
                if error.reason not in _NO_CHECKPOINT:
                    raise
                _log.warning("a checkpoint is of no use", extra={"reason": error.reason_name})
                self._checkpoints.pop()
            else:
                return restored.name, place
        if self.beginning.mounted.base_key:
            return await self._based(), _BEFORE_ALL
        order = self._orders.fresh(self.beginning)
        return await self.calls.patiently(lambda: self._sandbox.open_session(order)), _BEFORE_ALL

    async def _based(self) -> str:
        """Return a session as the run found it; raises SessionBrokenError where it is kept no
        longer, which leaves an empty one."""
        order = self._orders.restored(self.beginning.mounted.base_key)
        try:
            restored = await self.calls.patiently(lambda: self._sandbox.restore_session(order))
        except ReceivedError as error:
            if error.reason not in _NO_CHECKPOINT:
                raise
            raise SessionBrokenError from error
        return restored.name

    async def _prepare(self, session: str) -> None:
        """Run the sources of the run's profile in a session that has none of the run's code. What
        is undone, as for lack of time on a busy machine, is tried again."""
        prelude = self.beginning.prelude
        for index, (name, source) in enumerate(prelude.sources):
            for _ in range(_TRIES_MAX):
                order = CellOrder(
                    session=session,
                    code=source,
                    run_token=self._passes.for_cell(),
                    call_prefix="",
                    turn=0,
                    random_stream=_PRELUDE_STREAMS + index,
                    sub_calls_max=0,
                    failed_sub_calls={},
                    timeout_s=self._budget.work_left_s + GRACE_S,
                )
                result = await self.calls.run(order, _ignore, self._passes.for_cell)
                if result.ending == ExecutionResult.ENDING_COMPLETED or result.state_kept:
                    break
            if result.ending != ExecutionResult.ENDING_COMPLETED:
                why = result.error.message or ending_word(result)
                error = HelperFailedError(prelude.profile, name, why)
                raise ReceivedError(error.to_status())

    async def _run_again(self, session: str, past: PastExecution) -> None:
        """Run code that ran before. What is undone this time, as for lack of time or because its
        worker died, is tried again: it was not undone the first time."""
        record = past.record

        def mint() -> str:
            return self._passes.for_replay(record.ledger_run, tiers=record.tiers)

        for _ in range(_TRIES_MAX):
            transcript = Transcript()
            order = CellOrder(
                session=session,
                code=past.code,
                run_token=mint(),
                call_prefix=record.call_prefix,
                turn=past.place[0],
                random_stream=record.random_stream,
                sub_calls_max=past.sub_calls,
                failed_sub_calls=past.failed_sub_calls,
                timeout_s=self._budget.work_left_s + GRACE_S,
                sub_tier=record.tiers[0] if record.tiers else "",
            )
            result = await self.calls.run(order, transcript.take, mint)
            if result.state_kept:
                break
        is_same = past.ending in {"", ending_word(result)}
        if not is_same or transcript.output_digest != record.output_digest:
            self._on_difference(past)


def _ignore(_event: ExecutionEvent) -> None:
    """What a profile's sources print is for nobody."""


def _may_come_back(error: ReceivedError) -> bool:
    """Whether waiting helps: the sandbox is full, away, or was restarted under a session."""
    return is_full(error) or error.code in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.NOT_FOUND,
    }
