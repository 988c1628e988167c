"""One session inside a worker: a thread that owns a guest and runs cells in it, one at a time.

The state before a cell is kept as an image; when a cell is stopped inside WebAssembly its
instance is dropped and the session goes on from that image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping

from sandbox_service import frames
from sandbox_service.engine import GuestEngine, GuestInstance, GuestStoppedError
from sandbox_service.guest_memory import GuestMemoryError
from sandbox_service.limits import Allowance
from sandbox_service.worker import endings
from sandbox_service.worker.contexts import Contexts
from sandbox_service.worker.execution import Execution, Stream
from sandbox_service.worker.guest_calls import ReportEnd
from sandbox_service.worker.guest_door import GuestDoor
from sandbox_service.worker.image import ChangeFinder, SessionImage, WarmImage
from sandbox_service.worker.making import RUN, START
from sandbox_service.worker.session_account import SessionAccount
from sandbox_service.worker.turns import Turns
from sandbox_service.worker.wasi import Wasi

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
    warm_images: Mapping[str, WarmImage]
    """What a session's memory starts as, by profile."""
    changes: ChangeFinder
    """Finds what a cell changed."""
    library: mmap.mmap
    """The guest's standard library, a zip file."""
    turns: Turns
    """Hands processor time round between the guests that run."""
    running: Callable[[], contextlib.AbstractContextManager[None]]
    """Keeps the engine's epoch advancing while a guest runs."""
    send: Callable[[frames.FromWorker], None]
    """Sends a frame to the supervisor."""


@dataclasses.dataclass(frozen=True)
class Layers:
    """Open files of a session's image, for the session to close."""

    finished: list[int]
    """Layers that nobody writes to any more, lowest first."""
    top: int
    """The one that the session writes to."""

    def close(self) -> None:
        """Close them, where no session takes them over."""
        for fd in (*self.finished, self.top):
            os.close(fd)


