"""The sub-calls that a run's code makes: numbered, counted against the budget, written down.

A cell can run more than once, when its session or its orchestrator is lost meanwhile; its calls
have the same numbers then, and each is counted and told once.
"""

from __future__ import annotations

from fathom.orchestrator.v1 import run_event_pb2 as events
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.sandbox.v1.execution_pb2 import SubCallFinished, SubCallStarted

from common.errors import ReceivedError
from orchestrator.runs.budget import Budget, usage_in, usage_of
from orchestrator.runs.log.journal import RunJournal
from orchestrator.runs.meters import RunMeters


class SubCalls:
    """The sub-calls of one run. One cell runs at a time."""

    def __init__(self, journal: RunJournal, budget: Budget, meters: RunMeters) -> None:
        self._journal = journal
        self._budget = budget
        self._meters = meters
        self._turn = 0
        self._cell = 0
        self._live = 0
        self._before = 0
        self._first: int | None = None

    def begin_cell(self, *, turn: int, cell: int) -> int:
        """Take what follows as calls of this cell, and count those that the log has of it; return
        how many the run had made before the cell."""
        self._turn, self._cell = turn, cell
        self._before = self._budget.sub_calls
        self._live, self._first = 0, None
        told = self._journal.sub_calls((turn, cell))
        self._budget.add(told.usage)
        self._journal.set_usage(self._budget.usage)
        self._count(told.newest)
        return self._before

    def begin_again(self) -> None:
        """Take what follows as the same cell, from its start."""
        self._journal.run.sub_calls_live -= self._live
        self._live, self._first = 0, None

    def end_cell(self) -> int:
        """Return how many calls the cell made. Those cut off with it are no longer live."""
        self.begin_again()
        return self._budget.sub_calls - self._before

    def start(self, started: SubCallStarted) -> None:
        """Count a call."""
        self._live += 1
        self._journal.run.sub_calls_live += 1
        if self._first is None:
            self._first = started.sub_call
        number = self._number(started.sub_call)
        self._count(number)
        told = events.SubCallStarted(
            sub_call=number,
            batch=started.batch,
            tier=started.tier,
            prompt_characters=started.prompt_characters,
            prompt_head=started.prompt_head,
        )
        event = RunEvent(sub_call_started=told)
        if not self._is_told(event):
            self._journal.add_once(event, may_wait=True)
            self._meters.sub_call()

    def finish(self, finished: SubCallFinished) -> None:
        """Add a call's usage, once; raises LimitReachedError where that is too much."""
        self._live -= 1
        self._journal.run.sub_calls_live -= 1
        told = events.SubCallFinished(
            sub_call=self._number(finished.sub_call), elapsed=finished.elapsed
        )
        if finished.HasField("error"):
            told.error.CopyFrom(finished.error)
            told.usage.CopyFrom(usage_in(ReceivedError(finished.error)))
        else:
            told.text_head = finished.generation.text
            told.usage.CopyFrom(usage_of(finished.generation))
            told.model = finished.generation.model
        event = RunEvent(sub_call_finished=told)
        if not self._is_told(event):
            self._budget.add(told.usage)
            self._journal.set_usage(self._budget.usage)
            self._journal.add_once(event, may_wait=True)
            self._budget.check_overspent()

    def _number(self, session_number: int) -> int:
        """Return a call's number in the run: sessions count on from call to call, and a rebuilt
        one has not made all that the run has made."""
        return self._before + session_number - (self._first or session_number) + 1

    def _count(self, number: int) -> None:
        self._budget.sub_calls = max(self._budget.sub_calls, number)
        self._journal.run.sub_calls = self._budget.sub_calls_in_all

    def _is_told(self, event: RunEvent) -> bool:
        """Place an event, and return whether the log has it."""
        event.turn, event.cell = self._turn, self._cell
        return self._journal.has(event)
