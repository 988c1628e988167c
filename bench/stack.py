"""The services and the scripted model as real processes, set up for benchmarks.

Each scenario is a root model of its own: its replies are written down beforehand, so that only
the product's own time is measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from fathom_client.home import Home
from fathom_client.local_stack import StackOptions, local_stack
from fathom_client.model_settings import ModelSettings
from fathom_client.processes import ServiceProcess

from bench.blobs import Blobs

SLOW_SUB = "slow-sub"
SLOW_SUB_MS = 100
FAST_SUB = "fast-sub"
_KEY_VARIABLE = "FATHOM_BENCH_KEY"


@dataclasses.dataclass(frozen=True)
class BenchStack:
    """Running services."""

    orchestrator: str
    """Address of the orchestrator."""
    sandbox: str
    """Address of the sandbox service."""
    sandbox_pid: int
    """Process id of the sandbox service; its workers are its children."""
    blobs: Blobs
    """The object store that all of them share."""
    orchestrator_pid: int
    """Process id of the orchestrator."""
    gateway_pid: int
    """Process id of the gateway."""


@contextlib.asynccontextmanager
async def bench_stack(
    scenarios: Mapping[str, Sequence[str]],
    *,
    model_ms: Mapping[str, float] = MappingProxyType({}),
    settings: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[BenchStack]:
    """Run everything inside the block. `scenarios` maps root models to their replies in order,
    `model_ms` those that do not answer at once to the time that they take. `settings` are further
    environment variables of the services.

    A run asks scenario `x` with `root_tier="models/x"`; sub-calls go to FAST_SUB (0 ms) or
    SLOW_SUB (100 ms).
    """
    with tempfile.TemporaryDirectory(prefix="fathom-bench-") as folder:
        home = Home(Path(folder) / "home")
        home.create()
        blobs = Blobs(home.objects)
        model = _scripted_model(home, scenarios, {SLOW_SUB: SLOW_SUB_MS, **model_ms})
        await model.start()
        try:
            models = _settings(await model.wait_ready(), [*scenarios, FAST_SUB, SLOW_SUB])
            environ = os.environ | dict(settings)
            options = StackOptions(home=home, environ=environ, models=models)
            async with local_stack(options) as stack:
                pids = {process.name: process.pid for process in stack.processes}
                yield BenchStack(
                    blobs=blobs,
                    orchestrator=stack.address,
                    sandbox=(home.logs / "sandbox.address").read_text().strip(),
                    sandbox_pid=pids["sandbox"],
                    orchestrator_pid=pids["orchestrator"],
                    gateway_pid=pids["gateway"],
                )
        finally:
            await model.stop()


def _scripted_model(
    home: Home, scenarios: Mapping[str, Sequence[str]], model_ms: Mapping[str, float]
) -> ServiceProcess:
    scripts = {name: {"mode": "turn", "replies": list(r)} for name, r in scenarios.items()}
    subs = {name: {"mode": "cycle", "replies": ["yes"]} for name in (FAST_SUB, SLOW_SUB)}
    script = home.path / "script.json"
    script.write_text(json.dumps({**scripts, **subs}))
    address_file = home.logs / "scripted-model.address"
    arguments = ["--script", str(script), "--address-file", str(address_file)]
    for model, latency_ms in model_ms.items():
        arguments += ["--model-latency-ms", f"{model}={latency_ms}"]
    return ServiceProcess(
        "scripted model",
        "fathom_demo.scripted_model",
        arguments=tuple(arguments),
        environment={"PATH": os.environ.get("PATH", "")},
        address_file=address_file,
        log=home.logs / "scripted-model.log",
    )


def _settings(address: str, models: Sequence[str]) -> ModelSettings:
    lines = [
        "[providers.bench]",
        f'base_url = "http://{address}/v1"',
        f'api_key_env = "{_KEY_VARIABLE}"',
    ]
    for model in models:
        lines += ["", "[[deployments]]", f'name = "{model}"', 'provider = "bench"']
        lines += [f'model = "{model}"', 'price = "free"']
    lines += ["", "[tiers]", f'root = ["{models[0]}"]', f'sub = ["{FAST_SUB}"]', ""]
    return ModelSettings("\n".join(lines), {_KEY_VARIABLE: "none-needed"}, "scripted")
