"""Chores: what is done again and again while the service runs, such as sweeps. What one does is its
owner's business; here is when, and that none ends because it failed once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from common.background import end_tasks
from common.database import DatabaseAwayError
from common.errors import ReceivedError
from orchestrator.errors import ObjectStoreError

_AWAY = (DatabaseAwayError, ObjectStoreError, ReceivedError)
"""What neighbours raise that are away or refuse: nothing that a traceback would explain."""
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chore:
    """Something to do every so often."""

    name: str
    """What it is, for the log."""
    work: Callable[[], Awaitable[object]]
    """Does it once."""
    every_s: float
    """How long it rests after each time."""
    is_begun_at_once: bool = True
    """False where it rests before the first time too."""

    async def do_for_ever(self) -> None:
        """Do it for ever. What fails is told in the log and tried again."""
        if not self.is_begun_at_once:
            await asyncio.sleep(self.every_s)
        while True:
            try:
                await self.work()
            except _AWAY as error:
                facts = {"chore": self.name, "reason": error.reason_name}
                _log.warning("a chore is put off", extra=facts)
            except Exception:  # a fault of ours: it stops neither the service nor the next time
                _log.exception("a chore failed", extra={"chore": self.name})
            await asyncio.sleep(self.every_s)


@contextlib.asynccontextmanager
async def doing(*chores: Chore) -> AsyncIterator[None]:
    """Do them, side by side, while the block lasts."""
    tasks = [asyncio.create_task(chore.do_for_ever()) for chore in chores]
    try:
        yield
    finally:
        await end_tasks(*tasks)
