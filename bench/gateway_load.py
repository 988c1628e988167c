"""What an answering service adds to a bare socket, for any service that can be asked. The two take
turns, so that what else the machine does falls on both.
"""

from __future__ import annotations

import asyncio
import math
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from bench.sampling import without_garbage

ROUNDS = 5
_ASKS = 200
_WARM_ASKS = 50
_STREAMS = 16
_BURSTS = 10
_CLIENTS = 16
_LOAD_S = 2.0
_MESSAGES = 50
_KB = 1_024
PROMPT = ("A line of plain text that stands for all the others like it. " * 20)[:_KB]
"""1 KB."""


class Asked(Protocol):
    """A service, or the bare socket."""

    async def ask(self, texts: Sequence[str]) -> None:
        """Have messages answered whole."""

    async def first_piece_s(self, texts: Sequence[str]) -> float:
        """Have messages answered in pieces; return how long the first one took, after the last."""


async def added_ms(
    service: Asked, floor: Asked, *, rounds: int = ROUNDS
) -> tuple[list[float], list[float]]:
    """Return the milliseconds added at one client, a sample a round: at p50 and at p99."""
    for _ in range(_WARM_ASKS):
        await floor.ask([PROMPT])
        await service.ask([PROMPT])
    p50, p99 = [], []
    for _ in range(rounds):
        through, bare = [], []
        with without_garbage():
            for _ in range(_ASKS):
                bare.append(await _ms(lambda: floor.ask([PROMPT])))
                through.append(await _ms(lambda: service.ask([PROMPT])))
        p50.append(statistics.median(through) - statistics.median(bare))
        p99.append(_p99(through) - _p99(bare))
    return p50, p99


async def calls_a_second(service: Asked, *, rounds: int = ROUNDS) -> list[float]:
    """Return the calls a second of 16 clients, a sample a round."""
    samples = []
    for _ in range(rounds):
        started = time.perf_counter()
        until = started + _LOAD_S
        done = await asyncio.gather(*(_ask_until(service, until) for _ in range(_CLIENTS)))
        samples.append(sum(done) / (time.perf_counter() - started))
    return samples


async def cpu_ms_50_messages(service: Asked, pid: int) -> list[float]:
    """Return the CPU milliseconds a call of 50 messages takes of a process, a sample a round. Each
    begins with a new one, so that nothing of it can be known from the call before.
    """
    rest = [PROMPT[: _KB // 4]] * (_MESSAGES - 1)
    samples = []
    for number in range(ROUNDS):
        before = cpu_ms(pid)
        for turn in range(_ASKS):
            await service.ask([f"{number}.{turn} {rest[0]}", *rest])
        samples.append((cpu_ms(pid) - before) / _ASKS)
    return samples


async def stream_added_ttft_ms(service: Asked, floor: Asked) -> list[float]:
    """Return the milliseconds added before the first piece, where 16 streams begin together."""
    samples = []
    for number in range(ROUNDS + 1):
        bare = await _first_pieces_ms(floor)
        through = await _first_pieces_ms(service)
        if number:  # the first round opens connections
            samples.append(statistics.median(through) - statistics.median(bare))
    return samples


async def latencies_ms(action: Callable[[], Awaitable[object]], *, samples: int) -> list[float]:
    """Return how long each of several actions takes, one after the other."""
    with without_garbage():
        return [await _ms(action) for _ in range(samples)]


def cpu_ms(pid: int) -> float:
    """Return the CPU time that a process has taken so far, with its threads."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e6


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has resident."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _first_pieces_ms(asked: Asked) -> list[float]:
    """Begin 16 streams together, several times; return when each had its first piece."""
    taken = []
    for _ in range(_BURSTS):
        together = (asked.first_piece_s([PROMPT]) for _ in range(_STREAMS))
        taken += [first * 1_000 for first in await asyncio.gather(*together)]
    return taken


async def _ask_until(service: Asked, until: float) -> int:
    done = 0
    while time.perf_counter() < until:
        await service.ask([PROMPT])
        done += 1
    return done


async def _ms(action: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await action()
    return (time.perf_counter() - started) * 1_000


def _p99(samples: Sequence[float]) -> float:
    return sorted(samples)[math.ceil(len(samples) * 0.99) - 1]
