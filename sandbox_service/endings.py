"""How an execution ended, from what stopped it: one word for programs, one line for people."""

from __future__ import annotations

from sandbox_service.engine import GuestMemoryError, GuestStoppedError
from sandbox_service.execution import StopError
from sandbox_service.frames import Ending, Failure
from sandbox_service.limits import Limits
from sandbox_service.wasi import GuestExitError

_NEARLY_FULL = 0.9
_TRAP_MESSAGES = {
    "STACK_OVERFLOW": "the call stack of the guest is used up",
    "UNREACHABLE": "the interpreter gave up (a fatal error of Python itself)",
    "MEMORY_OUT_OF_BOUNDS": "the interpreter reached outside its memory",
}


def of_stop(
    stop: GuestStoppedError | GuestMemoryError, limits: Limits, memory_bytes: int
) -> tuple[Ending, Failure]:
    """Return the ending of a cell that was stopped inside WebAssembly, or could not begin.

    Raises RuntimeError where the host itself failed: that is no ending of the cell's.
    """
    if isinstance(stop, GuestMemoryError):
        return _out_of_memory(limits)
    cause = stop.cause
    if isinstance(cause, StopError):
        if cause.ending == "interrupted":
            return "interrupted", Failure(message="the execution was interrupted")
        message = f"the code ran for more than {limits.execute_time_max_s:g} s"
        return "timed_out", Failure(type="TimeoutError", message=message)
    if isinstance(cause, GuestExitError):
        return "exited", Failure(type="SystemExit", message=str(cause.status))
    if cause is not None:
        raise RuntimeError(f"the host failed: {cause!r}") from cause
    if stop.trap_code == "OUT_OF_FUEL":
        return "out_of_fuel", Failure(
            message=f"the code used up its {limits.fuel_max} instructions"
        )
    # Python aborts where it needs memory and cannot raise MemoryError.
    if stop.trap_code == "UNREACHABLE" and is_nearly_full(limits, memory_bytes):
        return _out_of_memory(limits)
    message = _TRAP_MESSAGES.get(stop.trap_code, f"the guest trapped: {stop.trap_code}")
    return "trapped", Failure(message=message)


def _out_of_memory(limits: Limits) -> tuple[Ending, Failure]:
    message = f"the session has used up its {limits.memory_bytes_max} bytes of memory"
    return "out_of_memory", Failure(type="MemoryError", message=message)


def without_report(limits: Limits, memory_bytes: int) -> tuple[Ending, Failure]:
    """Return the ending of a cell that left the runtime unable to say how it ended."""
    if is_nearly_full(limits, memory_bytes):
        return _out_of_memory(limits)
    return "trapped", Failure(message="the code broke the runtime that runs cells")


def is_nearly_full(limits: Limits, memory_bytes: int) -> bool:
    """Tell whether a guest has taken almost all the memory that it may have."""
    return memory_bytes > _NEARLY_FULL * limits.memory_bytes_max
