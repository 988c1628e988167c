"""The host's side of `_host.call`: answers what the guest's runtime asks, and nothing else.

What may be asked depends on where the session is: contexts only while it starts, sub-models
only while a cell runs. Everything that comes through here is hostile.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable

import msgspec

from sandbox_service import frames
from sandbox_service.engine import GuestInstance
from sandbox_service.guest_memory import GuestMemoryError
from sandbox_service.limits import Limits
from sandbox_service.worker import guest_calls
from sandbox_service.worker.contexts import ContextError, Contexts
from sandbox_service.worker.execution import Execution, StopError
from sandbox_service.worker.guest_calls import ReportEnd
from sandbox_service.worker.image import SessionImage

_DONE, _REFUSED = 0, -1
_FINAL_BYTES_MAX = 1 << 20
_START_BYTES_MAX = 1 << 20
"""What the runtime asks at a session's start is short."""
_TIGHT_BYTES = 4 << 20
"""With less than this to grow by, a cell's end is checked for room for the next one."""


class GuestDoor:
    """The one import of ours that a session's guest has."""

    def __init__(
        self,
        session: int,
        limits: Limits,
        contexts: Contexts,
        image: SessionImage,
        send: Callable[[frames.FromWorker], None],
    ) -> None:
        self.instance: GuestInstance
        """The guest that calls; set before it runs."""
        self.report: ReportEnd | None = None
        """How the cell, or the start, ended; None until the guest has said so."""
        self.findings: list[frames.Finding] = []
        """What the check of the cell's code noticed."""
        self.failure: ContextError | None = None
        """The context that could not be loaded, if there is one."""
        self.loading = ""
        """The context's variable that the guest loads, or loaded last."""
        self.has_begun = False
        """Whether the guest's runtime has taken the cell."""
        self._session = session
        self._limits = limits
        self._contexts = contexts
        self._image = image
        self._send = send
        self._answers: queue.SimpleQueue[frames.SubCallAnswers | None] = queue.SimpleQueue()
        self._execution: Execution | None = None
        self._cell: frames.Run | None = None
        self._calls = 0
        self._is_answering = False

    def begin(self, execution: Execution, cell: frames.Run | None) -> None:
        """Answer for an execution from here on; without a cell it is the session's start."""
        self._execution, self._cell, self.report = execution, cell, None
        self.has_begun = False
        self.findings = []
        with contextlib.suppress(queue.Empty):  # left over from an interrupt that came late
            while True:
                self._answers.get_nowait()

    def answer(self, answers: frames.SubCallAnswers) -> None:
        """Hand over the outcomes that the running cell waits for; any thread may."""
        self._answers.put(answers)

    def stop_waiting(self) -> None:
        """End a wait for sub-models after an interrupt; any thread may."""
        self._answers.put(None)

    def call(self, start: int, size: int, result_start: int, result_size: int) -> int:
        """Answer one request of the guest's, given and taken by address and size."""
        # An allocator that makes requests itself would use up the host's stack.
        if self._is_answering or size > guest_calls.REQUEST_BYTES_MAX:
            return _REFUSED
        self._is_answering = True
        try:
            return self._called(start, size, result_start, result_size)
        except GuestMemoryError:
            return _REFUSED
        finally:
            self._is_answering = False

    def _called(self, start: int, size: int, result_start: int, result_size: int) -> int:
        memory = self.instance.memory
        request = guest_calls.decode(memory.read(start, size))
        # The runtime refuses a larger one before; this is code that goes around it.
        if size > self._bytes_max(request):
            return _REFUSED
        answer = self._answered(request)
        if answer is None:
            return _REFUSED
        address = self.instance.allocate(len(answer))
        memory.write(address, answer)
        memory.write_u32(result_start, address)
        memory.write_u32(result_size, len(answer))
        return _DONE

    def _answered(self, request: guest_calls.GuestCall | None) -> bytes | None:
        """Return the answer to a request; None where it has no place here."""
        if isinstance(request, ReportEnd):
            return self._noted(request)
        if isinstance(request, guest_calls.LazyCall) and self._execution is not None:
            return self._contexts.answer(request, self._execution.on_tick)
        if self._cell is None:
            return self._answered_at_start(request)
        if isinstance(request, guest_calls.FetchCell):
            self.has_begun = True
            cell = guest_calls.Cell(
                source=self._cell.code,
                # What ran and was undone before shows in no number where the caller says which is
                # the same cell.
                number=self._cell.random_stream or self._cell.execution,
                run=self._cell.run,
                report=self._cell.report_variables,
                value_bytes_max=self._limits.value_bytes_max,
                check=self._cell.check,
            )
            return msgspec.json.encode(cell)
        if isinstance(request, guest_calls.ReportFindings) and not self.findings:
            self.findings = request.findings
            return b""
        if isinstance(request, guest_calls.Asks) and self._execution is not None:
            return msgspec.json.encode(self._asked(request, self._execution))
        return None

    def _bytes_max(self, request: guest_calls.GuestCall | None) -> int:
        if isinstance(request, ReportEnd):
            return guest_calls.REPORT_BYTES_MAX
        return self._limits.value_bytes_max if self._cell is not None else _START_BYTES_MAX

    def _noted(self, report: ReportEnd) -> bytes | None:
        # The runtime refuses a larger answer before; this is code that goes around it.
        final_bytes_max = min(_FINAL_BYTES_MAX, self._limits.value_bytes_max)
        if report.final is not None and len(report.final.text.encode()) > final_bytes_max:
            return None
        self.report = report
        left = self._limits.memory_bytes_max - self.instance.memory.size_bytes
        return msgspec.json.encode(left < _TIGHT_BYTES)

    def _answered_at_start(self, request: guest_calls.GuestCall | None) -> bytes | None:
        """Answer what only the start of a session may ask, before any cell has run."""
        contexts = self._contexts
        try:
            if isinstance(request, guest_calls.FetchMounts):
                return msgspec.json.encode(contexts.outlines())
            if isinstance(request, guest_calls.FetchTexts):
                self.loading = contexts.variable(request.mount)
                return msgspec.json.encode(contexts.texts_from(request.mount, request.start))
            if isinstance(request, guest_calls.FillText):
                memory = self.instance.memory
                contexts.fill(request.mount, request.text, request.address, self._image, memory)
                return b""
        except ContextError as error:
            self.failure = error
            raise
        return None

    def _asked(
        self, request: guest_calls.Asks, execution: Execution
    ) -> guest_calls.SubModelOutcomes:
        with execution.waiting():
            self._calls += 1
            self._send(_question(request, self._session, execution.number, self._calls))
            answers = self._answers.get()
        if answers is None or execution.is_interrupted:
            raise StopError("interrupted")
        return guest_calls.SubModelOutcomes([_outcome(outcome) for outcome in answers.outcomes])


def _question(request: guest_calls.Asks, session: int, execution: int, call: int) -> frames.Asked:
    if isinstance(request, guest_calls.AskHostTools):
        return frames.HostTools(session=session, execution=execution, call=call, question=request)
    if isinstance(request, guest_calls.AskSubModels):
        return frames.SubCalls(session=session, execution=execution, call=call, question=request)
    return frames.ChildRuns(session=session, execution=execution, call=call, question=request)


def _outcome(outcome: frames.Outcome) -> guest_calls.SubModelOutcome:
    if isinstance(outcome, frames.Answer):
        return guest_calls.SubModelOutcome(text=outcome.text)
    if isinstance(outcome, frames.ChildAnswer):
        return guest_calls.SubModelOutcome(
            text=outcome.text, is_json=outcome.is_json, run=outcome.run, limit=outcome.limit
        )
    return guest_calls.SubModelOutcome(
        reason=outcome.reason,
        message=outcome.message,
        is_limit=outcome.is_limit,
        run=outcome.run,
    )
