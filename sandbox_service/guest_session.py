"""One session inside a worker: a thread that owns a guest and runs cells in it, one at a time.

The state before a cell is kept as an image; when a cell is stopped inside WebAssembly its
instance is dropped and the session goes on from that image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
import traceback
from collections.abc import Callable

from sandbox_service import endings, frames
from sandbox_service.contexts import Contexts
from sandbox_service.engine import GuestEngine, GuestInstance, GuestMemoryError, GuestStoppedError
from sandbox_service.execution import Execution, Stream
from sandbox_service.guest_door import GuestDoor
from sandbox_service.image import ChangeFinder, SessionImage, WarmImage
from sandbox_service.limits import Limits
from sandbox_service.making import RUN, START
from sandbox_service.wasi import Wasi

_START_TIME_MAX_S = 120.0
_START_FUEL = 10_000_000_000_000
"""Loading contexts is our own code, so its bounds are ours, not the session's."""


class BrokenGuestError(Exception):
    """The session's own code has left it unable to run any cell."""


@dataclasses.dataclass(frozen=True)
class GuestHost:
    """What the sessions of one worker share."""

    engine: GuestEngine
    """The compiled guest."""
    warm: WarmImage
    """What every session's memory starts as."""
    changes: ChangeFinder
    """Finds what a cell changed."""
    library: bytes
    """The guest's standard library, a zip file."""
    running: Callable[[], contextlib.AbstractContextManager[None]]
    """Keeps the engine's epoch advancing while a guest runs."""
    send: Callable[[frames.FromWorker], None]
    """Sends a frame to the supervisor."""


