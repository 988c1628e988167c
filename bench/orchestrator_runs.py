"""Runs as the orchestrator drives them: what it adds to the models' own time, how soon events reach
their watcher, and a thousand runs at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Run
from fathom_client.client import Client
from fathom_client.errors import FathomError
from fathom_client.inputs import read_inputs

from bench.measurement import Figure
from bench.processes import peak_bytes
from bench.sampling import without_garbage
from bench.stack import SLOW_SUB, bench_stack

_TURNS = 20
_MODEL_S = 1.0
_LONG = "long"
_LONG_REPLIES = (
    *(f"```repl\nfound_{n} = [n * {n} for n in range(100)]\nprint(found_{n}[:3])\n```"
      for n in range(_TURNS - 1)),
    "```repl\nFINAL(len(found_3))\n```",
)  # fmt: skip
_SAMPLES = 5
_WATCHED = "watched"
_WATCHED_REPLIES = (
    "```repl\nfor n in range(20):\n    llm_query(f'Is {n} even?')\n```",
    "```repl\nFINAL('20 were asked')\n```",
)
_MANY = 1_000
_MANY_NAME = "many"
_MANY_S = 2.0
_MANY_REPLIES = (
    "```repl\nfound = llm_query('Is it even?')\nprint(found)\n```",
    "```repl\nFINAL(found)\n```",
)
_MANY_TIMEOUT_S = 600.0
_CREATES = 32
"""CreateRun calls under way at a time."""
_MB = 1_000_000


async def overhead() -> AsyncIterator[Figure]:
    """Yield wall time over the time that the root model takes, of runs one after the other, and
    the time from an event to its watcher."""
    scenarios = {_LONG: _LONG_REPLIES, _WATCHED: _WATCHED_REPLIES}
    async with (
        bench_stack(scenarios, model_ms={_LONG: 1000 * _MODEL_S}) as stack,
        Client(stack.orchestrator) as client,
    ):
        context = await _small_context(client)
        latencies_ms: list[float] = []
        with without_garbage():
            for _ in range(10):
                await _watched(client, _WATCHED, context, latencies_ms)
        yield "event_to_watcher_p50_ms", latencies_ms
        ratios = []
        for _ in range(_SAMPLES):
            started = time.perf_counter()
            await _watched(client, _LONG, context, [])
            ratios.append((time.perf_counter() - started) / (_TURNS * _MODEL_S))
        yield "overhead_ratio_20_turns", ratios


async def a_thousand() -> tuple[int, int, float]:
    """Drive a thousand runs at once, each of two calls of the root model of 2 s and a sub-call;
    return how many did not end with their answer, the orchestrator's peak memory in MB, and the
    seconds from the first to the last."""
    settings = {
        "FATHOM_ORCHESTRATOR_RUNS_RUNNING_MAX": str(_MANY),
        "FATHOM_ORCHESTRATOR_RUNS_RUNNING_MAX_PER_TENANT": str(_MANY),
        "FATHOM_SANDBOX_SESSIONS_MAX": str(_MANY),
    }
    async with (
        bench_stack(
            {_MANY_NAME: _MANY_REPLIES}, model_ms={_MANY_NAME: 1000 * _MANY_S}, settings=settings
        ) as stack,
        Client(stack.orchestrator) as client,
    ):
        context = await _small_context(client)
        started = time.perf_counter()
        gate = asyncio.Semaphore(_CREATES)

        async def one() -> bool:
            async with gate:
                run = await client.create(
                    "Is it?",
                    context,
                    root_tier=f"models/{_MANY_NAME}",
                    sub_tier=f"models/{SLOW_SUB}",
                )
            async for _ in client.watch(run.name):
                pass
            return _is_right(await client.get(run.name), "yes")

        async with asyncio.timeout(_MANY_TIMEOUT_S):
            ended = await asyncio.gather(*(one() for _ in range(_MANY)), return_exceptions=True)
        for failure in ended:
            if isinstance(failure, BaseException) and not isinstance(failure, FathomError):
                raise failure
        took_s = time.perf_counter() - started
        lost = sum(each is not True for each in ended)
        return lost, peak_bytes(stack.orchestrator_pid) // _MB, took_s


async def _watched(client: Client, scenario: str, context: str, latencies_ms: list[float]) -> None:
    """Watch a run to its end, which must be its answer; note how old each event was."""
    run = await client.create("What is it?", context, root_tier=f"models/{scenario}")
    latencies_ms += [_age_ms(event) async for event in client.watch(run.name)]
    ended = await client.get(run.name)
    if ended.state != Run.STATE_ANSWERED:
        raise RuntimeError(f"{scenario}: the run ended with {ended}")


def _age_ms(event: RunEvent) -> float:
    return (time.time_ns() - event.event_time.ToNanoseconds()) / 1e6


def _is_right(run: Run, answer: str) -> bool:
    return run.state == Run.STATE_ANSWERED and run.answer.text == answer


async def _small_context(client: Client) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "small.txt"
        path.write_text("A line of plain text.\n" * 100)
        return (await client.upload(read_inputs([path]).upload)).name
