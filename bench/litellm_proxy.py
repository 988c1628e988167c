"""LiteLLM's proxy as a process on the core that the gateway has: as its documentation starts it, or
with what it has of the gateway's duties. It lives in a virtual environment of its own in the user's
cache; nothing of fathom depends on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench import gateway_load
from bench.gateway_http import HttpEndpoint
from bench.gateway_stack import Collector, GatewayStack, endpoint_of, on_core

VERSION = "1.106.2"
_REQUIREMENTS = (
    f"litellm[proxy]=={VERSION}",
    "opentelemetry-sdk==1.45.2",
    "opentelemetry-exporter-otlp==1.45.2",
)
_PATH = "/chat/completions"
_AUTH = "litellm_auth"
_START_S = 120.0
_POLL_S = 0.05
_TOO_MANY, _UNAUTHORIZED = 429, 401


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    endpoint: HttpEndpoint
    """The way to it."""
    address: str
    """Where it listens."""
    pid: int
    """Its process."""
    start_s: float
    """How long it took to serve."""
    keys: Keys
    """What it admits."""
    collector: Collector
    """Where its traces go."""


@dataclass(frozen=True)
class Keys:
    """API keys, which are new with each proxy."""

    plenty: str = field(default_factory=lambda: _key())
    """Calls as often as it likes. The bare proxy has no other."""
    limited: str = field(default_factory=lambda: _key())
    """Calls once a minute."""
    operator: str = field(default_factory=lambda: _key())
    """May read budgets."""


def prepared() -> Path:
    """Return the Python of the proxy's environment, which is made where it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "fathom" / "bench-peers" / f"litellm-{VERSION}"
    python, done = folder / "bin" / "python", folder / "installed"
    wanted = "\n".join(_REQUIREMENTS)
    if not done.exists() or done.read_text() != wanted:
        print(f"installing {', '.join(_REQUIREMENTS)} into {folder} ...", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *_REQUIREMENTS], check=True)
        done.write_text(wanted)
    return python


@contextlib.asynccontextmanager
async def litellm_proxy(
    python: Path, stack: GatewayStack, *, has_duties: bool
) -> AsyncIterator[Proxy]:
    """Run the proxy inside the block."""
    async with contextlib.AsyncExitStack() as around:
        name = around.enter_context(tempfile.TemporaryDirectory(prefix="fathom-bench-"))
        collector = await around.enter_async_context(Collector())
        folder, keys, port = Path(name), Keys(), _free_port()
        config = folder / "config.yaml"
        document = _with_duties(stack, keys) if has_duties else _bare(stack, keys)
        config.write_text(json.dumps(document))  # JSON is YAML
        shutil.copy(Path(__file__).with_name(f"{_AUTH}.py"), folder)
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": name,
            "LITELLM_LOG": "ERROR",
            **(_duties_environment(collector, keys) if has_duties else {}),
        }
        started = time.perf_counter()
        with on_core(stack.core), (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", str(python.with_name("litellm"))),
                *("--config", str(config), "--host", "127.0.0.1", "--port", str(port)),
                *("--num_workers", "1", "--telemetry", "False"),
                env=environment,
                stdout=log,
                stderr=log,
                cwd=name,
                start_new_session=True,
            )
        address = f"127.0.0.1:{port}"
        endpoint = endpoint_of(address, path=_PATH, key=keys.plenty)
        try:
            await _until_it_answers(endpoint, process, folder / "log")
            start_s = time.perf_counter() - started
            yield Proxy(endpoint, address, process.pid, start_s, keys, collector)
        finally:
            await endpoint.close()
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def check_duties(proxy: Proxy, stack: GatewayStack) -> None:
    """Raise RuntimeError unless a proxy that has been asked for a while refuses a foreign key and
    one over its limit, counts spend against its budget, and has sent traces.
    """
    async with aiohttp.ClientSession(f"http://{proxy.address}") as session:
        foreign = await _status(session, stack, _key())
        limited = [await _status(session, stack, proxy.keys.limited) for _ in range(3)]
        async with session.get("/provider/budgets", headers=_bearer(proxy.keys.operator)) as read:
            spent = (await read.json())["providers"]["openai"]["spend"]
    if foreign != _UNAUTHORIZED or _TOO_MANY not in limited:
        raise RuntimeError(f"the proxy admits what it should not: {foreign}, {limited}")
    if not spent:
        raise RuntimeError("the proxy counted no spend")
    if not proxy.collector.exports:
        raise RuntimeError("the proxy sent no trace")


def _bare(stack: GatewayStack, keys: Keys) -> dict[str, Any]:
    """Return what its quick start has: models and a master key."""
    models = [
        {"model_name": name, "litellm_params": _upstream(stack, name)} for name in stack.models
    ]
    return {"model_list": models, "general_settings": {"master_key": keys.plenty}}


def _with_duties(stack: GatewayStack, keys: Keys) -> dict[str, Any]:
    """Return the settings that its documentation has for the gateway's duties. Virtual keys, spend
    logs and budgets of keys need its database, whose engine no package carries: its nearest is keys
    with limits, a budget of the provider, both in memory, and no ledger.
    """
    models = []
    for name in stack.models:
        params = {
            **_upstream(stack, name),
            # Custom pricing: "input_cost_per_token", "output_cost_per_token". The gateway's prices.
            "input_cost_per_token": 1e-6,
            "output_cost_per_token": 2e-6,
        }
        models.append({"model_name": name, "litellm_params": params})
    return {
        "model_list": models,
        "router_settings": {
            # Load balancing: "simple-shuffle (recommended)"; others are "bad for perf".
            "routing_strategy": "simple-shuffle",
            # Budget routing: "$100/day for OpenAI".
            "provider_budget_config": {"openai": {"budget_limit": 1e9, "time_period": "1d"}},
        },
        "litellm_settings": {
            # OpenTelemetry: 'callbacks: ["otel"]'; prompts stay out of spans, as they do here.
            "callbacks": ["otel"],
            "turn_off_message_logging": True,
        },
        # Custom auth: "Key / user / team rate limits", set on the returned object.
        "general_settings": {
            "master_key": keys.operator,
            "custom_auth": f"{_AUTH}.user_api_key_auth",
        },
    }


def _duties_environment(collector: Collector, keys: Keys) -> dict[str, str]:
    return {
        # Production: 'LITELLM_MODE="PRODUCTION"'.
        "LITELLM_MODE": "PRODUCTION",
        # OpenTelemetry, "Log to OTEL GRPC Collector".
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "BENCH_KEY": keys.plenty,
        "BENCH_LIMITED_KEY": keys.limited,
        "BENCH_OPERATOR_KEY": keys.operator,
    }


def _upstream(stack: GatewayStack, name: str) -> dict[str, Any]:
    return {
        "model": f"openai/{name}",
        "api_base": f"http://{stack.model}/v1",
        "api_key": "none",
    }


async def _status(session: aiohttp.ClientSession, stack: GatewayStack, key: str) -> int:
    body = {
        "model": stack.models[0],
        "messages": [{"role": "user", "content": gateway_load.PROMPT}],
    }
    async with session.post(_PATH, json=body, headers=_bearer(key)) as answer:
        return answer.status


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


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def _key() -> str:
    return f"sk-{secrets.token_hex(16)}"


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
