"""What the databases say once all runs have ended: each event once and none lost, each call paid
once, and every sum right.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Run
from sqlalchemy import Connection, Engine, create_engine, func, make_url, select

from llm_gateway.ledger.tables import exchanges
from orchestrator import tables
from orchestrator.runs.log.recorded import key_of
from tests.chaos.followed_run import FollowedRun
from tests.chaos.leaks import left_in_ledger, left_in_runs
from tests.chaos.models import Models
from tests.chaos.orders import Orders
from tests.chaos.scripts import script_of
from tests.chaos.stories import COST_USD_NANOS_MAX

_ONCE = frozenset(
    {
        *("model_replied", "cell_started", "cell_finished", "value_read"),
        *("sub_call_started", "sub_call_finished", "child_run_changed", "run_changed"),
        *("turn_started", "checkpoint_stored", "host_tool_called"),
    }
)
"""Kinds of events of which there is one about each thing."""


@dataclasses.dataclass
class Findings:
    """What does not hold, in words, one entry for each."""

    events_lost: list[str] = dataclasses.field(default_factory=list)
    """Events that a watcher missed, or that the log misses."""
    events_doubled: list[str] = dataclasses.field(default_factory=list)
    """Events that are there twice."""
    paid_twice: list[str] = dataclasses.field(default_factory=list)
    """Calls that were paid again although the ledger had them, and things ordered again."""
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
        with self._runs.connect() as runs, self._ledger.connect() as ledger:
            return [*left_in_runs(runs), *left_in_ledger(ledger)]

    def account(self, run: FollowedRun) -> str:
        """Return where what a tree of runs took was told and booked, a line each."""
        root_id = run.name.removeprefix("runs/")
        children, late, runs = tables.child_runs.c, tables.late_usage.c, tables.runs.c
        below = select(children.run_id).where(children.root_id == root_id)
        lines = []
        with self._runs.connect() as connection:
            query = select(runs.run_id, runs.progress, runs.booked, runs.epoch)
            for row in connection.execute(
                query.where((runs.run_id == root_id) | runs.run_id.in_(below))
            ):
                told = Run.FromString(row.progress)
                cost, state = told.usage.cost_usd_nanos, Run.State.Name(told.state)
                lines.append(f"{row.run_id} {state} {cost} epoch {row.epoch}, books {row.booked}")
            of_tree = children.root_id == root_id
            columns = (children.run_id, children.parent_id, children.request_id, children.is_booked)
            lines += map(str, connection.execute(select(*columns).where(of_tree)))
            settled = (late.run_id == root_id) | late.run_id.in_(below)
            lines += map(str, connection.execute(select(late.run_id, late.due_us).where(settled)))
        calls = exchanges.c
        paid = (calls.request_id, calls.cost_usd_nanos, calls.is_estimated, calls.ended_us)
        with self._ledger.connect() as connection:
            query = select(*paid).where(calls.run == run.name).order_by(calls.request_id)
            lines += map(str, connection.execute(query))
        return "\n".join(lines)

    def check(
        self, runs: Sequence[FollowedRun], models: Models, orders: Orders, findings: Findings
    ) -> None:
        """Hold the books against what was seen of the runs, what providers were asked, and what
        was ordered."""
        with self._runs.connect() as connection:
            for row in connection.execute(select(tables.runs.c.run_id)):
                _check_log(_log(connection, row.run_id), row.run_id, findings)
            for run in runs:
                _check_watcher(_log(connection, run.name.removeprefix("runs/")), run, findings)
        with self._ledger.connect() as connection, self._runs.connect() as kept:
            _check_calls(connection, findings)
            for run in runs:
                _check_spend(connection, run, _cost(kept, run), models, findings)
        findings.paid_twice += orders.doubled
        for run in runs:
            count, right = orders.count_of(run.mark), script_of(run.mark).tool_calls
            if count != right:
                findings.spend_wrong.append(f"{run.mark} has ordered {count} in place of {right}")


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    return create_engine(parsed.set(drivername="sqlite") if is_sqlite else parsed)


def _log(connection: Connection, run_id: str) -> list[RunEvent]:
    events = tables.run_events.c
    query = select(events.event).where(events.run_id == run_id).order_by(events.sequence)
    return [RunEvent.FromString(data) for data in connection.execute(query).scalars()]


def _cost(connection: Connection, run: FollowedRun) -> int:
    """Return what a run costs as it is stored: what was cut off is added to it after its end."""
    runs = tables.runs.c
    query = select(runs.progress).where(runs.run_id == run.name.removeprefix("runs/"))
    return Run.FromString(connection.execute(query).scalar_one()).usage.cost_usd_nanos


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
    connection: Connection, run: FollowedRun, told: int, models: Models, findings: Findings
) -> None:
    mine = exchanges.c.run == run.name
    row = connection.execute(
        select(func.count(), func.coalesce(func.sum(exchanges.c.cost_usd_nanos), 0)).where(mine)
    ).one()
    count, cost = int(row[0]), int(row[1])
    asked = models.asked_of(run.mark)
    if asked > count:
        findings.paid_twice.append(f"{run.name} asked {asked} times, the ledger has {count}")
    if cost > COST_USD_NANOS_MAX:
        findings.spend_wrong.append(f"{run.name} spent {cost} of {COST_USD_NANOS_MAX}")
    if told != cost:
        findings.spend_wrong.append(f"{run.name} tells of {told}, the ledger has {cost}")
