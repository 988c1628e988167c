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

from fathom_client.home import Home
from fathom_client.local_stack import StackOptions, local_stack
from fathom_client.model_settings import ModelSettings
from fathom_client.processes import ServiceProcess

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


@contextlib.asynccontextmanager
async def bench_stack(scenarios: Mapping[str, Sequence[str]]) -> AsyncIterator[BenchStack]:
    """Run everything inside the block. `scenarios` maps root models to their replies in order.

    A run asks scenario `x` with `root_tier="models/x"`; sub-calls go to FAST_SUB (0 ms) or
    SLOW_SUB (100 ms).
    """
    with tempfile.TemporaryDirectory(prefix="fathom-bench-") as folder:
        home = Home(Path(folder) / "home")
        home.create()
        model = _scripted_model(home, scenarios)
        await model.start()
        try:
            settings = _settings(await model.wait_ready(), [*scenarios, FAST_SUB, SLOW_SUB])
            options = StackOptions(home=home, environ=os.environ, models=settings)
            async with local_stack(options) as stack:
                sandbox = next(p for p in stack.processes if p.name == "sandbox")
                address = (home.logs / "sandbox.address").read_text().strip()
                yield BenchStack(stack.address, address, sandbox.pid)
        finally:
            await model.stop()


def _scripted_model(home: Home, scenarios: Mapping[str, Sequence[str]]) -> ServiceProcess:
    scripts = {name: {"mode": "turn", "replies": list(r)} for name, r in scenarios.items()}
    subs = {name: {"mode": "cycle", "replies": ["yes"]} for name in (FAST_SUB, SLOW_SUB)}
    script = home.path / "script.json"
    script.write_text(json.dumps({**scripts, **subs}))
    address_file = home.logs / "scripted-model.address"
    arguments = ["--script", str(script), "--address-file", str(address_file)]
    arguments += ["--model-latency-ms", f"{SLOW_SUB}={SLOW_SUB_MS}"]
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
