"""What a run of a conversation goes on from: earlier questions with their answers, and the session
as the newest run left it that ended with an answer.

All of it is read from the runs of the conversation that came before, which never change again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from fathom.orchestrator.v1.run_event_pb2 import RunEvent, VariableSummary
from fathom.orchestrator.v1.run_pb2 import Run

from common.errors import NotFoundError
from orchestrator.runs.log.record import RunRecord

_RUNS_MAX = 100
_ENDED_WELL = (Run.STATE_ANSWERED, Run.STATE_PARTIAL)


@dataclasses.dataclass(frozen=True)
class Exchange:
    """An earlier question and what came of it."""

    question: str
    """The question."""
    answer: str
    """The answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptSession:
    """A session as a run left it."""

    checkpoint_key: str
    """Names it."""
    executions: int
    """Executions that it had ended."""
    variables: Sequence[VariableSummary]
    """What is in it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Earlier:
    """What came before a run."""

    exchanges: Sequence[Exchange]
    """The newest ones, oldest first."""
    session: KeptSession | None
    """What its session begins as; None for a fresh one."""


class RunLogs(Protocol):
    """Where what happened in runs is read."""

    def past(self, run_id: str) -> AsyncIterator[RunEvent]:
        """Yield the events of a run."""


class Members(Protocol):
    """Where the runs of a conversation are listed."""

    async def run_ids(
        self, tenant: str, conversation_id: str, *, before: str = "", count: int
    ) -> list[str]:
        """Return their ids from the newest on, those before one."""


class Runs(Protocol):
    """Where runs are found."""

    async def get(self, tenant: str, run_id: str) -> RunRecord:
        """Return a run; raises NotFoundError."""


class Recall:
    """Recalls what came before runs of conversations."""

    def __init__(self, members: Members, runs: Runs, logs: RunLogs) -> None:
        self._members = members
        self._runs = runs
        self._logs = logs

    async def before(self, tenant: str, conversation: str, run_id: str) -> Earlier:
        """Return what came before a run of `conversations/{conversation}`; the same whenever it is
        asked."""
        exchanges: list[Exchange] = []
        session: KeptSession | None = None
        for earlier_id in await self._members.run_ids(
            tenant, conversation.removeprefix("conversations/"), before=run_id, count=_RUNS_MAX
        ):
            try:
                run = (await self._runs.get(tenant, earlier_id)).whole()
            except NotFoundError:
                break  # older ones are deleted too
            if run.state not in _ENDED_WELL:
                continue
            exchanges.append(Exchange(run.spec.question, run.answer.text))
            session = session or await self._session_after(earlier_id)
        exchanges.reverse()
        return Earlier(exchanges=exchanges, session=session)

    async def origin(self, tenant: str, run: Run) -> Run:
        """Return the run of a conversation that a fork has its first turns from, by way of other
        forks where need be; the run itself where it is no such fork, as far as is known."""
        found = run
        while not found.spec.conversation and found.forked_from:
            try:
                forked_id = found.forked_from.removeprefix("runs/")
                found = (await self._runs.get(tenant, forked_id)).head
            except NotFoundError:  # deleted
                return run
        return found if found.spec.conversation else run

    async def _session_after(self, run_id: str) -> KeptSession | None:
        """Return the session as a run left it; None where it ran nothing, or was not stored after
        all that it ran."""
        place, stored = (0, 0), None
        variables: Sequence[VariableSummary] = ()
        async for event in self._logs.past(run_id):
            if event.cell_finished.state_kept or event.value_read.state_kept:
                place = event.turn, event.cell
            if event.cell_finished.state_kept:
                variables = event.cell_finished.variables
            if event.HasField("checkpoint_stored"):
                stored = event.checkpoint_stored
        if stored is None or (stored.turn, stored.cell or place[1]) < place:
            return None
        return KeptSession(
            checkpoint_key=stored.key,
            executions=stored.session_executions,
            variables=tuple(variables),
        )