class GuestSession:
    """A session; what it is to do next is put into `inbox`, all but interrupts and answers."""

    def __init__(
        self, opening: frames.Open, layers: Layers, contexts: Contexts, host: GuestHost
    ) -> None:
        """Take what to open; raises KeyError for a profile that there is no image of."""
        self.number = number = opening.session
        self.inbox: queue.SimpleQueue[frames.Run | frames.Close | Layers] = queue.SimpleQueue()
        self._limits = limits = opening.limits
        self._contexts = contexts
        self._host = host
        self._warm = host.warm_images[opening.profile]
        self._account = SessionAccount(opening)
        self._told_bytes = 0
        self._kept_bytes = 0
        self._is_restored = opening.is_restored
        self._image = SessionImage(self._warm, host.changes, layers.finished, layers.top)
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
            last = frames.Lost(session=self.number, cause=str(error), is_broken=True)
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
        while not self.inbox.empty():
            item = self.inbox.get()
            if isinstance(item, Layers):
                item.close()

    def _open(self) -> bool:
        if self._is_restored:
            self._contexts.close_loaded()
            self._send_opened(self._renew())
            return True
        needed = self._contexts.memory_bytes()
        total = needed + self._warm.size_bytes
        if needed and total > self._limits.memory_bytes_max:
            self._open_failed("too_large", f"the contexts need {total} bytes", total)
            return False
        limits = dataclasses.replace(self._limits, execute_time_max_s=_START_TIME_MAX_S)
        surroundings = self._account.surroundings(0, lambda: _START_FUEL - self._alive.fuel)
        self._execution = Execution(0, limits, self._send_output, surroundings, self._host.turns)
        self._door.begin(self._execution, None)
        try:
            with self._host.running(), self._execution.turn.running():
                self._renew().turn(START)
        except GuestStoppedError as error:
            self._explain_failed_start(error, total)
            return False
        finally:
            self._contexts.close_loaded()
        report = self._door.report
        if report is None or report.error is not None:
            self._explain_failed_start(None, total)
            return False
        self._send_opened(self._alive)
        self._image.save(self._alive.memory)
        self._send_saved(0)
        return True

    def _send_opened(self, instance: GuestInstance) -> None:
        self._told_bytes = instance.memory.size_bytes
        self._host.send(frames.Opened(session=self.number, memory_bytes=self._told_bytes))

    def _send_saved(self, execution: int) -> None:
        self._host.send(frames.Saved(session=self.number, execution=execution))

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
            item = self.inbox.get()
            if isinstance(item, frames.Run) and not self._is_closing:
                self._run(item)
                self._send_saved(item.execution)
            elif isinstance(item, Layers):
                self._image.relayer(self._alive.memory, item.finished, item.top)

    def _run(self, cell: frames.Run) -> None:
        allowance = self._account.allowance()
        limits = dataclasses.replace(self._limits, execute_time_max_s=allowance.time_s)
        surroundings = self._account.surroundings(
            cell.random_stream or cell.execution, lambda: allowance.fuel - self._alive.fuel
        )
        execution = Execution(
            cell.execution, limits, self._send_output, surroundings, self._host.turns
        )
        self._execution = execution
        self._door.begin(execution, cell)
        if self._is_closing or self._interrupted_up_to >= cell.execution:
            execution.interrupt()
        instance = self._alive
        self._kept_bytes = instance.memory.size_bytes
        used_up = endings.of_used_up(self._limits, allowance)
        if used_up is not None:
            self._host.send(self._ended(execution, instance, 0, used_up))
            return
        instance.fuel = allowance.fuel
        stop = self._turned(instance)
        report = self._door.report
        if stop is None and report is not None and report.ending == "out_of_memory":
            stop = GuestMemoryError("the cell left no memory for the next one")
        if stop is None and not self._door.has_begun:
            raise BrokenGuestError("the code broke the runtime that runs cells")
        fuel_used = max(allowance.fuel - instance.fuel, 0)
        outcome = self._outcome(stop, allowance, instance.memory.size_bytes)
        ended = self._ended(execution, instance, fuel_used, outcome)
        self._account.note(ended)
        self._told_bytes = ended.memory_bytes
        execution.output.finish()  # right before its end, so that both can go to the caller at once
        self._host.send(ended)
        # The kernel lets the supervisor wait behind this thread, which it expects to rest soon:
        # without a moment of rest, the caller waits for the save as well.
        time.sleep(0)
        if ended.state_kept:
            self._image.save(instance.memory)
        else:
            self._renew()

    def _turned(self, instance: GuestInstance) -> GuestStoppedError | GuestMemoryError | None:
        """Run the cell; returns what stopped it, if anything did."""
        try:
            with self._host.running(), self._execution.turn.running():
                instance.turn(RUN)
        except (GuestStoppedError, GuestMemoryError) as error:
            return error
        return None

    def _outcome(
        self,
        stop: GuestStoppedError | GuestMemoryError | None,
        allowance: Allowance,
        memory_bytes: int,
    ) -> ReportEnd | endings.Stop:
        """Return how the cell says that it ended, or why it was undone."""
        if stop is not None:
            return endings.of_stop(stop, self._limits, allowance, memory_bytes)
        return self._door.report or endings.without_report(self._limits, memory_bytes)

    @property
    def _alive(self) -> GuestInstance:
        if self._instance is None:
            raise RuntimeError("the session has no guest")
        return self._instance

    def _renew(self) -> GuestInstance:
        """Replace the instance by one with the session's last image."""
        if self._instance is not None:
            self._instance.close()
        wasi = Wasi(self, self._host.library, self._limits.open_files_max)
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
        fuel_used: int,
        outcome: ReportEnd | endings.Stop,
    ) -> frames.Ended:
        kept = outcome if isinstance(outcome, ReportEnd) else None
        return frames.Ended(
            session=self.number,
            execution=execution.number,
            ending=outcome.ending,
            state_kept=kept is not None,
            failure=outcome.error,
            final=kept.final if kept is not None else None,
            variables=kept.variables if kept is not None else [],
            output_bytes=execution.output.written_bytes,
            output_bytes_dropped=execution.output.dropped_bytes,
            own_time_s=execution.own_time_s,
            wait_time_s=execution.wait_time_s,
            fuel_used=fuel_used,
            memory_bytes=instance.memory.size_bytes if kept is not None else self._kept_bytes,
            limit="" if isinstance(outcome, ReportEnd) else outcome.limit,
            findings=self._door.findings,
            clock_ns=self._account.clock_ns(execution.surroundings, is_kept=kept is not None),
        )

    # What WASI needs; see wasi.WasiHost

    def output_room(self) -> int:
        """Return the bytes of output that are still kept."""
        return self._execution.output.room_bytes

    def write_output(self, stream: int, data: bytes, size_bytes: int) -> None:
        """Take output of the running code."""
        self._execution.output.write(stream, data, size_bytes)

    def clock_ns(self, clock: int) -> int:
        """Return what a clock shows to the running code."""
        return self._execution.surroundings.clock_ns(clock)

    def random_bytes(self, size_bytes: int) -> bytes:
        """Return randomness for the running code."""
        return self._execution.surroundings.random_bytes(size_bytes)

    def sleep(self, duration_s: float) -> None:
        """Let time pass for the running code."""
        self._execution.sleep(duration_s)

    def _on_tick(self) -> None:
        self._tell_growth()
        self._execution.on_tick()

    def _tell_growth(self) -> None:
        """Let the supervisor know who takes memory, before the cell has ended."""
        memory = self._alive.memory
        memory.refresh()
        if self._execution.number and memory.size_bytes >= self._told_bytes + frames.GROWTH_BYTES:
            self._told_bytes = memory.size_bytes
            self._host.send(
                frames.Grown(
                    session=self.number,
                    execution=self._execution.number,
                    memory_bytes=memory.size_bytes,
                )
            )

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
