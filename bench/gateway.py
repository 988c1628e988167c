"""The gateway: what it adds to a provider's own time, with everything on, pinned to a core.

The provider is the scripted model at 0 ms. What a call costs over a bare socket is measured in the
same run and taken off; throughput, CPU, cached answers and memory are the whole.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from bench import gateway_load
from bench.gateway_stack import GatewayStack, gateway_stack
from bench.measurement import Figure, Goal, Measurement

NAME = "gateway"
_GOALS = {
    "start_s": Goal(4, "s"),
    "added_p50_ms": Goal(3, "ms"),
    "added_p99_ms": Goal(10, "ms"),
    "rps_core_16": Goal(600, "1/s", is_floor=True),
    "cpu_ms_50_messages": Goal(3, "ms"),
    "stream_added_ttft_p50_ms": Goal(10, "ms"),
    "cache_hit_p50_ms": Goal(1.2, "ms"),
    "rss_mb": Goal(150, "MB"),
}
_HITS = 300
_MB = 1_000_000


async def measure() -> AsyncIterator[Measurement]:
    """Yield each figure as soon as it is known."""
    async with gateway_stack() as stack:
        async for name, samples in _figures(stack):
            yield Measurement.of(NAME, name, samples, _GOALS[name])
        await _check(stack)


async def _figures(stack: GatewayStack) -> AsyncIterator[Figure]:
    gateway, floor, sizes = stack.gateway, stack.floor, []

    def note_size() -> None:
        sizes.append(gateway_load.resident_bytes(stack.pid) / _MB)

    yield "start_s", stack.starts_s
    p50, p99 = await gateway_load.added_ms(gateway, floor)
    note_size()
    yield "added_p50_ms", p50
    yield "added_p99_ms", p99
    yield "rps_core_16", await gateway_load.calls_a_second(gateway)
    note_size()
    yield "cpu_ms_50_messages", await gateway_load.cpu_ms_50_messages(gateway, stack.pid)
    note_size()
    yield "stream_added_ttft_p50_ms", await gateway_load.stream_added_ttft_ms(gateway, floor)
    note_size()
    texts = [gateway_load.PROMPT]
    await gateway.fill_cache(texts)
    hits = await gateway_load.latencies_ms(lambda: gateway.ask_again(texts), samples=_HITS)
    note_size()
    yield "cache_hit_p50_ms", hits
    yield "rss_mb", sizes


async def _check(stack: GatewayStack) -> None:
    """Raise RuntimeError unless the ledger has every call, and traces were sent."""
    booked = await stack.gateway.booked()
    if booked != stack.gateway.paid:
        raise RuntimeError(f"the ledger has {booked} calls of {stack.gateway.paid}")
    if not stack.collector.exports:
        raise RuntimeError("no trace was sent")