class GuestSession:
    """A session; frames for it are put into `inbox`, all but interrupts and answers."""

    def __init__(self, number: int, limits: Limits, contexts: Contexts, host: GuestHost) -> None:
        self.number = number
        self.inbox: queue.SimpleQueue[frames.Run | frames.Close] = queue.SimpleQueue()
        self._limits = limits
        self._contexts = contexts
        self._host = host
        self._image = SessionImage(host.warm, host.changes)
        self._door = GuestDoor(number, limits, contexts, self._image, host.send)
        self._instance: GuestInstance | None = None
        self._execution = Execution(0, limits, self._send_output)
        self._is_closing = False
        self._interrupted_up_to = 0
        self._thread = threading.Thread(target=self._live, name=f"session-{number}", daemon=True)

    def start(self) -> None:
        """Begin; the first frame sent is Opened or OpenFailed, the last one Closed or Lost."""
        self._thread.start()

    def answer(self, answers: frames.SubCallAnswers) -> None:
        """Hand over the outcomes that the running cell waits for."""
        self._door.answer(answers)

    def interrupt(self, execution: int) -> None:
        """Stop an execution that runs or is about to."""
        self._interrupted_up_to = max(self._interrupted_up_to, execution)
        if self._execution.number == execution:
            self._execution.interrupt()
            self._door.stop_waiting()

    def close(self) -> None:
        """End the session after interrupting what runs."""
        self._is_closing = True
        self.interrupt(self._execution.number)
        self.inbox.put(frames.Close(session=self.number))

    # The session's own thread

    def _live(self) -> None:
        last: frames.FromWorker = frames.Closed(session=self.number)
        try:
            if self._open():
                self._serve()
        except BrokenGuestError as error:
            last = frames.Lost(session=self.number, cause=str(error))
        except Exception:  # a fault of ours ends this session only
            traceback.print_exc()
            last = frames.Lost(session=self.number, cause="a fault of the worker; its log has it")
        finally:
            self._release()
        self._host.send(last)

    def _release(self) -> None:
        if self._instance is not None:
            self._instance.close()
        self._contexts.close()
        self._image.close()

    def _open(self) -> bool:
        needed = self._contexts.memory_bytes()
        total = needed + self._host.warm.size_bytes
        if needed and total > self._limits.memory_bytes_max:
            self._open_failed("too_large", f"the contexts need {total} bytes", total)
            return False
        limits = dataclasses.replace(self._limits, execute_time_max_s=_START_TIME_MAX_S)
        self._execution = Execution(0, limits, self._send_output)
        self._door.begin(self._execution, None)
        try:
            with self._host.running():
                self._renew().turn(START)
        except GuestStoppedError as error:
            self._explain_failed_start(error, total)
            return False
        finally:
            self._contexts.close()
        report = self._door.report
        if report is None or report.error is not None:
            self._explain_failed_start(None, total)
            return False
        instance = self._alive
        self._host.send(frames.Opened(session=self.number, memory_bytes=instance.memory.size_bytes))
        self._image.save(instance.memory)
        return True

    def _explain_failed_start(self, stop: GuestStoppedError | None, needed: int) -> None:
        context = self._door.failure
        if context is not None:
            self._open_failed("unreadable", str(context), 0, context.variable)
            return
        failure = self._door.report.error if self._door.report else None
        if (failure is not None and failure.type == "MemoryError") or self._is_nearly_full():
            self._open_failed("too_large", "the contexts do not fit into memory", needed)
        elif failure is not None and self._door.loading:
            # Whatever reading it raises: not JSON, nested too deeply, a number too long.
            self._open_failed("unreadable", f"not JSON: {failure.message}", 0)
        else:
            raise RuntimeError(f"the guest did not start: {failure or stop}")

    def _is_nearly_full(self) -> bool:
        used = self._instance.memory.size_bytes if self._instance is not None else 0
        return endings.is_nearly_full(self._limits, used)

    def _open_failed(self, problem: str, message: str, needed: int, variable: str = "") -> None:
        self._host.send(
            frames.OpenFailed(
                session=self.number,
                problem="too_large" if problem == "too_large" else "unreadable",
                variable=(variable or self._door.loading or self._contexts.variable(0))[:256],
                message=message[:4096],
                bytes_needed=needed,
            )
        )

    def _serve(self) -> None:
        while not self._is_closing:
            frame = self.inbox.get()
            if isinstance(frame, frames.Run) and not self._is_closing:
                self._run(frame)

    def _run(self, cell: frames.Run) -> None:
        execution = Execution(cell.execution, self._limits, self._send_output)
        self._execution = execution
        self._door.begin(execution, cell)
        if self._is_closing or self._interrupted_up_to >= cell.execution:
            execution.interrupt()
        instance = self._alive
        instance.fuel = self._limits.fuel_max
        stop: GuestStoppedError | GuestMemoryError | None = None
        try:
            with self._host.running():
                instance.turn(RUN)
        except (GuestStoppedError, GuestMemoryError) as error:
            stop = error
        report = self._door.report
        if stop is None and report is not None and report.ending == "out_of_memory":
            stop = GuestMemoryError("the cell left no memory for the next one")
        if stop is None and not self._door.has_begun:
            raise BrokenGuestError("the code broke the runtime that runs cells")
        execution.output.finish()
        self._host.send(self._ended(execution, instance, stop))
        if stop is None and report is not None:
            self._image.save(instance.memory)
        else:
            self._renew()

    @property
    def _alive(self) -> GuestInstance:
        if self._instance is None:
            raise RuntimeError("the session has no guest")
        return self._instance

    def _renew(self) -> GuestInstance:
        """Replace the instance by one with the session's last image."""
        if self._instance is not None:
            self._instance.close()
        wasi = Wasi(self, self._host.library)
        functions = {**wasi.functions(), "call": self._door.call}
        instance = self._host.engine.instantiate(
            functions, self._on_tick, self._limits.memory_bytes_max
        )
        self._instance = instance
        wasi.memory = instance.memory
        self._door.instance = instance
        instance.fuel = _START_FUEL
        self._image.attach(instance.memory)
        return instance

    def _ended(
        self,
        execution: Execution,
        instance: GuestInstance,
        stop: GuestStoppedError | GuestMemoryError | None,
    ) -> frames.Ended:
        report = self._door.report
        ending: frames.Ending
        failure: frames.Failure | None
        if stop is not None:
            ending, failure = endings.of_stop(stop, self._limits, instance.memory.size_bytes)
        elif report is not None:
            ending, failure = report.ending, report.error
        else:
            ending, failure = endings.without_report(self._limits, instance.memory.size_bytes)
        is_kept = stop is None and report is not None
        return frames.Ended(
            session=self.number,
            execution=execution.number,
            ending=ending,
            state_kept=is_kept,
            failure=failure,
            final=report.final if report is not None and is_kept else None,
            variables=report.variables if report is not None and is_kept else [],
            output_bytes=execution.output.written_bytes,
            output_bytes_dropped=execution.output.dropped_bytes,
            own_time_s=execution.own_time_s,
            wait_time_s=execution.wait_time_s,
            fuel_used=max(self._limits.fuel_max - instance.fuel, 0),
            memory_bytes=instance.memory.size_bytes,
        )

    # What WASI needs; see wasi.WasiHost

    def output_room(self) -> int:
        """Return the bytes of output that are still kept."""
        return self._execution.output.room_bytes

    def write_output(self, stream: int, data: bytes, size_bytes: int) -> None:
        """Take output of the running code."""
        self._execution.output.write(stream, data, size_bytes)

    def sleep(self, duration_s: float) -> None:
        """Let time pass for the running code."""
        self._execution.sleep(duration_s)

    def _on_tick(self) -> None:
        self._execution.on_tick()

    def _send_output(self, stream: Stream, text: str) -> None:
        if text and self._execution.number:
            self._host.send(
                frames.Output(
                    session=self.number,
                    execution=self._execution.number,
                    stream=stream,
                    text=text,
                )
            )
