"""The real supervisor over workers that are puppets; with hardly any patience where it is hasty."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import patch

from common.errors import NotFoundError
from sandbox_service.audit import AuditTrail
from sandbox_service.cell_requests import Carriers
from sandbox_service.errors import CapacityError, SessionLostError
from sandbox_service.execution_options import ExecutionOptions
from sandbox_service.execution_stream import Event
from sandbox_service.guest_build import GuestBuild
from sandbox_service.limits import Limits
from sandbox_service.objects import FolderObjects
from sandbox_service.pool import WorkerPool
from sandbox_service.run_pass import RunPass
from sandbox_service.session import Session
from sandbox_service.session_options import SessionOptions
from sandbox_service.session_table import SessionTable
from sandbox_service.sub_calls import SubCall
from tests.hostile.puppet_worker import COMMAND, Script, puppet_workers

HASTE = {
    "execution_stream._GRACE_S": 0.02,
    "execution_stream._INTERRUPT_GRACE_S": 0.02,
    "residence._SAVE_TIMEOUT_S": 0.02,
    "pool._RETRY_S": 0.02,
}
OPTIONS = SessionOptions(
    limits=Limits(output_bytes_max=1000, sub_calls_max=5),
    contexts=[],
    idle_ttl_s=60.0,
    labels={},
    run_token="token",
)
HASTY = dataclasses.replace(
    OPTIONS, limits=dataclasses.replace(OPTIONS.limits, execute_time_max_s=0.02)
)
"""For a session whose worker may never end a cell: it is not to be waited for."""


class SubModels:
    """Answers nothing; some of it late."""

    async def ask(
        self, calls: list[SubCall], run_pass: RunPass
    ) -> AsyncIterator[tuple[int, NotFoundError]]:
        for position in range(len(calls)):
            await asyncio.sleep(0)
            yield position, NotFoundError("models/none")


@asynccontextmanager
async def supervisor(
    script: Script, folder: Path, *, is_hasty: bool = False
) -> AsyncIterator[SessionTable]:
    """Run a service of two workers, the first of which has the script."""
    with contextlib.ExitStack() as patience:
        for name, value in HASTE.items() if is_hasty else ():
            patience.enter_context(patch(f"sandbox_service.{name}", value))
        puppets = patience.enter_context(puppet_workers(script))
        build = GuestBuild.in_folder(folder)
        try:
            async with (
                WorkerPool(build, 2, COMMAND) as pool,
                SessionTable(pool, FolderObjects(folder), 10) as sessions,
            ):
                yield sessions
        finally:
            for puppet in puppets:
                await puppet.end()


async def run(sessions: SessionTable, session: Session) -> list[int | Event] | None:
    """Run a cell; None where it ends in one of the errors that the contract has for it."""
    options = ExecutionOptions(code="x")
    carriers = Carriers(sub_models=SubModels())  # type: ignore[arg-type]
    events = session.execute(options, carriers, sessions.tasks, AuditTrail())
    try:
        return [event async for batch in events for event in batch]
    except (SessionLostError, CapacityError):
        return None
