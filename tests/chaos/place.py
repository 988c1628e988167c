"""The whole of fathom as real processes, each of which can be killed and comes back: a database,
orchestrators, gateways, a sandbox service with its workers, and the scripted model, which stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from fathom_client.processes import ServiceProcess, ServiceStartError
from fathom_demo.scripted_model import ScriptedModel

from tests.chaos.workload import ROOT_MODEL, SUB_MODEL, Models
from tests.support.postgres import PostgresServer
from tests.support.standing_address import StandingAddress

_MODEL_MS = 150.0
_LEASE_S = 2.0
_CONNECTIONS_MAX = 120
_STARTS_MAX = 4
_MODULES = {
    "gateway": "llm_gateway",
    "sandbox": "sandbox_service",
    "orchestrator": "orchestrator",
}
_PASSED = ("PATH", "HOME", "XDG_CACHE_HOME", "FATHOM_SANDBOX_GUEST_CACHE")


@dataclasses.dataclass
class Service:
    """One process under its name, again and again."""

    kind: str
    """`orchestrator`, `sandbox` or `gateway`."""
    name: str
    """Tells it from others of its kind."""
    door: StandingAddress
    """Where it is reached."""
    folder: Path
    """For its logs."""
    environment: dict[str, str]
    """All that it is told."""
    starts: int = 0
    """How often it was started."""
    address: str = ""
    """Where it listens; empty while it does not."""
    process: ServiceProcess | None = None
    """The newest one."""

    @property
    def pid(self) -> int:
        """Of the newest process."""
        assert self.process is not None
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the newest process is there."""
        return Path(f"/proc/{self.pid}").exists()

    async def start(self) -> None:
        """Start it and wait until it serves; again where it ends, as it may without a database."""
        for _ in range(_STARTS_MAX):
            with contextlib.suppress(ServiceStartError):
                await self._start()
                return
        await self._start()

    async def _start(self) -> None:
        self.starts += 1
        address_file = self.folder / f"{self.name}.address"
        variable = f"FATHOM_{self.kind.upper()}_ADDRESS_FILE"
        self.process = ServiceProcess(
            self.name,
            _MODULES[self.kind],
            environment=self.environment | {variable: str(address_file)},
            address_file=address_file,
            log=self.folder / f"{self.name}-{self.starts}.log",
        )
        await self.process.start()
        self.address = await self.process.wait_ready()
        self.door.targets.append(self.address)

    async def kill(self) -> None:
        """End it with SIGKILL."""
        self.door.targets.remove(self.address)
        os.kill(self.pid, signal.SIGKILL)
        assert self.process is not None
        await self.process.wait_end()


@dataclasses.dataclass
class Place:
    """What runs."""

    services: list[Service]
    """All but the database."""
    postgres: PostgresServer | None
    """The database server; None for SQLite."""
    models: Models
    """What the scripted model counts."""
    orchestrator_url: str
    """The orchestrators' database, as SQLAlchemy has it."""
    gateway_url: str
    """The gateways'."""
    doors: dict[str, StandingAddress]
    """Where each kind of service is reached, whatever is killed."""

    def of_kind(self, kind: str) -> list[Service]:
        """Return the services of a kind."""
        return [service for service in self.services if service.kind == kind]

    async def stop(self) -> None:
        """End every service well."""
        for service in self.services:
            if service.process is not None:
                await service.process.stop()


@contextlib.asynccontextmanager
async def open_place(folder: Path, *, database: str, concurrent: int) -> AsyncIterator[Place]:
    """Run everything inside the block: on `postgresql` two orchestrators and two gateways, on
    `sqlite` one of each. `concurrent` runs can be driven at a time."""
    models = Models()
    async with contextlib.AsyncExitStack() as stack:
        provider = ScriptedModel(policies=models.policies, latency_ms=_MODEL_MS, drain_s=0.1)
        await stack.enter_async_context(provider)
        doors = {
            kind: await stack.enter_async_context(StandingAddress())
            for kind in ("orchestrator", "sandbox", "gateway")
        }
        postgres: PostgresServer | None = None
        if database == "postgresql":
            postgres = stack.enter_context(PostgresServer(connections_max=_CONNECTIONS_MAX))
            urls = [postgres.new_database(), postgres.new_database()]
        else:
            urls = [f"sqlite+aiosqlite:///{folder}/{name}.sqlite" for name in ("runs", "ledger")]
        config = _models_file(folder / "models.toml", provider.base_url)
        environments = _environments(folder, urls, doors, config, concurrent)
        (folder / "objects").mkdir()
        services = [
            Service(kind, f"{kind}-{number}", doors[kind], folder, environment)
            for kind, environment in environments.items()
            for number in range(1 if kind == "sandbox" or postgres is None else 2)
        ]
        place = Place(services, postgres, models, urls[0], urls[1], doors)
        stack.push_async_callback(place.stop)
        await asyncio.gather(*(service.start() for service in services))
        yield place


def _models_file(path: Path, base_url: str) -> Path:
    lines = ["[providers.scripted]", f'base_url = "{base_url}"', 'api_key_env = "PROVIDER_KEY"']
    for model in (ROOT_MODEL, SUB_MODEL):
        lines += ["[[deployments]]", f'name = "{model}"', 'provider = "scripted"']
        lines += [f'model = "{model}"', "output_tokens_max = 2000"]
        lines += ["price = { input_usd_per_million = 1, output_usd_per_million = 2 }"]
    lines += ["[tiers]", f'root = ["{ROOT_MODEL}"]', f'sub = ["{SUB_MODEL}"]', ""]
    path.write_text("\n".join(lines))
    return path


def _environments(
    folder: Path, urls: list[str], doors: dict[str, StandingAddress], config: Path, concurrent: int
) -> dict[str, dict[str, str]]:
    """Return what each kind of service is told."""
    key = secrets.token_hex(32)
    passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
    passed |= {"PYTHONPATH": os.pathsep.join(sys.path), "GRPC_ENABLE_FORK_SUPPORT": "0"}
    settings: dict[str, dict[str, object]] = {
        "gateway": {
            "config": config,
            "run_token_key": key,
            "database_url": urls[1],
            "ledger_answers": folder / "answers",
            "ledger_lease_s": _LEASE_S,
        },
        "sandbox": {
            "gateway_address": doors["gateway"].address,
            "orchestrator_address": doors["orchestrator"].address,
            "object_store": folder / "objects",
            "workers": 2,
            "sessions_max": 4 * concurrent,
            "require_jail": "false",
        },
        "orchestrator": {
            "gateway_address": doors["gateway"].address,
            "sandbox_address": doors["sandbox"].address,
            "database_url": urls[0],
            "object_store": folder / "objects",
            "run_token_key": key,
            "executor_lease_s": _LEASE_S,
            "runs_running_max": concurrent,
            "runs_running_max_per_tenant": 2 * concurrent,
            "checkpoint_after_s": 0.5,
        },
    }
    return {
        kind: passed
        | {"PROVIDER_KEY": "none-needed"}
        | {
            f"FATHOM_{kind.upper()}_{name.upper()}": str(value)
            for name, value in ({"listen": "127.0.0.1:0", "drain_s": 1} | values).items()
        }
        for kind, values in settings.items()
    }
