"""The child runs of one run as its own log tells of them: each one's start and end, once, with
what it spent counted as the run's own.

A cell can run more than once, when its session or its orchestrator is lost meanwhile; its children
are the same then.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from fathom.orchestrator.v1.run_event_pb2 import ChildRunChanged, RunEvent
from fathom.orchestrator.v1.run_pb2 import Run
from fathom.sandbox.v1 import execution_pb2 as sandbox

from orchestrator.runs.amounts import add_usage
from orchestrator.runs.budget import Budget
from orchestrator.runs.log.journal import RunJournal
from orchestrator.runs.log.record import TERMINAL_STATES, RunRecord
from orchestrator.runs.log.recorded import key_of
from orchestrator.runs.stop_wish import StopWish

_HEAD_CHARACTERS = 500
_LOOK_S = 0.05
_PATIENCE_S = 5.0
"""How long children that were told to stop may take for it before their parent ends all the
same; what they took is then added to it after that. Well below what the queue allows the parent."""


class Children(Protocol):
    """The child runs of every tenant."""

    async def close(self, run_id: str) -> None:
        """Have a run take no further child."""

    async def unbooked(self, tenant: str, run_id: str) -> list[tuple[str, RunRecord]]:
        """Return the children of a run whose end it has not told, with the request ids of the
        calls that started them."""

    async def stop_below(self, run_id: str) -> None:
        """Ask all runs below a run to stop."""


class ToldChildren:
    """The child runs of one run. One cell runs at a time."""

    def __init__(self, record: RunRecord, journal: RunJournal, budget: Budget) -> None:
        self._record = record
        self._journal = journal
        self._budget = budget
        self._turn = 0
        self._cell = 0
        self._live: set[int] = set()

    def begin_cell(self, *, turn: int, cell: int) -> None:
        """Take what follows as children of this cell, and count those that the log has of it."""
        self._turn, self._cell = turn, cell
        self._live = set()
        for run in self._journal.recorded.ended_children((turn, cell)):
            self._count(run)

    @property
    def has_live(self) -> bool:
        """Whether a child of the cell has begun and not ended, as far as is known."""
        return bool(self._live)

    def change(self, changed: sandbox.ChildRunChanged) -> None:
        """Tell of a child that was started."""
        if changed.child_run not in self._live:
            self._live.add(changed.child_run)
            run = self._shown(changed.run)
            self._add(changed.child_run, changed.batch, run)

    def finish(self, finished: sandbox.ChildRunFinished) -> None:
        """Tell of a child's end, and count what it spent; raises LimitReachedError where that is
        too much."""
        run = Run(state=Run.STATE_FAILED, parent=self._record.head.name)
        if finished.HasField("run"):
            run = self._shown(finished.run)
        else:
            run.error.CopyFrom(finished.error)
        self._live.discard(finished.child_run)
        if self._add(finished.child_run, finished.batch, run, is_end=True):
            self._budget.check_overspent()

    def _add(self, number: int, batch: int, run: Run, *, is_end: bool = False) -> bool:
        """Write a child's start or end down; return whether the log did not have it."""
        told = ChildRunChanged(run=run, child=number, batch=batch)
        event = RunEvent(turn=self._turn, cell=self._cell, child_run_changed=told)
        if self._journal.recorded.count(key_of(event)):
            return False
        if is_end:
            self._count(run)
            told.run_usage.CopyFrom(self._budget.usage)
            event.child_run_changed.CopyFrom(told)
        self._journal.add_once(event)
        return True

    def _count(self, run: Run) -> None:
        self._budget.add(run.usage)
        self._budget.sub_calls_of_children += run.sub_calls
        self._journal.set_usage(self._budget.usage)
        self._journal.run.sub_calls = self._budget.sub_calls_in_all

    def _shown(self, child: sandbox.ChildRun) -> Run:
        head = self._record.head
        run = Run(
            name=child.name,
            state=_state(child.state),
            parent=head.name,
            root=head.root or head.name,
            depth=child.depth,
            usage=child.usage,
            sub_calls=child.sub_calls,
        )
        run.spec.question = child.question_head
        if run.state in (Run.STATE_ANSWERED, Run.STATE_PARTIAL):
            run.answer.text = child.answer_head
            run.answer.limit_reached = child.limit_reached
        elif run.state in TERMINAL_STATES:
            run.error.CopyFrom(child.error)
        return run


async def end_children(
    tenant: str, record: RunRecord, journal: RunJournal, children: Children, stop: StopWish
) -> None:
    """Stop what lives below a run that is about to end, and tell of it as of the run's own; nothing
    where this process lets go of the run meanwhile, and perhaps of its children."""
    if not record.head.spec.limits.depth_max:
        return
    await children.close(record.run_id)
    left = await children.unbooked(tenant, record.run_id)
    if not left:
        return
    await children.stop_below(record.run_id)
    until_s = time.monotonic() + _PATIENCE_S
    while any(_is_live(child) for _, child in left) and time.monotonic() < until_s:
        if stop.is_left:
            return
        await asyncio.sleep(_LOOK_S)
        left = await children.unbooked(tenant, record.run_id)
    run = journal.run
    for request_id, child in left:
        if _is_live(child):
            run.usage_incomplete = True
            continue
        turn, cell, number = _place(request_id)
        told = ChildRunChanged(run=_cut(child.whole()), child=number)
        event = RunEvent(turn=turn, cell=cell, child_run_changed=told)
        if journal.recorded.count(key_of(event)):  # told just now, and not stored yet
            continue
        add_usage(run.usage, child.progress.usage)
        run.sub_calls += child.progress.sub_calls
        event.child_run_changed.run_usage.CopyFrom(run.usage)
        journal.add_once(event)


def _is_live(child: RunRecord) -> bool:
    return child.progress.state not in TERMINAL_STATES


def _state(word: str) -> Run.State.ValueType:
    name = f"STATE_{word}"
    return Run.State.Value(name) if name in Run.State.keys() else Run.STATE_UNSPECIFIED  # noqa: SIM118


def _cut(run: Run) -> Run:
    """Return a run as its parent's log tells of it."""
    run.spec.question = run.spec.question[:_HEAD_CHARACTERS]
    run.spec.ClearField("answer_schema_json")
    run.found_so_far = run.found_so_far[:_HEAD_CHARACTERS]
    if run.HasField("answer"):
        run.answer.text = run.answer.text[:_HEAD_CHARACTERS]
        del run.answer.citations[:]
    return run


def _place(request_id: str) -> tuple[int, int, int]:
    """Return turn, cell and position of the call that a request id names."""
    _, turn, cell, position = request_id.split("/")
    return int(turn), int(cell), int(position.removeprefix("c"))
