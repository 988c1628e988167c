"""The cells of one reply, run in order, and put into words for the model. Whether an answer counts
is not decided here.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from fathom.orchestrator.v1.run_event_pb2 import (
    CellFinished,
    CellStarted,
    RunEvent,
    VariableSummary,
)
from fathom.sandbox.v1.execution_pb2 import FinalValue

from orchestrator.runs.log.journal import RunJournal
from orchestrator.runs.model.prompt_book import PromptBook
from orchestrator.runs.sessions.cell_report import LOST_ENDING, WELL_ENDED, words_for
from orchestrator.runs.sessions.code_steps import CodeSteps

_ROOM_CELLS = 3
"""A reply's cells together are shown like this many."""
_ROOM_CHARACTERS_MIN = 1_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellsOutcome:
    """What the cells of a reply came to."""

    feedback: str
    """For the model."""
    is_well: bool
    """True where every cell ran, and ended well."""
    final: FinalValue | None = None
    """The last value given to FINAL or FINAL_VAR in a cell."""
    limit: str = ""
    """The limit of the run that a sub-call ran into, named as in the contract; else empty."""


class CellRunner:
    """Runs the cells of one run."""

    def __init__(
        self,
        steps: CodeSteps,
        journal: RunJournal,
        prompts: PromptBook,
        *,
        output_characters_max: int,
    ) -> None:
        self._steps = steps
        self._journal = journal
        self._prompts = prompts
        self._output_characters_max = output_characters_max
        self._seen: set[bytes] = set()
        self._turn = 0
        self._executions = 0
        self.last_output = ""
        """What the newest cell wrote that wrote anything, shortened, without its traceback."""
        self.variables: frozenset[str] = frozenset()
        """The session's variables after the newest cell."""
        self.summaries: Sequence[VariableSummary] = ()
        """The same, described."""
        self.own_time_s = 0.0
        """Own work of all cells whose effects the session has."""

    def open(self) -> None:
        """Begin to open the session, without waiting for it."""
        self._steps.open()

    def begin_with(self, variables: Sequence[VariableSummary]) -> None:
        """Take the session's variables as they are before the first cell."""
        self.summaries = tuple(variables)
        self.variables = frozenset(variable.name for variable in variables)

    async def run(self, sources: Sequence[str], *, turn: int) -> CellsOutcome:
        """Run the cells of a reply; after one that fails the others are not run.

        Raises LimitReachedError when the run's time is up or sub-calls took more than they may,
        and ReceivedError.
        """
        parts: list[str] = []
        final: FinalValue | None = None
        for number, source in enumerate(sources, start=1):
            parts += self._note_repeat(source, turn=turn, cell=number)
            started = CellStarted(code=source)
            begun = RunEvent(turn=turn, cell=number, cell_started=started)
            self._journal.add(begun, may_wait=True)  # a short cell's end is stored along with it
            finished = await self._steps.cell(
                source, turn=turn, cell=self._next(turn), room=self._room(len(sources))
            )
            self._take(finished)
            self._steps.raise_failure(finished)
            if finished.ending == LOST_ENDING:
                lost = self._prompts.text("session_lost", cell=number, cells=len(sources))
                return CellsOutcome(feedback="\n\n".join([*parts, lost]), is_well=False)
            ending, printed = words_for(finished)
            parts.append(
                self._prompts.text(
                    "cell", cell=number, cells=len(sources), ending=ending, printed=printed
                )
            )
            final = await self._steps.final(finished) or final
            limit, is_well = finished.limit_reached, finished.ending in WELL_ENDED
            if limit or not is_well:
                left = len(sources) - number
                if left:
                    parts.append(self._prompts.text("cells_not_run", count=left))
                feedback = "\n\n".join(parts)
                return CellsOutcome(feedback=feedback, is_well=is_well, final=final, limit=limit)
        return CellsOutcome(feedback="\n\n".join(parts), is_well=True, final=final)

    async def read_variable(self, name: str, *, turn: int) -> FinalValue | str:
        """Return a variable's value as FINAL_VAR gives it, or words about why there is none.

        Raises like `run`.
        """
        read = await self._steps.read(name, turn=turn, cell=self._next(turn))
        self._steps.raise_failure(read)
        value = await self._steps.final(read)
        if value is not None:
            return value
        if not read.HasField("record"):
            self._forget_variables()
        return read.error

    def write_cut(self) -> None:
        """Write down the cell that was cut off because the run is stopped, if there is one."""
        self.last_output = self._steps.write_cut() or self.last_output

    def _next(self, turn: int) -> int:
        """Return the place of the turn's next execution, from 1: cells first, then what is read
        for an answer."""
        if turn != self._turn:
            self._turn, self._executions = turn, 0
        self._executions += 1
        return self._executions

    def _take(self, finished: CellFinished) -> None:
        """Note what a cell has left behind."""
        findings = finished.record.own_output if finished.error else finished.output_shown
        if findings.strip():
            self.last_output = findings
        if finished.ending == LOST_ENDING:
            self._forget_variables()
        elif finished.state_kept:  # else they are what they were before
            self.summaries = tuple(finished.variables)
            self.variables = frozenset(variable.name for variable in finished.variables)
            self.own_time_s += finished.own_time.ToNanoseconds() / 1e9

    def _forget_variables(self) -> None:
        self._seen.clear()  # without its variables a cell is worth running again
        self.variables, self.summaries, self.own_time_s = frozenset(), (), 0.0

    def _note_repeat(self, source: str, *, turn: int, cell: int) -> list[str]:
        digest = hashlib.blake2b(source.strip().encode(), digest_size=16).digest()
        if digest not in self._seen:
            self._seen.add(digest)
            return []
        text = self._prompts.text("cell_repeated")
        self._journal.notice("CELL_REPEATED", text, turn=turn, cell=cell)
        return [f"Cell {cell}: {text}"]

    def _room(self, cells: int) -> int:
        """Return the characters shown of each cell's output, fewer where a reply has many."""
        fair = _ROOM_CELLS * self._output_characters_max // cells
        return min(self._output_characters_max, max(fair, _ROOM_CHARACTERS_MIN))
