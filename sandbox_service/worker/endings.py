"""How an execution ended, from what stopped it: one word for programs, one line for people."""

from __future__ import annotations

from typing import NamedTuple

from sandbox_service.engine import GuestStoppedError
from sandbox_service.frames import Ending, Failure
from sandbox_service.guest_memory import GuestMemoryError
from sandbox_service.limits import Allowance, Limits
from sandbox_service.worker.execution import StopError
from sandbox_service.worker.wasi import GuestExitError

_NEARLY_FULL = 0.9
_TRAPS_FOR_WANT_OF_MEMORY = ("UNREACHABLE", "MEMORY_OUT_OF_BOUNDS")
_TRAP_MESSAGES = {
    "STACK_OVERFLOW": "the call stack of the guest is used up",
    "UNREACHABLE": "the interpreter gave up (a fatal error of Python itself)",
    "MEMORY_OUT_OF_BOUNDS": "the interpreter reached outside its memory",
}


class Stop(NamedTuple):
    """Why a cell did not end by itself."""

    ending: Ending
    error: Failure
    limit: str = ""
    """The field of SessionLimits that ended it; empty where none did."""


def of_stop(
    stop: GuestStoppedError | GuestMemoryError,
    limits: Limits,
    allowance: Allowance,
    memory_bytes: int,
) -> Stop:
    """Return the ending of a cell that was stopped inside WebAssembly, or could not begin.

    Raises RuntimeError where the host itself failed: that is no ending of the cell's.
    """
    if isinstance(stop, GuestMemoryError):
        return _out_of_memory(limits)
    cause = stop.cause
    if isinstance(cause, StopError):
        if cause.ending == "interrupted":
            return Stop("interrupted", Failure(message="the execution was interrupted"))
        return _timed_out(limits, allowance)
    if isinstance(cause, GuestExitError):
        return Stop("exited", Failure(type="SystemExit", message=str(cause.status)))
    if cause is not None:
        raise RuntimeError(f"the host failed: {cause!r}") from cause
    if stop.trap_code == "OUT_OF_FUEL":
        return _out_of_fuel(limits, allowance)
    # Python aborts where it needs memory and cannot raise MemoryError, or uses what it did not get.
    if stop.trap_code in _TRAPS_FOR_WANT_OF_MEMORY and is_nearly_full(limits, memory_bytes):
        return _out_of_memory(limits)
    message = _TRAP_MESSAGES.get(stop.trap_code, f"the guest trapped: {stop.trap_code}")
    return Stop("trapped", Failure(message=message))


def of_used_up(limits: Limits, allowance: Allowance) -> Stop | None:
    """Return the ending of a cell whose session has nothing left to run it with, else None."""
    if not allowance.fuel:
        return _out_of_fuel(limits, allowance)
    return None if allowance.time_s else _timed_out(limits, allowance)


def without_report(limits: Limits, memory_bytes: int) -> Stop:
    """Return the ending of a cell that left the runtime unable to say how it ended."""
    if is_nearly_full(limits, memory_bytes):
        return _out_of_memory(limits)
    return Stop("trapped", Failure(message="the code broke the runtime that runs cells"))


def is_nearly_full(limits: Limits, memory_bytes: int) -> bool:
    """Tell whether a guest has taken almost all the memory that it may have."""
    return memory_bytes > _NEARLY_FULL * limits.memory_bytes_max


def _out_of_memory(limits: Limits) -> Stop:
    message = f"the session has used up its {limits.memory_bytes_max} bytes of memory"
    return Stop("out_of_memory", Failure(type="MemoryError", message=message), "memory_bytes_max")


def _out_of_fuel(limits: Limits, allowance: Allowance) -> Stop:
    message = f"the code used up its {limits.fuel_max} instructions"
    if allowance.fuel_limit == "session_fuel_max":
        message = f"the session has used up its {limits.session_fuel_max} instructions"
    return Stop("out_of_fuel", Failure(message=message), allowance.fuel_limit)


def _timed_out(limits: Limits, allowance: Allowance) -> Stop:
    message = f"the code ran for more than {limits.execute_time_max_s:g} s"
    if allowance.time_limit == "session_time_max":
        message = f"the session has used up its {limits.session_time_max_s:g} s of own time"
    return Stop("timed_out", Failure(type="TimeoutError", message=message), allowance.time_limit)
