"""What is left to a session, and its clock, from one execution to the next."""

from __future__ import annotations

from sandbox_service import frames
from sandbox_service.limits import Limits
from sandbox_service.worker.session_account import SessionAccount
from sandbox_service.worker.surroundings import FixedSurroundings, HostSurroundings

LIMITS = Limits(fuel_max=80, session_fuel_max=100, execute_time_max_s=8, session_time_max_s=10)


def account(
    clock_ns: int | None = None, fuel_used: int = 0, time_used_s: float = 0.0
) -> SessionAccount:
    determinism = None
    if clock_ns is not None:
        determinism = frames.Determinism(clock_ns=clock_ns, seed=1)
    opening = frames.Open(
        session=1,
        limits=LIMITS,
        mounts=[],
        determinism=determinism,
        fuel_used=fuel_used,
        time_used_s=time_used_s,
    )
    return SessionAccount(opening)


def ended(fuel_used: int, own_time_s: float, clock_ns: int = 0) -> frames.Ended:
    return frames.Ended(
        session=1,
        execution=1,
        ending="completed",
        state_kept=True,
        failure=None,
        final=None,
        variables=[],
        output_bytes=0,
        output_bytes_dropped=0,
        own_time_s=own_time_s,
        wait_time_s=0.0,
        fuel_used=fuel_used,
        memory_bytes=0,
        clock_ns=clock_ns,
    )


def test_executions_add_up() -> None:
    used = account()
    for _ in range(2):
        used.note(ended(fuel_used=30, own_time_s=2.0))

    allowance = used.allowance()

    assert (allowance.fuel, allowance.fuel_limit) == (40, "session_fuel_max")
    assert (allowance.time_s, allowance.time_limit) == (6.0, "session_time_max")


def test_a_session_that_was_moved_goes_on_where_it_was() -> None:
    allowance = account(fuel_used=90, time_used_s=9.0).allowance()

    assert (allowance.fuel, allowance.time_s) == (10, 1.0)


def test_without_determinism_the_surroundings_are_the_hosts() -> None:
    used = account()
    surroundings = used.surroundings(1, lambda: 0)

    assert isinstance(surroundings, HostSurroundings)
    assert used.clock_ns(surroundings, is_kept=True) == 0


def test_a_fixed_clock_goes_on_from_the_last_execution() -> None:
    used = account(clock_ns=1_000)
    first = used.surroundings(1, lambda: 25)
    assert isinstance(first, FixedSurroundings)

    used.note(ended(25, 0.0, used.clock_ns(first, is_kept=True)))

    assert used.surroundings(2, lambda: 5).clock_ns(0) == 1_030


def test_an_undone_execution_moves_no_clock() -> None:
    used = account(clock_ns=1_000)

    undone = used.clock_ns(used.surroundings(1, lambda: 25), is_kept=False)
    used.note(ended(25, 0.0, undone))

    assert used.surroundings(2, lambda: 0).clock_ns(0) == 1_000
