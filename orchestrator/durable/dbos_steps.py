"""The steps of one run as DBOS remembers them: of each step the sequence of the event that tells
what it came to. The event itself is in the log.

DBOS takes three changes of thread and two transactions a step. A run waits for none of that: its
steps are noted behind it, in their order, while its model thinks.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

from dbos import DBOS
from dbos import error as dbos_error

from common.database import telling_absence
from orchestrator.durable.json_serializer import RecordedError
from orchestrator.runs.log.steps import StepsLostError, Work

_HOLD_S = 0.05
"""How long a note is held back: what follows a step at once would wait for the interpreter."""
_AHEAD_MAX = 16
"""Steps that a run may be ahead of their notes."""
_log = logging.getLogger(__name__)


class DbosSteps:
    """Steps of the workflow that it is used in. `settle` them, whatever happens."""

    def __init__(self, dialect: str, *, is_fresh: bool) -> None:
        """`dialect` is SQLAlchemy's name for the database; `is_fresh` says that DBOS has noted no
        step of the run."""
        self._dialect = dialect
        self._is_beyond = is_fresh
        """Whether the run is where DBOS knows no further step, as notes are made in order."""
        self._is_noted = True
        """Whether DBOS has part in it: not where it remembers another order of steps."""
        self._unnoted: collections.deque[tuple[str, int]] = collections.deque()
        self._noting: asyncio.Task[None] | None = None

    async def step(self, name: str, work: Work, /) -> int:
        """See Steps. What follows need not wait until DBOS has noted what `work` came to: a note
        that is lost costs a look at the log. One that failed is raised by a later step."""
        self._raise_refused()
        if not self._is_beyond:
            return await self._looked_up(name, work)
        if len(self._unnoted) >= _AHEAD_MAX:
            await self.settle()
        sequence = await work()
        # Once more: each attempt counts as a step for DBOS, so none may follow one that failed.
        self._raise_refused()
        if self._is_noted:
            self._unnoted.append((name, sequence))
            if self._noting is None or self._noting.done():
                self._noting = asyncio.create_task(self._note())
        return sequence

    async def settle(self) -> None:
        """Return once everything is noted; raise what kept a step from it."""
        if self._noting is not None:
            await asyncio.wait({self._noting})  # who is cut off here cuts off no note
            self._raise_refused()

    def _raise_refused(self) -> None:
        if self._noting is not None and self._noting.done():
            self._noting.result()

    async def _looked_up(self, name: str, work: Work) -> int:
        """Return what DBOS knows of a step, else have it done and noted."""

        async def once() -> int:
            self._is_beyond = True
            return await work()

        try:
            return await self._told(name, once)
        except RecordedError:
            # A step that failed before: the log alone says what is done.
            return await work()
        except dbos_error.DBOSUnexpectedStepError as error:
            self._go_without(error)
            return await work()

    async def _note(self) -> None:
        """Note what is not noted, a while after the first step of it."""
        await asyncio.sleep(_HOLD_S)
        while self._unnoted:
            name, sequence = self._unnoted[0]
            # What DBOS has noted of it before says less than the log, which was looked at.
            try:
                with contextlib.suppress(RecordedError):
                    await self._told(name, functools.partial(int, sequence))
            except dbos_error.DBOSUnexpectedStepError as error:
                self._go_without(error)
                return
            self._unnoted.popleft()

    def _go_without(self, error: dbos_error.DBOSUnexpectedStepError) -> None:
        """Have the run go on by its log alone, which is the truth: DBOS remembers other steps than
        it has made."""
        _log.warning("the engine remembers other steps than the log has: %s", error)
        self._is_beyond, self._is_noted = True, False
        self._unnoted.clear()

    async def _told(self, name: str, work: Callable[[], Any]) -> int:
        """Return what DBOS makes of a step. `work` is a coroutine function, or one that waits for
        nothing: then all of it takes one change of thread."""
        try:
            # Where the database goes away, the run is driven again from its log.
            with telling_absence(self._dialect):
                sequence: int = await DBOS.run_step_async({"name": name}, work)
        except dbos_error.DBOSWorkflowConflictIDError as error:
            # Another process has resumed the workflow. It may have stood still between being told
            # to and doing it, and the run be this process's by now.
            raise StepsLostError from error
        return sequence
