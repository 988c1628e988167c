"""A cell as the supervisor of a worker has it: from the frame Run to the frame Ended.

A jailed worker process, driven over its socket by the service's own code, without gRPC.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator

from bench.measurement import Figure
from bench.sampling import without_garbage
from common.config import load
from sandbox_service import frames
from sandbox_service.config import PREFIX, SandboxConfig
from sandbox_service.layers import LayerFile
from sandbox_service.limits import Limits
from sandbox_service.pool import WorkerPool
from sandbox_service.prepare import prepared_guest
from sandbox_service.worker_session import WorkerSession

_CELLS = 501
_TIMEOUT_S = 10.0


async def measure() -> AsyncIterator[Figure]:
    """Yield the figure of a worker started for it."""
    config = load(SandboxConfig, os.environ, prefix=PREFIX)
    build = prepared_guest(config.guest_cache)
    layer = LayerFile()
    try:
        async with WorkerPool(build, 1, niceness=config.worker_niceness) as pool:
            opening = frames.Open(session=0, limits=Limits(), mounts=[])
            session, _ = await pool.workers[0].open(opening, [layer.fd])
            with without_garbage():
                samples = [await _empty_cell(session, number) for number in range(1, _CELLS + 1)]
    finally:
        layer.close()
    yield "empty_cell_ms", samples[_CELLS // 10 :]


async def _empty_cell(session: WorkerSession, number: int) -> float:
    """Run a cell in a session that waits for one, as it does while a model thinks."""
    await session.saved(_TIMEOUT_S)
    started = time.perf_counter()
    await session.run(number, "pass", report_variables=False)
    frame = await session.next_frame()
    elapsed_ms = (time.perf_counter() - started) * 1000
    if not isinstance(frame, frames.Ended) or frame.ending != "completed":
        raise RuntimeError(f"an empty cell gave {frame}")
    return elapsed_ms
