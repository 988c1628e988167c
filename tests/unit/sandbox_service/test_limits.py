"""What an execution may use, and how it is told that it has."""

from __future__ import annotations

import pytest

from sandbox_service.engine import GuestStoppedError
from sandbox_service.guest_memory import GuestMemoryError
from sandbox_service.limits import Allowance, Limits
from sandbox_service.worker import endings
from sandbox_service.worker.execution import StopError
from sandbox_service.worker.wasi import GuestExitError

LIMITS = Limits(
    memory_bytes_max=1000,
    fuel_max=100,
    execute_time_max_s=10.0,
    session_fuel_max=1_000,
    session_time_max_s=60.0,
)


def stopped(trap_code: str = "", cause: BaseException | None = None) -> GuestStoppedError:
    return GuestStoppedError("stopped", trap_code, cause)


@pytest.mark.parametrize(
    ("fuel_used", "fuel", "limit"),
    [
        (0, 100, "fuel_max"),
        (900, 100, "fuel_max"),
        (901, 99, "session_fuel_max"),
        (1_000, 0, "session_fuel_max"),
        (5_000, 0, "session_fuel_max"),
    ],
)
def test_fuel_is_the_executions_own_or_the_rest_of_the_sessions(
    fuel_used: int, fuel: int, limit: str
) -> None:
    allowance = Allowance.of(LIMITS, fuel_used, 0.0)

    assert (allowance.fuel, allowance.fuel_limit) == (fuel, limit)


@pytest.mark.parametrize(
    ("time_used_s", "time_s", "limit"),
    [
        (0.0, 10.0, "execute_time_max"),
        (50.0, 10.0, "execute_time_max"),
        (51.0, 9.0, "session_time_max"),
        (60.0, 0.0, "session_time_max"),
        (99.0, 0.0, "session_time_max"),
    ],
)
def test_time_is_the_executions_own_or_the_rest_of_the_sessions(
    time_used_s: float, time_s: float, limit: str
) -> None:
    allowance = Allowance.of(LIMITS, 0, time_used_s)

    assert (allowance.time_s, allowance.time_limit) == (time_s, limit)


@pytest.mark.parametrize(
    ("stop", "used", "ending", "limit"),
    [
        (stopped("OUT_OF_FUEL"), (0, 0.0), "out_of_fuel", "fuel_max"),
        (stopped("OUT_OF_FUEL"), (950, 0.0), "out_of_fuel", "session_fuel_max"),
        (stopped(cause=StopError("timed_out")), (0, 0.0), "timed_out", "execute_time_max"),
        (stopped(cause=StopError("timed_out")), (0, 55.0), "timed_out", "session_time_max"),
        (stopped(cause=StopError("interrupted")), (950, 55.0), "interrupted", ""),
        (stopped(cause=GuestExitError(3)), (0, 0.0), "exited", ""),
        (stopped("STACK_OVERFLOW"), (0, 0.0), "trapped", ""),
        (GuestMemoryError("none left"), (0, 0.0), "out_of_memory", "memory_bytes_max"),
    ],
)
def test_an_ending_names_the_limit_behind_it(
    stop: GuestStoppedError | GuestMemoryError,
    used: tuple[int, float],
    ending: str,
    limit: str,
) -> None:
    found = endings.of_stop(stop, LIMITS, Allowance.of(LIMITS, *used), memory_bytes=500)

    assert (found.ending, found.limit) == (ending, limit)
    assert found.error.message


@pytest.mark.parametrize(("memory_bytes", "ending"), [(900, "trapped"), (901, "out_of_memory")])
def test_an_interpreter_that_gives_up_with_its_memory_full_had_too_little(
    memory_bytes: int, ending: str
) -> None:
    """Python aborts where it cannot even raise MemoryError."""
    allowance = Allowance.of(LIMITS, 0, 0.0)

    assert endings.of_stop(stopped("UNREACHABLE"), LIMITS, allowance, memory_bytes).ending == ending
    assert endings.without_report(LIMITS, memory_bytes).ending == ending


def test_a_fault_of_the_hosts_is_no_ending_of_the_cells() -> None:
    allowance = Allowance.of(LIMITS, 0, 0.0)

    with pytest.raises(RuntimeError, match="the host failed"):
        endings.of_stop(stopped(cause=ZeroDivisionError()), LIMITS, allowance, 0)


@pytest.mark.parametrize(
    ("used", "limit"),
    [
        ((999, 59.0), None),
        ((1_000, 0.0), "session_fuel_max"),
        ((0, 60.0), "session_time_max"),
    ],
)
def test_a_session_with_nothing_left_runs_nothing(
    used: tuple[int, float], limit: str | None
) -> None:
    found = endings.of_used_up(LIMITS, Allowance.of(LIMITS, *used))

    assert (found.limit if found else None) == limit
