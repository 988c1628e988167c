"""LiteLLM's proxy beside the gateway: the same questions, the same machine, the same run.

`python -m bench.peers`. The proxy is measured twice: bare, as its documentation starts it, and with
what it has of the duties that the gateway does throughout. Each has rounds by turns with the
gateway, so that what else the machine does falls on both. The proxy is asked over a bare socket,
the gateway over gRPC; what that takes by itself is told first.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop

from bench import gateway_load
from bench.gateway_stack import GatewayStack, gateway_stack
from bench.litellm_proxy import Proxy, check_duties, litellm_proxy, prepared
from bench.measurement import (
    SAMPLES_MIN,
    Figure,
    Goal,
    Measurement,
    print_head,
    print_json,
    print_row,
)

NAME = "peers"
_BARE, _DUTIES = "litellm", "litellm_duties"
_MB = 1_000_000
_PINGS = 300
_GOALS = {
    "start_s": Goal(4, "s"),
    "added_p50_ms": Goal(3, "ms"),
    "added_p99_ms": Goal(10, "ms"),
    "rps_core_16": Goal(600, "1/s", is_floor=True),
    "cpu_ms_50_messages": Goal(3, "ms"),
    "stream_added_ttft_p50_ms": Goal(10, "ms"),
    "rss_mb": Goal(150, "MB"),
    "added_latency_times_lower": Goal(8, "times", is_floor=True),
    "throughput_times_higher": Goal(10, "times", is_floor=True),
}
"""What the gateway is held to, of the proxy; then how much better the gateway is to be."""


async def measure() -> AsyncIterator[Measurement]:
    """Yield the proxy's figures and how the gateway compares, first bare and then with duties."""
    python = await asyncio.to_thread(prepared)
    async with gateway_stack() as stack:
        pings_ms = await gateway_load.latencies_ms(stack.gateway.ping, samples=_PINGS)
        yield Measurement.of(NAME, "gateway_ping_p50_ms", pings_ms, Goal(None, "ms"))
        for prefix in (_BARE, _DUTIES):
            async for name, samples in _figures(python, stack, has_duties=prefix == _DUTIES):
                yield Measurement.of(NAME, f"{prefix}_{name}", samples, _GOALS[name])


async def _figures(python: Path, stack: GatewayStack, *, has_duties: bool) -> AsyncIterator[Figure]:
    """Yield what `bench/gateway.py` measures, of the proxy, whose cache is off by default."""
    starts_s = []
    for _ in range(SAMPLES_MIN - 1):
        async with litellm_proxy(python, stack, has_duties=has_duties) as proxy:
            starts_s.append(proxy.start_s)
    async with litellm_proxy(python, stack, has_duties=has_duties) as proxy:
        yield "start_s", [*starts_s, proxy.start_s]
        sizes = [_megabytes(proxy)]
        ours, theirs = _Load(), _Load()
        for _ in range(gateway_load.ROUNDS):
            await ours.add_round(stack.gateway, stack.floor)
            await theirs.add_round(proxy.endpoint, stack.floor)
            sizes.append(_megabytes(proxy))
        yield "added_p50_ms", theirs.added_p50_ms
        yield "added_p99_ms", theirs.added_p99_ms
        yield "rps_core_16", theirs.calls_a_second
        cpu_ms = await gateway_load.cpu_ms_50_messages(proxy.endpoint, proxy.pid)
        sizes.append(_megabytes(proxy))
        yield "cpu_ms_50_messages", cpu_ms
        ttft_ms = await gateway_load.stream_added_ttft_ms(proxy.endpoint, stack.floor)
        sizes.append(_megabytes(proxy))
        yield "stream_added_ttft_p50_ms", ttft_ms
        yield "rss_mb", sizes
        if has_duties:
            await check_duties(proxy, stack)
    added = zip(theirs.added_p50_ms, ours.added_p50_ms, strict=True)
    yield "added_latency_times_lower", [peer_ms / own_ms for peer_ms, own_ms in added]
    done = zip(theirs.calls_a_second, ours.calls_a_second, strict=True)
    yield "throughput_times_higher", [own / other for other, own in done]


class _Load:
    """What is compared, a sample a round."""

    def __init__(self) -> None:
        self.added_p50_ms: list[float] = []
        self.added_p99_ms: list[float] = []
        self.calls_a_second: list[float] = []

    async def add_round(self, service: gateway_load.Asked, floor: gateway_load.Asked) -> None:
        """Measure once more."""
        p50, p99 = await gateway_load.added_ms(service, floor, rounds=1)
        self.added_p50_ms += p50
        self.added_p99_ms += p99
        self.calls_a_second += await gateway_load.calls_a_second(service, rounds=1)


def _megabytes(proxy: Proxy) -> float:
    return gateway_load.resident_bytes(proxy.pid) / _MB


async def _main(*, as_json: bool) -> None:
    if not as_json:
        print_head()
    async for measurement in measure():
        if as_json:
            print_json(measurement)
        else:
            print_row(measurement)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    uvloop.run(_main(as_json=parser.parse_args().json))
