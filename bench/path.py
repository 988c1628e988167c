"""The path of a run: what the product adds to the time that the models take.

Everything runs against the scripted model at 0 ms (100 ms a sub-call where the name says so).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

from fathom.orchestrator.v1 import run_pb2
from fathom.sandbox.v1 import sandbox_service_pb2_grpc, session_pb2
from fathom_client.client import Client
from fathom_client.inputs import read_inputs

from bench.measurement import Goal, Measurement
from bench.processes import PeakGrowth, worker_pids
from bench.sampling import timed
from bench.sandbox_cells import HOST_CALL_CELL
from bench.sandbox_client import Sandbox
from bench.stack import SLOW_SUB, BenchStack, bench_stack
from common.channel import open_channel

NAME = "path"
_BIG_BYTES = 100_000_000
_TWO_TURNS = (
    "```repl\nanswers = [llm_query(f'Is {n} interesting?') for n in range(4)]\nprint(answers)\n```",
    "```repl\nFINAL(', '.join(answers))\n```",
)
_BIG = (
    "```repl\nprint(len(context), context[:100], context[-100:])\n```",
    "```repl\nFINAL(len(context))\n```",
)
_BATCH = (
    "```repl\nanswers = llm_query_batched([f'Is {n} even?' for n in range(200)])\nprint('ok')\n```",
    "```repl\nFINAL(len([a for a in answers if a == 'yes']))\n```",
)


async def measure() -> AsyncIterator[Measurement]:
    """Yield each figure as soon as it is known."""
    scenarios = {"two-turns": _TWO_TURNS, "big": _BIG, "batch": _BATCH}
    async with bench_stack(scenarios) as stack, Client(stack.orchestrator) as client:
        with TemporaryDirectory() as folder:
            small = await _upload(client, Path(folder) / "small.txt", 10_000)
            big = await _upload(client, Path(folder) / "big.txt", _BIG_BYTES)
        yield await _runs(client, "two_turns_four_subcalls_s", "two-turns", small, "yes", 0.10)
        yield await _runs(client, "context_100mb_two_turns_s", "big", big, str(_BIG_BYTES), 0.6)
        yield await _runs(client, "batch_200x100ms_s", "batch", small, "200", 0.5)
        async with open_channel(stack.sandbox) as channel:
            sandbox = Sandbox(sandbox_service_pb2_grpc.SandboxServiceStub(channel))
            yield await _rss(stack, sandbox, stack.blobs.text("ascii", _BIG_BYTES))
            for figure in (_session_start, _empty_cell, _host_call):
                yield await figure(sandbox)


async def _upload(client: Client, path: Path, size_bytes: int) -> str:
    line = b"A line of plain text that stands for all the others like it, number 0123456789.\n"
    path.write_bytes((line * (size_bytes // len(line) + 1))[:size_bytes])
    context = await client.upload(read_inputs([path]).upload)
    return context.name


async def _runs(
    client: Client, name: str, scenario: str, context: str, answer: str, goal: float
) -> Measurement:
    """Time runs from CreateRun to their last event; each must give the right answer."""
    sub_tier = f"models/{SLOW_SUB}" if scenario == "batch" else ""

    async def run() -> None:
        created = await client.create(
            "What is it?", context, root_tier=f"models/{scenario}", sub_tier=sub_tier
        )
        async for _ in client.watch(created.name):
            pass
        ended = await client.get(created.name)
        if ended.state != run_pb2.Run.STATE_ANSWERED or answer not in ended.answer.text:
            raise RuntimeError(f"{name}: the run ended with {ended}")

    samples = await timed(run, samples=7)
    return Measurement.of(NAME, name, samples, Goal(goal, "s"))


async def _rss(stack: BenchStack, sandbox: Sandbox, mount: session_pb2.ContextMount) -> Measurement:
    """How much a worker grows at its peak, over the context's size, with two cells run."""
    ratios = []
    for _ in range(5):
        growth = PeakGrowth(worker_pids(stack.sandbox_pid))
        session = await sandbox.create(mount)
        await sandbox.execute(session, "print(len(context), context.count('number'))")
        await sandbox.execute(session, "print(context[-10:])")
        ratios.append(growth.end() / mount.size_bytes)
        await sandbox.delete(session)
    return Measurement.of(NAME, "context_100mb_rss_ratio", ratios, Goal(1.3, "ratio"))


async def _session_start(sandbox: Sandbox) -> Measurement:
    samples = []
    for _ in range(31):
        started = time.perf_counter()
        session = await sandbox.create()
        samples.append((time.perf_counter() - started) * 1000)
        await sandbox.delete(session)
    return Measurement.of(NAME, "session_start_ms", samples[1:], Goal(5, "ms"))


async def _empty_cell(sandbox: Sandbox) -> Measurement:
    session = await sandbox.create()

    async def cell() -> None:
        await sandbox.execute(session, "pass")

    samples = [value * 1000 for value in await timed(cell, samples=201)]
    await sandbox.delete(session)
    return Measurement.of(NAME, "empty_cell_ms", samples, Goal(1, "ms"))


async def _host_call(sandbox: Sandbox) -> Measurement:
    """A call from the guest's Python into the host and back, JSON both ways included."""
    session = await sandbox.create()
    samples = [float(await sandbox.execute(session, HOST_CALL_CELL)) for _ in range(8)]
    await sandbox.delete(session)
    return Measurement.of(NAME, "host_call_us", samples[1:], Goal(100, "us"))
