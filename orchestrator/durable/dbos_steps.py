"""The steps of one run as DBOS remembers them: of each step the sequence of the event that tells
what it came to. The event itself is in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from dbos import DBOS
from dbos import error as dbos_error

from common.database import telling_absence
from orchestrator.durable.json_serializer import RecordedError
from orchestrator.runs.log.steps import StepsLostError, Work


class DbosSteps:
    """Steps of the workflow that it is used in."""

    def __init__(self, dialect: str) -> None:
        """`dialect` is SQLAlchemy's name for the database."""
        self._dialect = dialect
        self._noting: set[asyncio.Task[int]] = set()
        self._failed: asyncio.Task[int] | None = None

    async def step(self, name: str, work: Work, /) -> int:
        """See Steps. What follows need not wait until DBOS has noted what `work` came to: a note
        that is lost costs a look at the log. One that failed is raised by the next step."""
        if self._failed is not None:
            self._failed.result()
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def once() -> int:
            sequence = await work()
            found.set_result(sequence)
            return sequence

        noting = asyncio.create_task(self._noted(name, once))
        self._noting.add(noting)
        noting.add_done_callback(self._note)
        try:
            await asyncio.wait({found, noting}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            noting.cancel()
            await asyncio.wait({noting})
            raise
        return found.result() if found.done() else noting.result()

    async def settle(self) -> None:
        """Return once everything is noted; raise what kept a step from it."""
        if self._noting:
            await asyncio.wait(self._noting)
        if self._failed is not None:
            self._failed.result()

    async def _noted(self, name: str, once: Callable[[], Coroutine[Any, Any, int]]) -> int:
        try:
            # Where the database goes away, the run is driven again from its log.
            with telling_absence(self._dialect):
                sequence: int = await DBOS.run_step_async({"name": name}, once)
        except dbos_error.DBOSWorkflowConflictIDError as error:
            # Another process has resumed the workflow. It may have stood still between being told
            # to and doing it, and the run be this process's by now.
            raise StepsLostError from error
        except RecordedError:
            # A step that failed before: where its end could not be noted, DBOS has noted that as
            # its failure. The log alone says what is done.
            sequence = await once()
        return sequence

    def _note(self, noting: asyncio.Task[int]) -> None:
        self._noting.discard(noting)
        if not noting.cancelled() and noting.exception() is not None:
            self._failed = noting
