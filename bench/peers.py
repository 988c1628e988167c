"""LiteLLM's proxy beside the gateway: the same questions, the same machine, the same run.

`python -m bench.peers`. The proxy has a virtual environment of its own in the user's cache, made
with the first run, and nothing of fathom depends on it. It runs as its documentation starts it:
one worker, a master key, no database, so that it does less than the gateway does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench import gateway_load
from bench.gateway_http import HttpEndpoint
from bench.gateway_stack import GatewayStack, endpoint_of, gateway_stack, on_core
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
_REQUIREMENT = "litellm[proxy]==1.106.2"
_START_S = 120.0
_POLL_S = 0.05
_MB = 1_000_000
_GOALS = {
    "litellm_start_s": Goal(4, "s"),
    "litellm_added_p50_ms": Goal(3, "ms"),
    "litellm_added_p99_ms": Goal(10, "ms"),
    "litellm_rps_core_16": Goal(600, "1/s", is_floor=True),
    "litellm_cpu_ms_50_messages": Goal(3, "ms"),
    "litellm_stream_added_ttft_p50_ms": Goal(10, "ms"),
    "litellm_rss_mb": Goal(150, "MB"),
    "added_latency_times_lower": Goal(8, "times", is_floor=True),
    "throughput_times_higher": Goal(10, "times", is_floor=True),
}
"""Of the peer's figures, what the gateway is held to; then how much better it is to be."""


async def measure() -> AsyncIterator[Measurement]:
    """Yield the peer's figures, then how the gateway compares."""
    python = await asyncio.to_thread(_prepared)
    async with gateway_stack() as stack:
        async for name, samples in _figures(python, stack):
            yield Measurement.of(NAME, name, samples, _GOALS[name])


async def _figures(python: Path, stack: GatewayStack) -> AsyncIterator[Figure]:
    """Yield what `bench/gateway.py` measures, of the peer, whose cache is off by default."""
    starts_s = []
    for _ in range(SAMPLES_MIN - 1):
        async with _litellm(python, stack) as peer:
            starts_s.append(peer.start_s)
    async with _litellm(python, stack) as peer:
        yield "litellm_start_s", [*starts_s, peer.start_s]
        sizes = [_megabytes(peer)]
        ours, theirs = _Load(), _Load()
        for _ in range(gateway_load.ROUNDS):
            # By turns, so that what else the machine does falls on both.
            await ours.add_round(stack.gateway, stack.floor)
            await theirs.add_round(peer.endpoint, stack.floor)
            sizes.append(_megabytes(peer))
        yield "litellm_added_p50_ms", theirs.added_p50_ms
        yield "litellm_added_p99_ms", theirs.added_p99_ms
        yield "litellm_rps_core_16", theirs.calls_a_second
        cpu_ms = await gateway_load.cpu_ms_50_messages(peer.endpoint, peer.pid)
        sizes.append(_megabytes(peer))
        yield "litellm_cpu_ms_50_messages", cpu_ms
        ttft_ms = await gateway_load.stream_added_ttft_ms(peer.endpoint, stack.floor)
        sizes.append(_megabytes(peer))
        yield "litellm_stream_added_ttft_p50_ms", ttft_ms
        yield "litellm_rss_mb", sizes
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


@dataclass(frozen=True)
class _Peer:
    """A running proxy."""

    endpoint: HttpEndpoint
    """The way to it."""
    pid: int
    """Its process."""
    start_s: float
    """How long it took to serve."""


def _megabytes(peer: _Peer) -> float:
    return gateway_load.resident_bytes(peer.pid) / _MB


def _prepared() -> Path:
    """Return the Python of the peer's environment, which is made where it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "fathom" / "bench-peers" / _REQUIREMENT.replace("[proxy]==", "-")
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        print(f"installing {_REQUIREMENT} into {folder} ...", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", _REQUIREMENT]
        subprocess.run(command, check=True)
        done.touch()
    return python


@contextlib.asynccontextmanager
async def _litellm(python: Path, stack: GatewayStack) -> AsyncIterator[_Peer]:
    """Run the proxy inside the block, on the core that the gateway had."""
    with tempfile.TemporaryDirectory(prefix="fathom-bench-") as name:
        folder, key = Path(name), f"sk-{secrets.token_hex(16)}"
        config = folder / "config.yaml"
        config.write_text(_config(stack, key))
        port = _free_port()
        started = time.perf_counter()
        with on_core(stack.core), (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", str(python.with_name("litellm"))),
                *("--config", str(config), "--host", "127.0.0.1", "--port", str(port)),
                *("--num_workers", "1", "--telemetry", "False"),
                env={"PATH": os.environ.get("PATH", ""), "HOME": name, "LITELLM_LOG": "ERROR"},
                stdout=log,
                stderr=log,
                cwd=name,
                start_new_session=True,
            )
        endpoint = endpoint_of(f"127.0.0.1:{port}", path="/chat/completions", key=key)
        try:
            await _until_it_answers(endpoint, process, folder / "log")
            yield _Peer(endpoint, process.pid, time.perf_counter() - started)
        finally:
            await endpoint.close()
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _config(stack: GatewayStack, key: str) -> str:
    models = "".join(
        f"  - model_name: {name}\n    litellm_params:\n      model: openai/{name}\n"
        f"      api_base: http://{stack.model}/v1\n      api_key: none\n"
        for name in stack.models
    )
    return f"model_list:\n{models}general_settings:\n  master_key: {key}\n"


async def _until_it_answers(
    endpoint: HttpEndpoint, process: asyncio.subprocess.Process, log: Path
) -> None:
    async with asyncio.timeout(_START_S):
        while True:
            if process.returncode is not None:
                raise RuntimeError(f"the proxy ended: {log.read_text()[-2000:]}")
            with contextlib.suppress(OSError, RuntimeError, asyncio.IncompleteReadError):
                await endpoint.ask([gateway_load.PROMPT])
                return
            await asyncio.sleep(_POLL_S)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


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
