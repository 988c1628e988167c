"""The whole of fathom as real processes, each of which can be killed and comes back: a database,
orchestrators, gateways, a sandbox service with its workers. The scripted model stays, and so does
the operator's service that runs call as a tool.
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

from tests.chaos.models import ROOT_MODEL, SUB_MODEL, Models
from tests.chaos.orders import Orders, write_profile
from tests.support.orchestrator import serve_on_address
from tests.support.postgres import PostgresServer
from tests.support.s3 import S3Server
from tests.support.standing_address import StandingAddress
from tests.support.valkey import ValkeyServer

_MODEL_MS = 150.0
LEASE_S = 3.0
"""Of gateways and orchestrators."""
_CONNECTIONS_MAX = 120
_STARTS_MAX = 4
_OBJECTS = "objects"
_SCRATCH = "scratch"
_UPLOAD_TTL_S = 20
"""After which an upload is dropped that its client has given up."""
_LAZY_BYTES_MIN = 1 << 20
"""Contexts above it come by reference."""
_MODULES = {
    "gateway": "llm_gateway",
    "sandbox": "sandbox_service",
    "orchestrator": "orchestrator",
}
_PASSED = ("PATH", "HOME", "XDG_CACHE_HOME", "FATHOM_SANDBOX_GUEST_CACHE")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """What the services keep their state in."""

    database: str = "postgresql"
    """`postgresql`, with two orchestrators and two gateways, or `sqlite`, with one of each."""
    has_valkey: bool = False
    """Whether accounts are in Valkey, and not in the database."""
    has_s3: bool = False
    """Whether objects are in an S3-compatible server, and not in a folder."""
    concurrent: int = 50
    """Runs that can be driven at a time."""


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
    servers: dict[str, PostgresServer | ValkeyServer | S3Server]
    """The servers that they keep their state in, by name; they can be killed too."""
    models: Models
    """What the scripted model counts."""
    orders: Orders
    """What the operator's service counts."""
    orchestrator_url: str
    """The orchestrators' database, as SQLAlchemy has it."""
    gateway_url: str
    """The gateways'."""
    accounts: str
    """Where the gateways keep accounts, as they are told."""
    folder: Path
    """For all that they keep in files."""
    doors: dict[str, StandingAddress]
    """Where each kind of service is reached, whatever is killed."""

    @property
    def objects(self) -> Path:
        """The folder of objects; empty where they are elsewhere."""
        return self.folder / _OBJECTS

    @property
    def scratch(self) -> Path:
        """The services' folder for temporary files."""
        return self.folder / _SCRATCH

    def of_kind(self, kind: str) -> list[Service]:
        """Return the services of a kind."""
        return [service for service in self.services if service.kind == kind]

    async def stop(self) -> None:
        """End every service well."""
        for service in self.services:
            if service.process is not None:
                await service.process.stop()


@contextlib.asynccontextmanager
async def open_place(folder: Path, options: PlaceOptions) -> AsyncIterator[Place]:
    """Run everything inside the block."""
    models, orders = Models(), Orders()
    async with contextlib.AsyncExitStack() as stack:
        provider = ScriptedModel(policies=models.policies, latency_ms=_MODEL_MS, drain_s=0.1)
        await stack.enter_async_context(provider)
        endpoint = await stack.enter_async_context(serve_on_address(orders))
        write_profile(folder / "profiles", endpoint)
        doors = {
            kind: await stack.enter_async_context(StandingAddress())
            for kind in ("orchestrator", "sandbox", "gateway")
        }
        servers: dict[str, PostgresServer | ValkeyServer | S3Server] = {}
        if options.database == "postgresql":
            postgres = stack.enter_context(PostgresServer(connections_max=_CONNECTIONS_MAX))
            servers["postgres"] = postgres
            urls = [postgres.new_database(), postgres.new_database()]
        else:
            urls = [f"sqlite+aiosqlite:///{folder}/{name}.sqlite" for name in ("runs", "ledger")]
        accounts = "database"
        if options.has_valkey:
            valkey = stack.enter_context(ValkeyServer(is_durable=True))
            servers["valkey"] = valkey
            accounts = valkey.new_database()
        (folder / _OBJECTS).mkdir()
        (folder / _SCRATCH).mkdir()
        store: dict[str, object] = {"object_store": folder / _OBJECTS}
        if options.has_s3:
            s3 = await asyncio.to_thread(stack.enter_context, S3Server())
            servers["s3"] = s3
            store = {"object_store": s3.new_place(), "object_store_endpoint": s3.endpoint}
            store["object_store_credentials"] = s3.credentials
        config = _models_file(folder / "models.toml", provider.base_url)
        environments = _environments(
            folder, urls, doors, {"config": config, "accounts": accounts}, store, options.concurrent
        )
        services = [
            Service(kind, f"{kind}-{number}", doors[kind], folder, environment)
            for kind, environment in environments.items()
            for number in range(1 if kind == "sandbox" or options.database == "sqlite" else 2)
        ]
        place = Place(services, servers, models, orders, urls[0], urls[1], accounts, folder, doors)
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
    folder: Path,
    urls: list[str],
    doors: dict[str, StandingAddress],
    gateway: dict[str, object],
    store: dict[str, object],
    concurrent: int,
) -> dict[str, dict[str, str]]:
    """Return what each kind of service is told."""
    key = secrets.token_hex(32)
    passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
    passed |= {"PYTHONPATH": os.pathsep.join(sys.path), "GRPC_ENABLE_FORK_SUPPORT": "0"}
    passed["TMPDIR"] = str(folder / _SCRATCH)
    settings: dict[str, dict[str, object]] = {
        "gateway": {
            "run_token_key": key,
            "database_url": urls[1],
            "ledger_answers": folder / "answers",
            "ledger_lease_s": LEASE_S,
        }
        | gateway,
        "sandbox": {
            "gateway_address": doors["gateway"].address,
            "orchestrator_address": doors["orchestrator"].address,
            "object_cache": folder / "cache",
            "workers": 2,
            "sessions_max": 4 * concurrent,
            "lazy_context_bytes_min": _LAZY_BYTES_MIN,
            "require_jail": "false",
        }
        | store,
        "orchestrator": {
            "gateway_address": doors["gateway"].address,
            "sandbox_address": doors["sandbox"].address,
            "database_url": urls[0],
            "profiles_folder": folder / "profiles",
            "run_token_key": key,
            "executor_lease_s": LEASE_S,
            "runs_running_max": concurrent,
            "runs_running_max_per_tenant": 2 * concurrent,
            "checkpoint_after_s": 0.5,
            "upload_ttl_s": _UPLOAD_TTL_S,
            "context_sweep_interval_s": 2,
        }
        | store,
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
