"""What is kept for nobody once all runs have ended: in the databases, in Valkey, in the sandbox, in
folders, and among processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import grpc
import redis
from fathom.sandbox.v1.sandbox_service_pb2 import ListSessionsRequest
from fathom.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from sqlalchemy import Connection, create_engine, select, text

from bench.processes import worker_pids
from llm_gateway.accounts.account import Account
from llm_gateway.accounts.caps import NOTHING
from llm_gateway.accounts.tables import accounts, holds
from llm_gateway.ledger.entries import CallState
from llm_gateway.ledger.tables import calls
from orchestrator import tables
from orchestrator.durable.dbos_engine import steps_url
from orchestrator.runs.log.record import TERMINAL_STATES

_SESSIONS_TIMEOUT_S = 5.0
_UPLOADS = "partial/blobs.*"
"""What is being uploaded into the object store. Of what else is written there, a killed process's
part is removed after an hour, at the next start."""


def left_in_runs(connection: Connection) -> Iterator[str]:
    """Yield what the orchestrators' database has for runs that have ended."""
    live = tables.runs.c.state.not_in(sorted(TERMINAL_STATES))
    for run in connection.execute(select(tables.runs.c.run_id).where(live)).scalars():
        yield f"the run {run} lives"
    unbooked = select(tables.child_runs.c.run_id).where(~tables.child_runs.c.is_booked)
    for child in connection.execute(unbooked).scalars():
        yield f"the child {child} has a share kept"
    unsettled = select(tables.late_usage.c.run_id).where(tables.late_usage.c.due_us.is_not(None))
    for run in connection.execute(unsettled).scalars():
        yield f"what the run {run} took is not settled"
    tools = tables.host_tool_calls.c
    unheard = select(tools.request_id).where(tools.result_json.is_(None), tools.error.is_(None))
    for call in connection.execute(unheard).scalars():
        yield f"the tool call {call} has not ended"
    unfinished = select(tables.uploads.c.upload_id).where(tables.uploads.c.context_id.is_(None))
    for upload in connection.execute(unfinished).scalars():
        yield f"the upload {upload} has not ended"
    removed = select(tables.blobs.c.blob_key).where(tables.blobs.c.removed_us.is_not(None))
    for blob in connection.execute(removed).scalars():
        yield f"the blob {blob} is still to be removed"


def left_in_ledger(connection: Connection) -> Iterator[str]:
    """Yield what the gateways' database has for calls that have ended."""
    still = select(calls.c.request_id).where(calls.c.state == CallState.OPEN)
    for call in connection.execute(still).scalars():
        yield f"the call {call} is open"
    for hold in connection.execute(
        select(holds.c.hold_id).where(holds.c.expired_us == 0)
    ).scalars():
        yield f"the hold {hold} stands"
    for row in connection.execute(select(accounts.c.account, accounts.c.numbers)):
        if Account.load(row.numbers, 0).held != NOTHING:
            yield f"the account {row.account} has something reserved"


def left_in_valkey(url: str) -> Iterator[str]:
    """Yield what the server has for calls that have ended."""
    with redis.Redis.from_url(url, decode_responses=True) as server:
        for key in server.scan_iter("fathom:*:holds:*"):
            yield f"{server.scard(key)} holds stand in {key}"
        for key in server.scan_iter("fathom:*:account:*"):
            held = server.hmget(key, "hc", "ht", "hm")
            if any(int(value or 0) for value in held):
                yield f"{key} has {held} reserved"


def left_of_steps(database_url: str) -> list[str]:
    """Return the workflows in the engine's own tables that have not ended for it."""
    url = steps_url(database_url)
    schema = "" if url.get_backend_name() == "sqlite" else "dbos."
    query = (
        f"SELECT workflow_uuid FROM {schema}workflow_status WHERE status IN ('PENDING', 'ENQUEUED')"
    )
    engine = create_engine(url)
    with engine.connect() as connection:
        found = list(connection.execute(text(query)).scalars())
    engine.dispose()
    return [f"the steps of the run {run_id} are kept" for run_id in found]


async def left_in_sandbox(channel: grpc.aio.Channel) -> list[str]:
    """Return the sessions that the sandbox has."""
    stub = SandboxServiceStub(channel)
    response = await stub.ListSessions(ListSessionsRequest(), timeout=_SESSIONS_TIMEOUT_S)
    return [f"the session {each.name} of {each.labels['run']}" for each in response.sessions]


def left_in_folders(objects: Path, scratch: Path) -> Iterator[str]:
    """Yield files that nobody will go on with."""
    for path in (*objects.glob(_UPLOADS), *scratch.rglob("*")):
        if path.is_file():
            yield f"{path} is left"


@dataclasses.dataclass(frozen=True)
class Process:
    """A process, told from others of its number by when it began."""

    pid: int
    """Its number."""
    began: str
    """Ticks since the machine's start."""
    name: str
    """What it runs."""

    @property
    def is_alive(self) -> bool:
        """Whether it is there, and not only waited for."""
        return process(self.pid) == self


def process(pid: int) -> Process | None:
    """Return a process that has not ended; None where there is none."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = line.partition("(")[2].rpartition(")")
    fields = rest.split()
    return None if fields[0] in "ZX" else Process(pid, fields[19], name)


def descendants(pid: int) -> Iterator[Process]:
    """Yield the processes that one has started, and those that they have."""
    for child in worker_pids(pid):
        found = process(child)
        if found is not None:
            yield found
            yield from descendants(child)
