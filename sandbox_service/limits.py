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
