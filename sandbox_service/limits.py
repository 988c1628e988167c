"""What bounds a session: plain numbers that supervisor and worker share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits in force for one session."""

    memory_bytes_max: int = 1 << 30
    """Linear memory of the guest, the interpreter's own included."""
    fuel_max: int = 1_000_000_000_000
    """Instructions of one execution."""
    execute_time_max_s: float = 120.0
    """Wall time of one execution's own work; waits for sub-calls are not counted."""
    output_bytes_max: int = 1 << 20
    """Output kept of one execution, over both streams."""
    sub_calls_max: int = 10_000
    """Sub-calls of the whole session."""
    output_lines_max: int = 100_000
    """Lines of output kept of one execution, over both streams."""
    session_fuel_max: int = 100_000_000_000_000
    """Instructions of all executions together."""
    session_time_max_s: float = 36_000.0
    """Own wall time of all executions together."""
    value_bytes_max: int = 48 << 20
    """Size of one value that crosses from the guest to its host."""
    open_files_max: int = 64
    """Files of the library that the guest has open at a time."""


@dataclass(frozen=True)
class Allowance:
    """What one execution may use: its own limits, or the rest of its session's."""

    fuel: int
    """Instructions."""
    time_s: float
    """Own wall time."""
    fuel_limit: str
    """The field of SessionLimits that the instructions come from."""
    time_limit: str
    """The field that the time comes from."""

    @classmethod
    def of(cls, limits: Limits, fuel_used: int, time_used_s: float) -> Allowance:
        """Return what is left for an execution in a session that has used so much before."""
        fuel_left = max(limits.session_fuel_max - fuel_used, 0)
        time_left_s = max(limits.session_time_max_s - time_used_s, 0.0)
        is_own_time = limits.execute_time_max_s <= time_left_s
        return cls(
            fuel=min(limits.fuel_max, fuel_left),
            time_s=min(limits.execute_time_max_s, time_left_s),
            fuel_limit="fuel_max" if limits.fuel_max <= fuel_left else "session_fuel_max",
            time_limit="execute_time_max" if is_own_time else "session_time_max",
        )
