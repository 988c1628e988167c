"""The upload of a context of 10 GB to local storage: its rate, and what the orchestrator takes."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from fathom_client.client import Client
from fathom_client.inputs import read_inputs

from bench.blobs import Blobs
from bench.processes import peak_bytes, worker_pids
from bench.stack import bench_stack

_SIZE_BYTES = 10_000_000_000
_PART_BYTES = _SIZE_BYTES // 5
_MB = 1_000_000


async def upload() -> tuple[list[float], float]:
    """Return MB a second of each fifth of the context, its whole end with the last one, and the
    peak memory of the orchestrator and of a process that it started, in MB."""
    with TemporaryDirectory(prefix="fathom-bench-") as name:
        mount = Blobs(Path(name)).log(_SIZE_BYTES)
        source = (Path(name) / mount.blob_key).rename(Path(name) / "big.txt")
        async with (
            bench_stack({"unasked": ["no"]}) as stack,
            Client(stack.orchestrator) as client,
        ):
            ends_s = [time.perf_counter()]

            def note(sent_bytes: int) -> None:
                if len(ends_s) < 5 and sent_bytes >= len(ends_s) * _PART_BYTES:
                    ends_s.append(time.perf_counter())

            await client.upload(read_inputs([source]).upload, on_progress=note)
            ends_s.append(time.perf_counter())
            pids = [stack.orchestrator_pid, *worker_pids(stack.orchestrator_pid)]
            peak_mb = max(map(peak_bytes, pids)) / _MB
    parts_s = [after - before for before, after in itertools.pairwise(ends_s)]
    return [_PART_BYTES / _MB / part_s for part_s in parts_s], peak_mb
