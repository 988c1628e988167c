"""The durable engine on DBOS: a workflow a run, named by the run's id, and a step a piece of work.
It is no source of truth: that is the event log, and without DBOS's tables runs go on all the same.

DBOS's own queue polls: at 50 ms that took 5 % of a processor at rest and 60 ms until a run began.
So it only hands over workflows that this process has already taken up in our tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dbos import DBOS, DBOSConfig, SetWorkflowID
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url

from common.config import ConfigError
from common.database import bound_idleness, telling_absence
from orchestrator.durable.dbos_steps import DbosSteps
from orchestrator.durable.engine import Alive, Ended, RunLeftError, RunWork
from orchestrator.durable.json_serializer import JsonSerializer

_PROTOCOL = "1"
"""Raised when a run can no longer go on from steps that an older version has remembered."""
_WORKFLOW = "run"
_SCHEMA = "dbos"
_QUEUE = "taken-"
_FILE_SUFFIX = "-steps"
_POLL_S = 0.2
_SLEEP_S = 0.05
"""Of a thread of DBOS that has nothing to do here, and for which closing waits."""
_THREADS = 16
_CONNECTIONS = 5
_BUSY_TIMEOUT_MS = 30_000
_BEGIN_S = 10.0
"""How long a workflow may take to begin before it is asked for again."""
_END_S = 5.0
"""How long closing waits for ends of runs to be noted."""
_DELETED_AT_ONCE = 200
_OVER = frozenset({"SUCCESS", "ERROR"})
_UNDER_WAY = ("PENDING", "ENQUEUED")
_QUIET = (
    *("Asyncio task cancelled", "is no longer owned by this execution"),
    "Exception polling schedules",
)
"""Messages of DBOS about what we do on purpose, leaving a workflow and taking one over, and about
schedules, of which there are none, while the database is away."""


class DbosEngine:
    """The engine; an async context manager. A process can have one at a time."""

    def __init__(self, database_url: str, *, executor_id: str) -> None:
        """`database_url` is that of our own database, as SQLAlchemy has it."""
        self._url = steps_url(database_url)
        # DBOS takes up by itself whatever a former process of its name left, so none may return.
        self._executor_id = executor_id
        # A process that has no other beside it finds its queue polled from the start.
        is_alone = self._url.get_backend_name() == "sqlite"
        self._queue = _QUEUE if is_alone else _QUEUE + executor_id
        self._carried: dict[str, _Carried] = {}
        self._workflows: set[asyncio.Task[Any]] = set()
        self._left: frozenset[str] = frozenset()
        self._workflow: Any = None
        self._database = _open_engine(self._url)
        self._dialect = self._database.dialect.name

    async def __aenter__(self) -> Self:
        url = self._url.render_as_string(hide_password=False)
        is_postgres = self._url.get_backend_name() != "sqlite"
        _log_as_ours()
        if is_postgres:
            # Beside the event loop: it waits for transactions that are open in this process.
            await asyncio.to_thread(DBOS.migrate, url, schema=_SCHEMA)
        config = DBOSConfig(
            name="fathom",
            system_database_url=url,
            run_migrations=not is_postgres,
            system_database_engine=self._database,
            dbos_system_schema=_SCHEMA,
            application_version=_PROTOCOL,
            executor_id=self._executor_id,
            serializer=JsonSerializer(),
            enable_otlp=False,
            use_listen_notify=False,
            notification_listener_polling_interval_sec=_SLEEP_S,
            max_executor_threads=_THREADS,
            log_level="WARNING",
        )
        DBOS(config=config)

        async def run(run_id: str) -> None:
            await self._run(run_id)

        self._workflow = DBOS.workflow(name=_WORKFLOW, max_recovery_attempts=None)(run)
        DBOS.listen_queues([self._queue])
        # In this thread: DBOS runs workflows on the event loop that it is launched in.
        DBOS.launch()
        _log_as_ours()  # again, since it has given itself a handler of its own
        await self._open_queue()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._workflows:
            await asyncio.wait(self._workflows, timeout=_END_S)
        if self._queue != _QUEUE:
            await DBOS.delete_queue_async(self._queue)
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as thread:
            await loop.run_in_executor(thread, lambda: DBOS.destroy(destroy_registry=True))
        self._database.dispose()
        # DBOS has made its own threads the loop's and ended them.
        loop.set_default_executor(ThreadPoolExecutor())

    async def carry_out(self, run_id: str, work: RunWork, *, is_first: bool) -> None:
        """See DurableEngine."""
        carried = _Carried(work, is_first, asyncio.get_running_loop().create_future())
        self._carried[run_id] = carried
        try:
            while not carried.begun.is_set():
                with telling_absence(self._dialect):
                    if is_first or not await self._take_over(run_id):
                        await self._start(run_id)
                is_first = False
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(carried.begun.wait(), _BEGIN_S)
            await carried.done
        finally:
            carried.done.cancel()  # nobody waits for it any more
            if self._carried.get(run_id) is carried:
                del self._carried[run_id]

    async def forget(self, *, ended_before_s: float, begun_before_s: float, alive: Alive) -> int:
        """See DurableEngine."""
        with telling_absence(self._dialect):
            queues = await DBOS.list_queues_async()
            # Asked after that: a process that begins is alive before it has a queue.
            kept = {_QUEUE, *(_QUEUE + each for each in await alive())}
            for queue in queues:
                if queue.name not in kept:
                    await DBOS.delete_queue_async(queue.name)
            ended = await _listed(status=sorted(_OVER), completed_before=_iso(ended_before_s))
            begun = await _listed(end_time=_iso(begun_before_s))
            ids = {*ended, *begun} - set(self._carried)
            if ids:
                await DBOS.delete_workflows_async(sorted(ids))
        return len(ids)

    async def forget_left(self, ended: Ended) -> int:
        """See DurableEngine. Twice: a run's end is noted a moment after it is stored."""
        found: set[str] = set()
        with telling_absence(self._dialect):
            offset, page = 0, [""]
            while page:
                page = await _listed(status=list(_UNDER_WAY), offset=offset)
                found.update(await ended(page) if page else ())
                offset += len(page)
            left = frozenset(found) - set(self._carried)
            forgotten = sorted(left & self._left)
            for start in range(0, len(forgotten), _DELETED_AT_ONCE):
                await DBOS.delete_workflows_async(forgotten[start : start + _DELETED_AT_ONCE])
        self._left = left
        return len(forgotten)

    async def _start(self, run_id: str) -> None:
        with SetWorkflowID(run_id):
            await DBOS.start_workflow_async(self._workflow, run_id)

    async def _open_queue(self) -> None:
        await DBOS.register_queue_async(
            self._queue, polling_interval_sec=_POLL_S, on_conflict="never_update"
        )

    async def _take_over(self, run_id: str) -> bool:
        """Have the workflow that another process has begun go on here; return whether there is one
        to go on with."""
        status = await DBOS.get_workflow_status_async(run_id)
        if status is None:
            return False
        if status.status not in _OVER:
            # Again: others take away the queue of a process that they have counted as dead.
            await self._open_queue()
            await DBOS.resume_workflow_async(run_id, queue_name=self._queue)
            status = await DBOS.get_workflow_status_async(run_id)
        if status is not None and status.status in _OVER:
            # DBOS has noted an end of the run that was never stored, or by one who had lost it.
            await DBOS.delete_workflow_async(run_id)
            return False
        return True

    async def _run(self, run_id: str) -> None:
        """Be the workflow. Cancelled, it stays as it is in DBOS's tables, to be taken over."""
        carried = self._carried.get(run_id)
        if carried is None or carried.begun.is_set():
            raise asyncio.CancelledError
        carried.begun.set()
        workflow = asyncio.current_task()
        assert workflow is not None
        self._workflows.add(workflow)
        workflow.add_done_callback(self._workflows.discard)
        steps = DbosSteps(self._dialect, is_fresh=carried.is_first)
        try:
            try:
                await carried.work(steps)
                # At its end already: what is still to be noted keeps no other run waiting.
                if not carried.done.done():
                    carried.done.set_result(None)
            finally:
                await steps.settle()
        except BaseException as error:
            if not carried.done.done():
                is_error = isinstance(error, Exception)
                carried.done.set_exception(error if is_error else RunLeftError())
            raise asyncio.CancelledError from error


