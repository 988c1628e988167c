"""When a run's session is stored, so that a lost one need not repeat what took long. Storing goes
on beside the run, while the root model thinks.
"""

from __future__ import annotations

import asyncio
import logging

from fathom.orchestrator.v1.run_event_pb2 import CheckpointStored, RunEvent

from common.database import DatabaseAwayError
from common.errors import ReceivedError
from orchestrator.runs.budget import LimitReachedError
from orchestrator.runs.log.journal import RunJournal
from orchestrator.runs.log.recorded import Place
from orchestrator.runs.ports import StoredSession
from orchestrator.runs.sessions.checkpoint_owners import CheckpointBooks
from orchestrator.runs.sessions.repl import Repl, SessionLostError

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run's session. `close` it, whatever happens."""

    def __init__(
        self,
        repl: Repl,
        journal: RunJournal,
        books: CheckpointBooks,
        *,
        tenant: str,
        owner: str,
        own_time_min_s: float,
    ) -> None:
        """Store the session, for an owner, once its code has worked for so long since the last
        time."""
        self._repl = repl
        self._journal = journal
        self._books = books
        self._tenant = tenant
        self._owner = owner
        self._own_time_min_s = own_time_min_s
        self._own_time_stored_s = 0.0
        self._storing: asyncio.Task[None] | None = None

    def after_turn(self, turn: int, *, own_time_s: float) -> None:
        """Begin to store the session where that is worth it; `own_time_s` is all that its code has
        worked."""
        stored = self._journal.checkpoint_after(turn)
        if stored is not None:
            self._repl.add_checkpoint((stored.turn, stored.cell), stored.key)
        if own_time_s < self._own_time_stored_s or stored is not None:
            self._own_time_stored_s = own_time_s
        is_due = own_time_s - self._own_time_stored_s >= self._own_time_min_s
        if is_due and not self._journal.went_beyond(turn) and self._storing is None:
            self._own_time_stored_s = own_time_s
            self._storing = asyncio.create_task(self._store(turn))

    async def at_end(self) -> None:
        """Store the session as the run leaves it, for runs that go on with it. One that cannot be
        stored is told of by a notice. Raises DatabaseAwayError, after which the run is driven
        again."""
        if self._storing is not None:
            await asyncio.wait({self._storing})
        try:
            await self._books.note(self._tenant, self._owner)
            taken = await self._repl.checkpoint_at_end(self._owner)
        except (ReceivedError, SessionLostError, LimitReachedError) as error:
            _log.warning("a session was not stored: %s", error)
            text = "the session could not be stored, so that later runs go on without its variables"
            self._journal.notice("SESSION_NOT_KEPT", text)
            return
        if taken is not None:
            self._note(*taken, cell=taken[0][1])

    async def close(self) -> None:
        """Give up what is being stored."""
        if self._storing is not None:
            self._storing.cancel()
            await asyncio.wait({self._storing})

    async def _store(self, turn: int) -> None:
        try:
            await self._books.note(self._tenant, self._owner)
            taken = await self._repl.checkpoint(self._owner)
        except (ReceivedError, DatabaseAwayError) as error:
            _log.warning("a session was not stored", extra={"reason": error.reason_name})
            return
        finally:
            self._storing = None
        if taken is None or taken[0][0] != turn:
            return
        self._note(*taken)

    def _note(self, place: Place, stored: StoredSession, *, cell: int = 0) -> None:
        """Write a checkpoint down; `cell` tells those of one turn apart."""
        turn, after_cell = place
        told = CheckpointStored(
            key=stored.key,
            turn=turn,
            cell=after_cell,
            size_bytes=stored.size_bytes,
            session_executions=stored.executions,
        )
        self._repl.add_checkpoint(place, stored.key)
        if turn not in self._journal.run.checkpoint_turns:
            self._journal.run.checkpoint_turns.append(turn)
        event = RunEvent(turn=turn, cell=cell, checkpoint_stored=told)
        self._journal.add_once(event, may_wait=True)
