"""The cells of one reply, run in order: what happened is written down, and put into words for
the model. Whether an answer counts is not decided here.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from fathom.orchestrator.v1 import run_event_pb2 as events
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.sandbox.v1.execution_pb2 import ExecutionEvent, ExecutionResult, FinalValue

from common import telemetry_names as names
from common.telemetry import tracer
from orchestrator.blobs import BlobStore
from orchestrator.runs.cell_report import (
    WELL_ENDED,
    aborted_event,
    finished_event,
    limit_of,
    lost_event,
    own_output,
    whole_output,
    words_for,
)
from orchestrator.runs.journal import RunJournal
from orchestrator.runs.prompt_book import PromptBook
from orchestrator.runs.repl import Repl, SessionLostError
from orchestrator.runs.shown_output import shorten
from orchestrator.runs.sub_calls import SubCalls

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
        repl: Repl,
        journal: RunJournal,
        sub_calls: SubCalls,
        prompts: PromptBook,
        blobs: BlobStore,
        *,
        run_id: str,
        output_characters_max: int,
    ) -> None:
        self._repl = repl
        self._journal = journal
        self._sub_calls = sub_calls
        self._prompts = prompts
        self._blobs = blobs
        self._run_id = run_id
        self._output_characters_max = output_characters_max
        self._seen: set[bytes] = set()
        self._tracer = tracer(__name__)
        self.last_output = ""
        """What the newest cell wrote that wrote anything, shortened, without its traceback."""
        self.variables: frozenset[str] = frozenset()
        """The session's variables after the newest cell."""

    async def run(self, sources: Sequence[str], *, turn: int) -> CellsOutcome:
        """Run the cells of a reply; after one that fails the others are not run.

        Raises LimitReachedError when the run's time is up or sub-calls took more than they may,
        and ReceivedError.
        """
        parts: list[str] = []
        final: FinalValue | None = None
        for number, source in enumerate(sources, start=1):
            parts += self._note_repeat(source, turn=turn, cell=number)
            started = events.CellStarted(code=source)
            self._journal.add(RunEvent(turn=turn, cell=number, cell_started=started))
            written: list[str] = []
            try:
                result = await self._execute(source, written, turn=turn, cell=number)
            except SessionLostError:
                self._lose_session(turn=turn, cell=number)
                lost = self._prompts.text("session_lost", cell=number, cells=len(sources))
                return CellsOutcome(feedback="\n\n".join([*parts, lost]), is_well=False)
            except BaseException:
                self._abort("".join(written), turn=turn, cell=number)
                raise
            room = self._room(len(sources))
            shown = await self._finish(result, "".join(written), room, turn=turn, cell=number)
            ending, printed = words_for(result, shown)
            parts.append(
                self._prompts.text(
                    "cell", cell=number, cells=len(sources), ending=ending, printed=printed
                )
            )
            if result.HasField("final"):
                final = result.final
            limit, is_well = limit_of(result), result.ending in WELL_ENDED
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
        try:
            result = await self._repl.execute(
                f"FINAL_VAR({name!r})",
                turn=turn,
                call_prefix=f"{self._run_id}/{turn}/0",
                on_event=lambda _: None,
            )
        except SessionLostError:
            self._sub_calls.session_lost()
            self.variables = frozenset()
            return "the session broke down, and its variables are gone"
        if result.HasField("final") and result.ending in WELL_ENDED:
            return result.final
        return result.error.message or f"the variable {name!r} could not be read"

    def _note_repeat(self, source: str, *, turn: int, cell: int) -> list[str]:
        digest = hashlib.blake2b(source.strip().encode(), digest_size=16).digest()
        if digest not in self._seen:
            self._seen.add(digest)
            return []
        text = self._prompts.text("cell_repeated")
        self._journal.notice("CELL_REPEATED", text, turn=turn, cell=cell)
        return [f"Cell {cell}: {text}"]

    async def _execute(
        self, source: str, written: list[str], *, turn: int, cell: int
    ) -> ExecutionResult:
        """Run a cell; its output is added to `written`, which is whole also when it raises."""

        def take(event: ExecutionEvent) -> None:
            if event.HasField("output"):
                written.append(event.output.text)
            elif event.HasField("sub_call_started"):
                self._sub_calls.start(event.sub_call_started)
            elif event.HasField("sub_call_finished"):
                self._sub_calls.finish(event.sub_call_finished)

        self._sub_calls.begin_cell(turn=turn, cell=cell)
        attributes: dict[str, str | int] = {
            names.GEN_AI_OPERATION_NAME: "execute_tool",
            names.GEN_AI_TOOL_NAME: "python",
            names.TURN: turn,
            names.CELL: cell,
        }
        with self._tracer.start_as_current_span(names.SPAN_EXECUTE_TOOL, attributes=attributes):
            return await self._repl.execute(
                source,
                turn=turn,
                call_prefix=f"{self._run_id}/{turn}/{cell}",
                on_event=take,
            )

    def _lose_session(self, *, turn: int, cell: int) -> None:
        finished = lost_event(sub_calls=self._sub_calls.end_cell())
        self._sub_calls.session_lost()
        self._seen.clear()  # without its variables a cell is worth running again
        self.variables = frozenset()
        self._journal.add(RunEvent(turn=turn, cell=cell, cell_finished=finished))

    def _abort(self, written: str, *, turn: int, cell: int) -> None:
        """Write down a cell that has no result, because the run is stopped."""
        shown = shorten(written, characters_max=self._output_characters_max)
        if written.strip():
            self.last_output = shown.text
        finished = aborted_event(
            shown, characters=len(written), sub_calls=self._sub_calls.end_cell()
        )
        self._journal.add(RunEvent(turn=turn, cell=cell, cell_finished=finished))

    def _room(self, cells: int) -> int:
        """Return the characters shown of each cell's output, fewer where a reply has many."""
        fair = _ROOM_CELLS * self._output_characters_max // cells
        return min(self._output_characters_max, max(fair, _ROOM_CHARACTERS_MIN))

    async def _finish(
        self, result: ExecutionResult, written: str, room: int, *, turn: int, cell: int
    ) -> str:
        """Write the cell's end down and return what the model is shown of its output."""
        output = whole_output(written, result)
        shown = shorten(
            output,
            characters_max=room,
            bytes_dropped=result.output_bytes_dropped,
        )
        key = ""
        if not shown.is_whole:
            key = f"outputs/{self._run_id}/{turn}-{cell}.txt"
            await self._blobs.put(key, output.encode())
        if findings := own_output(written, result):
            self.last_output = shorten(findings, characters_max=room).text
        if result.state_kept:  # else they are what they were before
            self.variables = frozenset(variable.name for variable in result.variables)
        finished = finished_event(
            result,
            shown,
            characters=len(output),
            key=key,
            sub_calls=self._sub_calls.end_cell(),
        )
        self._journal.add(RunEvent(turn=turn, cell=cell, cell_finished=finished))
        return shown.text
