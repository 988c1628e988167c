"""The sub-calls that a run's code makes: numbered, counted against the budget, written down."""

from __future__ import annotations

from fathom.orchestrator.v1 import run_event_pb2 as events
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.sandbox.v1.execution_pb2 import SubCallFinished, SubCallStarted

from common.errors import ReceivedError
from orchestrator.runs.budget import Budget, usage_in
from orchestrator.runs.journal import RunJournal
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
        self._of_cell = 0
        self._of_lost_sessions = 0
        self._newest = 0

    def begin_cell(self, *, turn: int, cell: int) -> None:
        """Take what follows as calls of this cell."""
        self._turn, self._cell = turn, cell
        self._of_cell = 0

    def end_cell(self) -> int:
        """Return how many calls the cell made. Those cut off with it are no longer live."""
        self._journal.run.sub_calls_live -= self._live
        self._live = 0
        return self._of_cell

    def session_lost(self) -> None:
        """Number on from here: a new session counts its calls from 1 again."""
        self._of_lost_sessions = self._newest

    def start(self, started: SubCallStarted) -> None:
        """Count a call."""
        self._live += 1
        self._of_cell += 1
        self._budget.sub_calls += 1
        self._meters.sub_call()
        self._journal.run.sub_calls = self._budget.sub_calls
        self._journal.run.sub_calls_live += 1
        self._newest = self._of_lost_sessions + started.sub_call
        told = events.SubCallStarted(
            sub_call=self._newest,
            batch=started.batch,
            tier=started.tier,
            prompt_characters=started.prompt_characters,
            prompt_head=started.prompt_head,
        )
        self._add(RunEvent(sub_call_started=told))

    def finish(self, finished: SubCallFinished) -> None:
        """Add a call's usage, once; raises LimitReachedError where that is too much."""
        self._live -= 1
        self._journal.run.sub_calls_live -= 1
        told = events.SubCallFinished(
            sub_call=self._of_lost_sessions + finished.sub_call, elapsed=finished.elapsed
        )
        if finished.HasField("error"):
            told.error.CopyFrom(finished.error)
            told.usage.CopyFrom(usage_in(ReceivedError(finished.error)))
        else:
            told.text_head = finished.generation.text
            told.usage.CopyFrom(finished.generation.usage)
            told.model = finished.generation.model
        self._budget.add(told.usage)
        self._journal.set_usage(self._budget.usage)
        self._add(RunEvent(sub_call_finished=told))
        self._budget.check_overspent()

    def _add(self, event: RunEvent) -> None:
        event.turn, event.cell = self._turn, self._cell
        self._journal.add(event, may_wait=True)
