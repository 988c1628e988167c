"""What the databases and the sandbox say once all runs have ended: each event once and none lost,
each call paid once, nothing kept for anybody.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import grpc
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.sandbox.v1.sandbox_service_pb2 import ListSessionsRequest
from fathom.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from sqlalchemy import Connection, Engine, create_engine, func, make_url, select

from llm_gateway.accounts.tables import holds
from llm_gateway.ledger.entries import CallState
from llm_gateway.ledger.tables import calls, exchanges
from orchestrator import tables
from orchestrator.runs.log.record import TERMINAL_STATES
from orchestrator.runs.log.recorded import key_of
from tests.chaos.followed_run import COST_USD_NANOS_MAX, FollowedRun
from tests.chaos.workload import Models, question

_ONCE = frozenset(
    {
        *("model_replied", "cell_started", "cell_finished", "value_read"),
        *("sub_call_started", "sub_call_finished", "child_run_changed", "run_changed"),
        *("turn_started", "checkpoint_stored"),
    }
)
"""Kinds of events of which there is one about each thing."""
_SESSIONS_TIMEOUT_S = 5.0


@dataclasses.dataclass
class Findings:
    """What does not hold, in words, one entry for each."""

    events_lost: list[str] = dataclasses.field(default_factory=list)
    """Events that a watcher missed, or that the log misses."""
    events_doubled: list[str] = dataclasses.field(default_factory=list)
    """Events that are there twice."""
    paid_twice: list[str] = dataclasses.field(default_factory=list)
    """Calls that were paid again although the ledger had them."""
    spend_wrong: list[str] = dataclasses.field(default_factory=list)
    """Sums that do not agree, or pass a cap."""
    leaked: list[str] = dataclasses.field(default_factory=list)
    """What is kept for nobody."""


class Books:
    """The databases, opened once everything has come to rest."""

    def __init__(self, orchestrator_url: str, gateway_url: str) -> None:
        self._runs = _engine(orchestrator_url)
        self._ledger = _engine(gateway_url)

    def close(self) -> None:
        """Close the connections."""
        self._runs.dispose()
        self._ledger.dispose()

    def leaks(self) -> list[str]:
        """Return what is kept for runs and calls that have ended."""
        with self._runs.connect() as connection:
            live = select(tables.runs.c.run_id).where(
                tables.runs.c.state.not_in(sorted(TERMINAL_STATES))
            )
            found = [f"the run {each} lives" for each in connection.execute(live).scalars()]
            unbooked = select(tables.child_runs.c.run_id).where(~tables.child_runs.c.is_booked)
            found += [
                f"the child {each} has a share kept"
                for each in connection.execute(unbooked).scalars()
            ]
        with self._ledger.connect() as connection:
            still = select(calls.c.request_id).where(calls.c.state == CallState.OPEN)
            found += [f"the call {each} is open" for each in connection.execute(still).scalars()]
            held = select(holds.c.hold_id).where(holds.c.expired_us == 0)
            found += [f"the hold {each} stands" for each in connection.execute(held).scalars()]
        return found

    def check(self, runs: Sequence[FollowedRun], models: Models, findings: Findings) -> None:
        """Hold the books against what was seen of the runs, and what providers were asked."""
        with self._runs.connect() as connection:
            for row in connection.execute(select(tables.runs.c.run_id)):
                _check_log(_log(connection, row.run_id), row.run_id, findings)
            for run in runs:
                _check_watcher(_log(connection, run.name.removeprefix("runs/")), run, findings)
        with self._ledger.connect() as connection:
            _check_calls(connection, findings)
            for run in runs:
                _check_spend(connection, run, models, findings)


async def sessions(address: grpc.aio.Channel) -> list[str]:
    """Return the sessions that the sandbox has."""
    stub = SandboxServiceStub(address)
    response = await stub.ListSessions(ListSessionsRequest(), timeout=_SESSIONS_TIMEOUT_S)
    return [f"the session {each.name} of {each.labels['run']}" for each in response.sessions]


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    return create_engine(parsed.set(drivername="sqlite") if is_sqlite else parsed)


def _log(connection: Connection, run_id: str) -> list[RunEvent]:
    events = tables.run_events.c
    query = select(events.event).where(events.run_id == run_id).order_by(events.sequence)
    return [RunEvent.FromString(data) for data in connection.execute(query).scalars()]


def _check_log(log: Sequence[RunEvent], run_id: str, findings: Findings) -> None:
    sequences = [event.sequence for event in log]
    if sequences != list(range(1, len(log) + 1)):
        findings.events_lost.append(f"the log of {run_id} has {sequences}")
    counts = collections.Counter(
        key_of(event) for event in log if event.WhichOneof("event") in _ONCE
    )
    findings.events_doubled += [
        f"{key} is {count} times in {run_id}" for key, count in counts.items() if count > 1
    ]


def _check_watcher(log: Sequence[RunEvent], run: FollowedRun, findings: Findings) -> None:
    findings.events_lost += run.faults
    if log != run.events:
        findings.events_lost.append(
            f"the watcher of {run.name} has seen {len(run.events)} events, the log has {len(log)}"
        )


def _check_calls(connection: Connection, findings: Findings) -> None:
    """An exchange whose outcome nobody knows is booked as an estimate; a known one is the last."""
    known: collections.Counter[Any] = collections.Counter()
    query = select(exchanges.c.run, exchanges.c.request_id, exchanges.c.is_estimated)
    for row in connection.execute(query.where(~exchanges.c.is_cached)):
        known[row.run, row.request_id] += not row.is_estimated
    findings.paid_twice += [
        f"{request_id} of {run} was paid {count} times"
        for (run, request_id), count in known.items()
        if count > 1
    ]


def _check_spend(
    connection: Connection, run: FollowedRun, models: Models, findings: Findings
) -> None:
    mine = exchanges.c.run == run.name
    row = connection.execute(
        select(func.count(), func.coalesce(func.sum(exchanges.c.cost_usd_nanos), 0)).where(mine)
    ).one()
    count, cost = int(row[0]), int(row[1])
    asked = models.asked_of(question(run.number))
    if asked > count:
        findings.paid_twice.append(f"{run.name} asked {asked} times, the ledger has {count}")
    told = run.ended.usage.cost_usd_nanos
    if cost > COST_USD_NANOS_MAX:
        findings.spend_wrong.append(f"{run.name} spent {cost} of {COST_USD_NANOS_MAX}")
    if told != cost:
        findings.spend_wrong.append(f"{run.name} tells of {told}, the ledger has {cost}")
