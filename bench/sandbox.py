"""The sandbox: what a session costs in time and memory, with both walls up.

The service runs as a real process and is asked over gRPC, but for `empty_cell_ms`, which is
taken at the socket of a worker. Nothing is warm that a user would not find warm.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from bench import sandbox_cells, sandbox_contexts, sandbox_images, sandbox_worker
from bench.measurement import Figure, Goal, Measurement
from bench.sandbox_stack import sandbox_stack

NAME = "sandbox"
_GOALS = {
    "session_start_ms": Goal(5, "ms"),
    "empty_cell_ms": Goal(0.5, "ms"),
    "empty_cell_grpc_ms": Goal(2, "ms"),
    "host_call_us": Goal(60, "us"),
    "context_100mb_ascii_s": Goal(0.25, "s"),
    "context_100mb_ascii_rss_ratio": Goal(1.3, "ratio"),
    "context_100mb_latin1_s": Goal(1, "s"),
    "context_100mb_cjk_s": Goal(1, "s"),
    "context_100mb_emoji_s": Goal(1, "s"),
    "context_100mb_unicode_s": Goal(1, "s"),
    "fork_ms": Goal(10, "ms"),
    "fork_answer_ms": Goal(10, "ms"),
    "checkpoint_restore_ms": Goal(100, "ms"),
    "idle_session_rss_mb": Goal(4, "MB"),
    "pandas_session_start_ms": Goal(50, "ms"),
    "lazy_open_10gb_s": Goal(0.2, "s"),
    "lazy_grep_gb_per_s": Goal(1, "GB/s", is_floor=True),
    "lazy_grep_ignore_case_gb_per_s": Goal(1, "GB/s", is_floor=True),
    "lazy_grep_classes_gb_per_s": Goal(1, "GB/s", is_floor=True),
    "lazy_rss_mb": Goal(256, "MB"),
    "two_core_speedup": Goal(1.8, "ratio", is_floor=True),
    "two_core_speedup_one_worker": Goal(1.8, "ratio", is_floor=True),
    "trap_recovery_ms": Goal(10, "ms"),
    "interrupt_ms": Goal(50, "ms"),
    "interrupt_c_call_ms": Goal(50, "ms"),
}
_PARTS = (sandbox_cells.measure, sandbox_images.measure, sandbox_contexts.measure)


async def measure() -> AsyncIterator[Measurement]:
    """Yield each figure as soon as it is known."""
    async for name, samples in _figures():
        yield Measurement.of(NAME, name, samples, _GOALS[name])


async def _figures() -> AsyncIterator[Figure]:
    async for figure in sandbox_worker.measure():
        yield figure
    async with sandbox_stack() as stack:
        for part in _PARTS:
            async for figure in part(stack):
                yield figure
