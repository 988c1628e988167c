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
