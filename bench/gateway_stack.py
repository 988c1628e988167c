"""The gateway alone, as a process on a core of its own with everything on: run tokens, a quota,
limits, the ledger, and traces that go to a collector which drops them. Beside it the scripted
model at 0 ms.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

import grpc
from fathom_client.local_stack import environment_of
from fathom_client.processes import ServiceProcess

from bench.gateway_client import GatewayClient
from bench.gateway_http import HttpEndpoint
from common.channel import open_channel

_STARTS = 5
_WHOLE, _STREAMED = "whole", "streamed"
_STREAM_PIECES = 22
_PIECE_CHARACTERS = 64
"""What the scripted model puts into a piece at least."""


@dataclasses.dataclass(frozen=True)
class GatewayStack:
    """A running gateway and what is around it."""

    gateway: GatewayClient
    """A client of it."""
    floor: HttpEndpoint
    """The scripted model, past the gateway."""
    pid: int
    """Process id of the gateway."""
    starts_s: list[float]
    """How long it took to serve, each time it was started."""
    collector: Collector
    """Where its traces went."""
    model: str
    """Address of the scripted model."""
    core: int
    """The core that the gateway is on."""
    models: tuple[str, ...] = (_WHOLE, _STREAMED)
    """What the scripted model offers."""


class Collector:
    """An OTLP collector that counts what it is sent and drops it."""

    def __init__(self) -> None:
        self.exports = 0
        """Messages so far."""
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((_Everything(self),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def __aenter__(self) -> Self:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)


class _Everything(grpc.GenericRpcHandler):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def service(self, _details: Any) -> Any:
        """Take any call; an empty answer is one of any type."""
        return grpc.unary_unary_rpc_method_handler(self._take)

    async def _take(self, _request: bytes, _context: Any) -> bytes:
        self._collector.exports += 1
        return b""


@contextlib.asynccontextmanager
async def scripted_model(folder: Path) -> AsyncIterator[str]:
    """Run the scripted model inside the block and yield its address."""
    pieces = "w" * (_PIECE_CHARACTERS * _STREAM_PIECES)
    script = folder / "script.json"
    replies = {_WHOLE: ["yes"], _STREAMED: [pieces]}
    script.write_text(
        json.dumps({name: {"mode": "cycle", "replies": each} for name, each in replies.items()})
    )
    address_file = folder / "model.address"
    process = ServiceProcess(
        "scripted model",
        "fathom_demo.scripted_model",
        arguments=("--script", str(script), "--address-file", str(address_file)),
        environment={"PATH": os.environ.get("PATH", "")},
        address_file=address_file,
        log=folder / "model.log",
    )
    await process.start()
    try:
        yield await process.wait_ready()
    finally:
        await process.stop()


def endpoint_of(
    address: str, *, path: str = "/v1/chat/completions", key: str = "none"
) -> HttpEndpoint:
    """Return an endpoint that offers the scripted model's models under their own names."""
    return HttpEndpoint(address, model=_WHOLE, stream_model=_STREAMED, path=path, key=key)


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Have processes that are started inside the block stay on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def beside_core(core: int) -> Iterator[None]:
    """Keep this process and what it starts off a core, where there is another one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before - {core} or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.asynccontextmanager
async def gateway_stack() -> AsyncIterator[GatewayStack]:
    """Run everything inside the block, the gateway last of several times."""
    core = max(os.sched_getaffinity(0))
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fathom-bench-")))
        stack.enter_context(beside_core(core))
        model = await stack.enter_async_context(scripted_model(folder))
        collector = await stack.enter_async_context(Collector())
        token_key, operator_key = secrets.token_hex(32), secrets.token_hex(32)
        process = _gateway(folder, model, collector, token_key, operator_key)
        stack.push_async_callback(process.stop)
        starts_s = []
        for _ in range(_STARTS):
            await process.stop()
            started = time.perf_counter()
            with on_core(core):
                await process.start()
            address = await process.wait_ready()
            starts_s.append(time.perf_counter() - started)
        floor = endpoint_of(model)
        stack.push_async_callback(floor.close)
        channel = await stack.enter_async_context(open_channel(address))
        gateway = GatewayClient(channel, token_key=token_key, operator_key=operator_key)
        await gateway.set_quota()
        yield GatewayStack(gateway, floor, process.pid, starts_s, collector, model, core)


def _gateway(
    folder: Path, model: str, collector: Collector, token_key: str, operator_key: str
) -> ServiceProcess:
    config = folder / "gateway.toml"
    lines = ["[providers.model]", f'base_url = "http://{model}/v1"']
    for name in (_WHOLE, _STREAMED):
        lines += ["[[deployments]]", f'name = "{name}"', 'provider = "model"', f'model = "{name}"']
        lines += ["price = { input_usd_per_million = 1, output_usd_per_million = 2 }"]
    lines += ["[tiers]", f'root = ["{_STREAMED}"]', f'sub = ["{_WHOLE}"]', ""]
    config.write_text("\n".join(lines))
    address_file = folder / "gateway.address"
    settings = {
        "FATHOM_GATEWAY_LISTEN": "127.0.0.1:0",
        "FATHOM_GATEWAY_ADDRESS_FILE": str(address_file),
        "FATHOM_GATEWAY_CONFIG": str(config),
        "FATHOM_GATEWAY_RUN_TOKEN_KEY": token_key,
        "FATHOM_GATEWAY_OPERATOR_KEY": operator_key,
        "FATHOM_GATEWAY_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/gateway.sqlite",
        "FATHOM_GATEWAY_LEDGER_ANSWERS": str(folder / "answers"),
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}",
        "OTEL_EXPORTER_OTLP_INSECURE": "true",
    }
    return ServiceProcess(
        "gateway",
        "llm_gateway",
        environment=environment_of("gateway", os.environ, settings),
        address_file=address_file,
        log=folder / "gateway.log",
    )
