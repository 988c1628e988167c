"""Sees to it that a turn's conversation has room in the root model's window. Compacting it is a
step, told by an event: a run that is driven again finds it done.
"""

from __future__ import annotations

from collections.abc import Sequence

from fathom.gateway.v1.generation_pb2 import Usage
from fathom.orchestrator.v1.run_event_pb2 import HistoryCompacted, RunEvent, VariableSummary

from orchestrator.runs.amounts import add_usage
from orchestrator.runs.budget import Budget
from orchestrator.runs.log.journal import RunJournal
from orchestrator.runs.log.recorded import history_compacted, turn_started
from orchestrator.runs.model.compaction import Compaction, Permit
from orchestrator.runs.passes import RunPasses

_REFUSALS_MAX = 4
"""Each makes a conversation half as long; what is refused then will not fit at all."""


class Room:
    """The room of one run's conversation."""

    def __init__(
        self,
        compaction: Compaction,
        journal: RunJournal,
        budget: Budget,
        passes: RunPasses,
        *,
        run_id: str,
    ) -> None:
        self._compaction = compaction
        self._journal = journal
        self._budget = budget
        self._passes = passes
        self._run_id = run_id
        self._turn = 0
        self._done = 0
        self.refusals = 0
        """How often the conversation was compacted in this turn because it had been refused."""

    @property
    def output_tokens_max(self) -> int | None:
        """Tokens that a reply may have; None for the gateway's default."""
        return self._compaction.output_tokens_max

    @property
    def window_tokens(self) -> int:
        """The root model's window; 0 where it is unknown."""
        return self._compaction.window_tokens

    async def make(self, turn: int, variables: Sequence[VariableSummary]) -> None:
        """Compact the conversation before a turn's call, where it is near the window's end."""
        self._turn, self._done, self.refusals = turn, 0, 0
        recorded = self._journal.recorded
        past = recorded.find(history_compacted(turn), 0)
        if past is not None and not past.history_compacted.refused:
            await self._compact(variables, tokens=0, refused=False)
        elif past is None and not recorded.count(turn_started(turn)) and self._compaction.is_near:
            tokens = await self._compaction.tokens_over(self._permit())
            if tokens and self._compaction.helps():
                await self._compact(variables, tokens=tokens, refused=False)

    async def make_after_refusal(self, variables: Sequence[VariableSummary]) -> bool:
        """Compact a conversation that the provider has refused as too long; return whether it
        can be asked again."""
        if not self._can_shorten():
            return False
        self.refusals += 1
        await self._compact(variables, tokens=0, refused=True)
        return True

    def _can_shorten(self) -> bool:
        """Whether a refused conversation can become shorter; what the log says of that goes
        first."""
        if self._journal.recorded.find(history_compacted(self._turn), self._done) is not None:
            return True
        if self._journal.limit_after(self._turn) is not None:
            return False
        return self.refusals < _REFUSALS_MAX and self._compaction.helps(refused=True)

    async def _compact(
        self, variables: Sequence[VariableSummary], *, tokens: int, refused: bool
    ) -> None:
        turn = self._turn

        async def work() -> RunEvent:
            made = await self._compaction.compact(
                self._permit(), variables, tokens=tokens, refused=refused
            )
            run_usage = Usage()
            run_usage.CopyFrom(self._budget.usage)
            add_usage(run_usage, made.usage)
            made.run_usage.CopyFrom(run_usage)
            self._journal.set_usage(run_usage)
            return RunEvent(turn=turn, history_compacted=made)

        event = await self._journal.step(
            f"compaction {turn}.{self._done}", history_compacted(turn), work
        )
        self._done += 1
        self._apply(event.history_compacted)

    def _apply(self, made: HistoryCompacted) -> None:
        self._budget.add(made.usage)
        self._journal.set_usage(self._budget.usage)
        self._compaction.apply(made)

    def _permit(self) -> Permit:
        return Permit(
            request_id=f"{self._run_id}/{self._turn}/compact/{self._done}",
            turn=self._turn,
            run_token=self._passes.for_notes(),
            timeout_s=self._budget.work_left_s,
        )