@dataclasses.dataclass(frozen=True)
class _Carried:
    """A run whose work is carried out here."""

    work: RunWork
    is_first: bool
    done: asyncio.Future[None]
    begun: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class _Unasked(logging.Filter):
    """Leaves out what DBOS says of things that are done on purpose."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(words in message for words in _QUIET)


def steps_url(database_url: str) -> URL:
    """Return where DBOS keeps its tables: in a schema beside ours, or in a file beside SQLite's,
    since writers of one file wait for one another. Raises ConfigError for a database in memory."""
    url = make_url(database_url)
    if url.get_backend_name() != "sqlite":
        return url
    if url.database in {None, "", ":memory:"}:
        raise ConfigError("database_url: must name a file")
    path = Path(str(url.database))
    beside = path.with_name(f"{path.stem}{_FILE_SUFFIX}{path.suffix}")
    return url.set(drivername="sqlite", database=str(beside))


def _open_engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        # Not tried before use, as ours are: DBOS repeats what a lost connection has broken off.
        engine = create_engine(url, pool_size=_CONNECTIONS, max_overflow=0)
        event.listen(engine, "connect", bound_idleness)
        return engine
    Path(str(url.database)).touch(mode=0o600)
    # Few: threads that wait for a connection cost nothing, SQLite's busy handler would sleep.
    engine = create_engine(url, pool_size=2, max_overflow=0, pool_timeout=_BUSY_TIMEOUT_MS / 1000)
    event.listen(engine, "connect", _set_pragmas)
    return engine


def _set_pragmas(connection: Any, _record: object) -> None:
    connection.isolation_level = "IMMEDIATE"
    # NORMAL loses no consistency in WAL mode; steps that a power cut takes are done again.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")


def _log_as_ours() -> None:
    """Have DBOS's log lines written as all others are."""
    logger = logging.getLogger("dbos")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)
    if not any(isinstance(each, _Unasked) for each in logger.filters):
        logger.addFilter(_Unasked())


async def _listed(**conditions: Any) -> list[str]:
    found = await DBOS.list_workflows_async(
        limit=_DELETED_AT_ONCE, load_input=False, load_output=False, **conditions
    )
    return [each.workflow_id for each in found]


def _iso(before_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - before_s))
