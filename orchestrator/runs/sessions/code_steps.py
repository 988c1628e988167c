"""The code of a run, executed step by step: each execution ends with the event that tells all
that the run needs to know of it. What follows from it is not decided here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from fathom.orchestrator.v1.run_event_pb2 import (
    CellFinished,
    ExecutionRecord,
    HostToolCalled,
    RunEvent,
    ValueRead,
)
from fathom.sandbox.v1 import execution_pb2 as sandbox
from fathom.sandbox.v1.execution_pb2 import ExecutionEvent, FinalValue
from google.rpc.status_pb2 import Status

from common import telemetry_names as names
from common.errors import ReceivedError
from common.telemetry import tracer
from orchestrator.runs.budget import Budget, LimitReachedError
from orchestrator.runs.children.told import Children, ToldChildren
from orchestrator.runs.log.journal import RunJournal
from orchestrator.runs.log.recorded import Key, Place, cell_end, value_read
from orchestrator.runs.sessions.cell_report import (
    ABORTED_ENDING,
    CODE_LOST_ENDING,
    LOST_ENDING,
    WELL_ENDED,
    aborted_event,
    code_lost_event,
    finished_event,
    lost_event,
    own_output,
    whole_output,
)
from orchestrator.runs.sessions.executions import PastExecution, ending_word
from orchestrator.runs.sessions.kept_results import KeptResults
from orchestrator.runs.sessions.repl import (
    CodeLostError,
    CodeOrder,
    Executed,
    Repl,
    SessionLostError,
)
from orchestrator.runs.sessions.shown_output import shorten
from orchestrator.runs.sessions.sub_calls import SubCalls

_LOST_WORDS = "the session broke down, and its variables are gone"


@dataclasses.dataclass
class _Cut:
    """A cell that was cut off with the run."""

    order: CodeOrder
    written: list[str]


class CodeSteps:
    """Executes the code of one run."""

    def __init__(
        self,
        repl: Repl,
        journal: RunJournal,
        sub_calls: SubCalls,
        told: ToldChildren,
        children: Children,
        budget: Budget,
        kept: KeptResults,
        *,
        run_id: str,
        output_characters_max: int,
    ) -> None:
        self._repl = repl
        self._journal = journal
        self._sub_calls = sub_calls
        self._told = told
        self._children = children
        self._budget = budget
        self._kept = kept
        self._run_id = run_id
        self._output_characters_max = output_characters_max
        self._is_code_lost = False
        self._cut: _Cut | None = None
        self._tracer = tracer(__name__)

    def open(self) -> None:
        """Begin to open the session, without waiting for it."""
        self._repl.open()

    async def cell(self, source: str, *, turn: int, cell: int, room: int) -> CellFinished:
        """Return the end of a cell, of whose output the model is shown `room` characters. What
        kept it from a result is for `raise_failure`."""
        before = self._sub_calls.begin_cell(turn=turn, cell=cell)
        self._told.begin_cell(turn=turn, cell=cell)
        order = self._order(source, turn=turn, cell=cell, before=before)

        async def work() -> RunEvent:
            return RunEvent(turn=turn, cell=cell, cell_finished=await self._run_cell(order, room))

        key = cell_end(turn, cell)
        event, is_done_before = await self._step(f"cell {turn}.{cell}", key, work)
        finished = event.cell_finished
        if is_done_before:
            self._remember(order, finished, finished.ending)
        if finished.ending == LOST_ENDING:
            self._repl.forget()
        self._is_code_lost = _is_code_lost(finished)
        return finished

    async def read(self, name: str, *, turn: int, cell: int) -> ValueRead:
        """Return what reading a variable gives, as FINAL_VAR does."""
        before = self._sub_calls.begin_cell(turn=turn, cell=cell)
        order = self._order(f"FINAL_VAR({name!r})", turn=turn, cell=cell, before=before)

        async def work() -> RunEvent:
            read = await self._run_read(order)
            read.variable = name
            return RunEvent(turn=turn, cell=cell, value_read=read)

        key = value_read(turn, cell)
        event, is_done_before = await self._step(f"read {turn}.{cell}", key, work)
        read = event.value_read
        if is_done_before:
            self._remember(order, read, "")
        if read.error == _LOST_WORDS:
            self._repl.forget()
        return read

    async def final(self, told: CellFinished | ValueRead) -> FinalValue | None:
        """Return the value that an execution gave as final; None where it gave none."""
        return await self._kept.final(told)

    def write_cut(self) -> str:
        """Write down the cell that was cut off because the run is stopped, if there is one; return
        what the model would have been shown of it."""
        if self._cut is None:
            return ""
        order, written = self._cut.order, "".join(self._cut.written)
        finished = self._aborted(written)
        self._journal.add_once(RunEvent(turn=order.turn, cell=order.cell, cell_finished=finished))
        return finished.output_shown if written.strip() else ""

    def _order(self, code: str, *, turn: int, cell: int, before: int) -> CodeOrder:
        return CodeOrder(
            code=code,
            turn=turn,
            cell=cell,
            sub_calls_before=before,
            failed_sub_calls=lambda: self._failures((turn, cell), before),
        )

    def _failures(self, place: Place, before: int) -> dict[int, Status]:
        """Return the failed sub-calls that the log has of an execution, by their position in it;
        `before` it were so many others."""
        failures = self._journal.sub_calls(place).failures
        return {number - before: error for number, error in failures.items()}

    async def _step(
        self, name: str, key: Key, work: Callable[[], Awaitable[RunEvent]]
    ) -> tuple[RunEvent, bool]:
        """Return what a step came to, and whether that was known before."""
        is_done_before = True

        async def noted() -> RunEvent:
            nonlocal is_done_before
            is_done_before = False
            return await work()

        event = await self._journal.step(name, key, noted)
        self._sub_calls.end_cell()
        return event, is_done_before

    async def _run_cell(self, order: CodeOrder, room: int) -> CellFinished:
        written: list[str] = []
        self._cut = _Cut(order, written)
        try:
            executed = await self._execute(order, written)
        except SessionLostError:
            finished = lost_event(sub_calls=self._sub_calls.end_cell())
        except CodeLostError:
            # Where the code before was lost like this one, what broke is older than both.
            event = lost_event if self._is_code_lost else code_lost_event
            finished = event(sub_calls=self._sub_calls.end_cell())
        except LimitReachedError as limit:
            finished = self._aborted("".join(written), limit=limit.limit)
        except ReceivedError as error:
            finished = self._aborted("".join(written))
            finished.record.error.CopyFrom(error.to_status())
        else:
            finished = await self._finished(order, executed, "".join(written), room)
        if self._told.has_live:  # cut off with their cell: nobody will ask for them again
            await self._children.stop_below(self._run_id)
        self._cut = None
        return finished

    async def _run_read(self, order: CodeOrder) -> ValueRead:
        try:
            executed = await self._execute(order, [])
        except (SessionLostError, CodeLostError):
            return ValueRead(error=_LOST_WORDS, sub_calls=self._sub_calls.end_cell())
        except LimitReachedError as limit:
            return ValueRead(limit_reached=limit.limit, sub_calls=self._sub_calls.end_cell())
        except ReceivedError as error:
            record = ExecutionRecord(error=error.to_status())
            return ValueRead(record=record, sub_calls=self._sub_calls.end_cell())
        result = executed.result
        read = ValueRead(
            state_kept=result.state_kept,
            sub_calls=self._sub_calls.end_cell(),
            record=executed.record,
        )
        if result.HasField("final") and ending_word(result) in WELL_ENDED:
            await self._kept.keep_final(read, result.final, (order.turn, order.cell))
        else:
            read.error = result.error.message or "it could not be read"
        return read

    async def _execute(self, order: CodeOrder, written: list[str]) -> Executed:
        """Run code; its output is added to `written`, which is whole also when it raises."""

        def take(event: ExecutionEvent) -> None:
            if event.HasField("output"):
                written.append(event.output.text)
            elif event.HasField("sub_call_started"):
                self._sub_calls.start(event.sub_call_started)
            elif event.HasField("sub_call_finished"):
                self._sub_calls.finish(event.sub_call_finished)
            elif event.HasField("child_run_changed"):
                self._told.change(event.child_run_changed)
            elif event.HasField("child_run_finished"):
                self._told.finish(event.child_run_finished)
            elif event.HasField("host_tool_called"):
                self._tell_tool(order, event.host_tool_called)

        def begin_again() -> None:
            written.clear()
            self._sub_calls.begin_again()

        attributes: dict[str, str | int] = {
            names.GEN_AI_OPERATION_NAME: "execute_tool",
            names.GEN_AI_TOOL_NAME: "python",
            names.TURN: order.turn,
            names.CELL: order.cell,
        }
        with self._tracer.start_as_current_span(names.SPAN_EXECUTE_TOOL, attributes=attributes):
            return await self._repl.execute(order, on_event=take, on_restart=begin_again)

    def _tell_tool(self, order: CodeOrder, called: sandbox.HostToolCalled) -> None:
        told = HostToolCalled.FromString(called.SerializeToString())
        event = RunEvent(turn=order.turn, cell=order.cell, host_tool_called=told)
        self._journal.add_once(event, may_wait=True)

    async def _finished(
        self, order: CodeOrder, executed: Executed, written: str, room: int
    ) -> CellFinished:
        result = executed.result
        output = whole_output(written, result)
        shown = shorten(output, characters_max=room, bytes_dropped=result.output_bytes_dropped)
        key = ""
        if not shown.is_whole:
            key = await self._kept.keep_output(output, (order.turn, order.cell))
        finished = finished_event(
            result, shown, characters=len(output), key=key, sub_calls=self._sub_calls.end_cell()
        )
        finished.record.CopyFrom(executed.record)
        if finished.error:
            findings = own_output(written, result)
            finished.record.own_output = shorten(findings, characters_max=room).text
        if result.HasField("final"):
            await self._kept.keep_final(finished, result.final, (order.turn, order.cell))
        return finished

    def _aborted(self, written: str, *, limit: str = "") -> CellFinished:
        shown = shorten(written, characters_max=self._output_characters_max)
        finished = aborted_event(
            shown,
            characters=len(written),
            sub_calls=self._sub_calls.end_cell(),
            limit=limit,
        )
        finished.record.own_output = shown.text if written.strip() else ""
        return finished

    def _remember(self, order: CodeOrder, told: CellFinished | ValueRead, ending: str) -> None:
        """Have the session know an execution that the log tells of."""
        place = order.turn, order.cell
        children = self._journal.recorded.ended_children(place)
        past = PastExecution(
            place=place,
            code=order.code,
            ending=ending,
            record=told.record,
            sub_calls=told.sub_calls + sum(run.sub_calls for run in children),
            failed_sub_calls=self._failures(place, told.record.sub_calls_before),
        )
        self._repl.remember(past, is_kept=told.state_kept)

    def raise_failure(self, told: CellFinished | ValueRead) -> None:
        """Raise what kept an execution from a result: LimitReachedError when the run's time was up
        or sub-calls took more than they may, ReceivedError where the sandbox refused."""
        if told.record.HasField("error"):
            raise ReceivedError(told.record.error)
        is_aborted = isinstance(told, ValueRead) or told.ending == ABORTED_ENDING
        if is_aborted and told.limit_reached:
            raise self._budget.reached(told.limit_reached)


def _is_code_lost(finished: CellFinished) -> bool:
    """Whether a cell took every session with it, and has no result."""
    return finished.ending == CODE_LOST_ENDING and not finished.record.session_execution
