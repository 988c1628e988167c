"""Sessions and cells of the sandbox: their start, their overhead, their end by force."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from fathom.sandbox.v1 import session_pb2

from bench.measurement import Figure
from bench.sampling import timed, without_garbage
from bench.sandbox_client import Result, Sandbox
from bench.sandbox_stack import SandboxStack

_HOST_CALLS = 2_000
HOST_CALL_CELL = f"""
import time
from fathom_guest.host import ask
started = time.perf_counter()
for _ in range({_HOST_CALLS}):
    ask({{"call": "cell"}})
print((time.perf_counter() - started) / {_HOST_CALLS} * 1e6)
"""
"""Prints the microseconds of a call from the guest's Python into the host and back.

JSON is made and read both ways, on both sides."""
_RUNAWAY_FUEL = 200_000_000
_HAS_PANDAS = "import sys; print(int('pandas' in sys.modules))"
_SPIN = "while True: pass"
_C_CALL = "pow(3, 10 ** 9) + 1"
_WORK = """
total = 0
for i in range(12_000_000):
    total += i & 7
"""


async def measure(stack: SandboxStack) -> AsyncIterator[Figure]:
    """Yield figures of a running service."""
    sandbox = stack.sandbox
    yield "session_start_ms", await _starts(sandbox, "", "print(1)", samples=101)
    yield "pandas_session_start_ms", await _starts(sandbox, "pandas", _HAS_PANDAS, samples=21)
    yield "empty_cell_grpc_ms", await _empty_cells(sandbox)
    yield "host_call_us", await _host_calls(sandbox)
    yield "trap_recovery_ms", await _trap_recoveries(sandbox)
    yield "interrupt_ms", await _interrupts(sandbox, _SPIN)
    yield "interrupt_c_call_ms", await _interrupts(sandbox, _C_CALL)
    # Two sessions that follow one another are in different workers; the third is where the
    # first is.
    sessions = [await sandbox.create() for _ in range(3)]
    yield "two_core_speedup", await _speedups(sandbox, sessions[:2])
    yield "two_core_speedup_one_worker", await _speedups(sandbox, sessions[::2])
    for session in sessions:
        await sandbox.delete(session)


async def _starts(sandbox: Sandbox, profile: str, probe: str, *, samples: int) -> list[float]:
    """Time CreateSession; each session then proves with a cell that it was ready."""
    times = []
    with without_garbage():
        for _ in range(samples + 1):
            started = time.perf_counter()
            session = await sandbox.create(profile=profile)
            times.append((time.perf_counter() - started) * 1000)
            if await sandbox.execute(session, probe) != "1\n":
                raise RuntimeError("a session is not what it should be")
            await sandbox.delete(session)
    return times[1:]


async def _empty_cells(sandbox: Sandbox) -> list[float]:
    session = await sandbox.create()
    times = await timed(lambda: sandbox.execute(session, "pass"), samples=301)
    await sandbox.delete(session)
    return [value * 1000 for value in times]


async def _host_calls(sandbox: Sandbox) -> list[float]:
    session = await sandbox.create()
    samples = [float(await sandbox.execute(session, HOST_CALL_CELL)) for _ in range(12)]
    await sandbox.delete(session)
    return samples[1:]


async def _trap_recoveries(sandbox: Sandbox) -> list[float]:
    """From the end of a cell that ran away to the next one's answer, out of the old state."""
    session = await sandbox.create(limits=session_pb2.SessionLimits(fuel_max=_RUNAWAY_FUEL))
    await sandbox.execute(session, "kept = list(range(10_000)); answer = 42")
    samples = []
    for _ in range(22):
        ran = await sandbox.run(session, f"answer = 0\n{_SPIN}")
        if ran.result.ending != Result.ENDING_OUT_OF_FUEL:
            raise RuntimeError(f"the runaway ended with {ran.result}")
        started = time.perf_counter()
        output = await sandbox.execute(session, "print(answer, len(kept))")
        samples.append((time.perf_counter() - started) * 1000)
        if output != "42 10000\n":
            raise RuntimeError(f"the state after a runaway is {output!r}")
    await sandbox.delete(session)
    return samples[1:]


async def _interrupts(sandbox: Sandbox, endless: str) -> list[float]:
    """From InterruptExecution to the result of the cell that it stops."""
    session = await sandbox.create()
    samples = []
    for _ in range(11):
        running = asyncio.create_task(sandbox.run(session, f"print('runs')\n{endless}"))
        await asyncio.sleep(0.1)  # well inside the endless part
        started = time.perf_counter()
        await sandbox.interrupt(session)
        ran = await running
        samples.append((time.perf_counter() - started) * 1000)
        if ran.result.ending != Result.ENDING_INTERRUPTED or "runs" not in ran.output:
            raise RuntimeError(f"an interrupted cell ended with {ran}")
    await sandbox.delete(session)
    return samples[1:]


async def _speedups(sandbox: Sandbox, pair: list[str]) -> list[float]:
    """How much sooner two sessions are done at once than one after the other."""
    samples = []
    for _ in range(7):
        alone = await _worked(sandbox, pair[:1])
        both = await _worked(sandbox, pair)
        samples.append(2 * alone / both)
    return samples


async def _worked(sandbox: Sandbox, sessions: list[str]) -> float:
    """Return the seconds that all sessions take to work at once."""
    started = time.perf_counter()
    await asyncio.gather(*[sandbox.execute(session, _WORK) for session in sessions])
    return time.perf_counter() - started
