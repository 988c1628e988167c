"""The three services on this machine, as processes of their own, with SQLite and a local store.

For one user and loopback only. What a cluster does instead is in `deploy/`; no service's code is
imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fathom_client.errors import FathomError
from fathom_client.home import Home, Running
from fathom_client.model_settings import ModelSettings, scripted_settings
from fathom_client.processes import ServiceProcess

_LOOPBACK = "127.0.0.1:0"
_NOWHERE = "127.0.0.1:9"
"""Nothing listens there: for an orchestrator that only looks things up."""
_RESTARTS_MAX, _RESTARTS_WITHIN_S = 5, 60.0
"""More than so many in so short a time, and starting again is of no use."""

_SHARED_VARIABLES = ("PATH", "HOME", "XDG_CACHE_HOME", "TMPDIR", "LANG", "LC_ALL", "TZ")
_NETWORK_VARIABLES = (
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip
_PREFIXES = {
    "gateway": "FATHOM_GATEWAY_",
    "sandbox": "FATHOM_SANDBOX_",
    "orchestrator": "FATHOM_ORCHESTRATOR_",
}


class StackEndedError(FathomError):
    """Services ended by themselves again and again."""


class ListenAddressError(FathomError):
    """The orchestrator cannot listen where it was told to."""


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """How to start the services."""

    home: Home
    """Where they keep their state."""
    environ: Mapping[str, str]
    """The user's environment; each service gets only its own part."""
    models: ModelSettings | None = None
    """The provider; None starts the scripted model server and asks that."""
    listen: str = _LOOPBACK
    """Where the orchestrator listens."""
    shared: bool = False
    """True where other commands may use the services."""
    on_step: Callable[[str], None] = lambda _: None
    """Told what is being started."""


class LocalStack:
    """Running services; made by `local_stack` and `reading_stack`."""

    def __init__(self, address: str, processes: list[ServiceProcess]) -> None:
        """Describe services that run."""
        self.address = address
        """Where the orchestrator listens, `host:port`, or `https://host:port` where it was given a
        certificate."""
        self.processes = processes
        """The processes, in the order of their start."""

    async def keep_up(self, on_restart: Callable[[str], None]) -> None:
        """Start each service that ends by itself again, at its address, and tell of it.

        Runs go on from their logs. Raises StackEndedError where services end again and again, and
        ServiceStartError where one does not come back.
        """
        restarted_at_s: deque[float] = deque(maxlen=_RESTARTS_MAX)
        while True:
            process, ending = await self._first_end()
            ended = f"the {process.name} ended ({ending})"
            are_all_used = len(restarted_at_s) == _RESTARTS_MAX
            if are_all_used and time.monotonic() - restarted_at_s[0] < _RESTARTS_WITHIN_S:
                raise StackEndedError(f"{ended}\n{process.log_tail()}")
            restarted_at_s.append(time.monotonic())
            on_restart(ended)
            await process.start_again()

    async def _first_end(self) -> tuple[ServiceProcess, str]:
        """Return the service that ends first, and how it did."""
        waits = {asyncio.create_task(each.wait_end()): each for each in self.processes}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        task = done.pop()
        return waits[task], task.result()


@contextlib.asynccontextmanager
async def local_stack(options: StackOptions) -> AsyncIterator[LocalStack]:
    """Run all services inside the block.

    The sandbox's Python guest must have been prepared. Raises HomeInUseError or
    ServiceStartError.
    """
    home = options.home
    async with contextlib.AsyncExitStack() as exits:
        exits.enter_context(home.owned())
        starter = _Starter(options, exits)
        models = options.models or await starter.start_scripted_model()
        config = home.path / "gateway.toml"
        _write_private(config, models.config_toml)
        token_key = secrets.token_hex(32)
        gateway = await starter.start_service(
            "gateway",
            "llm_gateway",
            FATHOM_GATEWAY_CONFIG=str(config),
            FATHOM_GATEWAY_RUN_TOKEN_KEY=token_key,
            FATHOM_GATEWAY_DATABASE_URL=home.ledger_url,
            FATHOM_GATEWAY_LEDGER_ANSWERS=str(home.recorded_answers),
            **models.secrets,
        )
        sandbox = await starter.start_service(
            "sandbox",
            "sandbox_service",
            FATHOM_SANDBOX_GATEWAY_ADDRESS=gateway,
            FATHOM_SANDBOX_OBJECT_STORE=str(home.objects),
            FATHOM_SANDBOX_REQUIRE_JAIL=required_jail(options.environ),
            **_way_back(options),
        )
        address = await starter.start_orchestrator(token_key, gateway, sandbox)
        running = Running(
            pid=os.getpid(),
            address=address,
            shared=options.shared,
            scripted=options.models is None,
        )
        exits.enter_context(home.announced(running))
        yield LocalStack(address, starter.processes)


@contextlib.asynccontextmanager
async def reading_stack(options: StackOptions) -> AsyncIterator[LocalStack]:
    """Run an orchestrator alone inside the block, to look runs up; it drives none, and can only end
    those that are cancelled."""
    async with contextlib.AsyncExitStack() as exits:
        exits.enter_context(options.home.owned())
        starter = _Starter(options, exits)
        address = await starter.start_orchestrator(
            secrets.token_hex(32), _NOWHERE, _NOWHERE, FATHOM_ORCHESTRATOR_RUNS_RUNNING_MAX="0"
        )
        yield LocalStack(address, starter.processes)


def check_listen_address(address: str) -> None:
    """Raise ListenAddressError unless one can listen there at present."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ListenAddressError(f"{address!r} is no address of the form HOST:PORT")
    try:
        numbers = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        family, kind, protocol, _, where = numbers[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise ListenAddressError(f"cannot listen on {address}: {error.strerror}") from error


def environment_of(
    service: str, environ: Mapping[str, str], settings: Mapping[str, str]
) -> dict[str, str]:
    """Return the whole environment of one service: what it needs of the user's, and `settings`.

    `service` is `gateway`, `sandbox` or `orchestrator`. A key that the user's environment holds
    is not passed on unless `settings` has it.
    """
    names = [*_SHARED_VARIABLES, *(_NETWORK_VARIABLES if service == "gateway" else ())]
    prefix = _PREFIXES[service]
    passed = {name: environ[name] for name in names if name in environ}
    own = {name: value for name, value in environ.items() if name.startswith((prefix, "OTEL_"))}
    return passed | own | dict(settings)


def required_jail(environ: Mapping[str, str]) -> str:
    """Return whether the sandbox may start only with every wall that workers should have.

    On one's own machine it starts with those that can be raised, and its log says which those
    are, unless the user has decided otherwise.
    """
    return environ.get("FATHOM_SANDBOX_REQUIRE_JAIL", "false")


def has_way_back(environ: Mapping[str, str]) -> bool:
    """Return whether the sandbox can call the orchestrator, as child runs and host tools need.

    One that speaks TLS is not called by who trusts no authority: such calls are tried again until
    the run's time is over, where code that knows of no orchestrator is told so at once.
    """
    is_tls = bool(environ.get("FATHOM_ORCHESTRATOR_TLS_CERTIFICATE_FILE"))
    return not is_tls or bool(environ.get("FATHOM_SANDBOX_TLS_CA_FILE"))


def _way_back(options: StackOptions) -> dict[str, str]:
    if not has_way_back(options.environ):
        return {}
    # Its file is there once the orchestrator is, which starts after the sandbox.
    address_file = options.home.logs / "orchestrator.address"
    return {"FATHOM_SANDBOX_ORCHESTRATOR_ADDRESS_FILE": str(address_file)}


class _Starter:
    """Starts processes one by one, and has each of them ended when the stack ends."""

    def __init__(self, options: StackOptions, exits: contextlib.AsyncExitStack) -> None:
        self._options = options
        self._exits = exits
        self.processes: list[ServiceProcess] = []

    async def start_scripted_model(self) -> ModelSettings:
        logs = self._options.home.logs
        address_file = logs / "scripted-model.address"
        process = ServiceProcess(
            "scripted model",
            "fathom_demo.scripted_model",
            arguments=("--address-file", str(address_file)),
            environment=_minimal(self._options.environ),
            address_file=address_file,
            log=logs / "scripted-model.log",
            listening_at=lambda address: (("--listen", address), {}),
        )
        return scripted_settings(await self._start(process))

    async def start_orchestrator(
        self, token_key: str, gateway: str, sandbox: str, **settings: str
    ) -> str:
        """Start the orchestrator and return its address, as a client names it."""
        home = self._options.home
        address = await self.start_service(
            "orchestrator",
            "orchestrator",
            FATHOM_ORCHESTRATOR_LISTEN=self._options.listen,
            FATHOM_ORCHESTRATOR_GATEWAY_ADDRESS=gateway,
            FATHOM_ORCHESTRATOR_SANDBOX_ADDRESS=sandbox,
            FATHOM_ORCHESTRATOR_DATABASE_URL=home.database_url,
            FATHOM_ORCHESTRATOR_OBJECT_STORE=str(home.objects),
            FATHOM_ORCHESTRATOR_RUN_TOKEN_KEY=token_key,
            **settings,
        )
        is_tls = "FATHOM_ORCHESTRATOR_TLS_CERTIFICATE_FILE" in self._options.environ
        return f"https://{address}" if is_tls else address

    async def start_service(self, name: str, module: str, **settings: str) -> str:
        """Start one service and return its address."""
        prefix, logs = _PREFIXES[name], self._options.home.logs
        address_file = logs / f"{name}.address"
        common = {f"{prefix}LISTEN": _LOOPBACK, f"{prefix}ADDRESS_FILE": str(address_file)}
        host = (common | settings)[f"{prefix}LISTEN"].rpartition(":")[0]
        process = ServiceProcess(
            name,
            module,
            environment=environment_of(name, self._options.environ, common | settings),
            address_file=address_file,
            log=logs / f"{name}.log",
            listening_at=lambda address: (
                (),
                {f"{prefix}LISTEN": f"{host}:{address.rpartition(':')[2]}"},
            ),
        )
        return await self._start(process)

    async def _start(self, process: ServiceProcess) -> str:
        self._options.on_step(process.name)
        # Registered first: a start that is broken off ends what it has started.
        self._exits.push_async_callback(process.stop)
        await process.start()
        self.processes.append(process)
        return await process.wait_ready()


def _minimal(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: environ[name] for name in _SHARED_VARIABLES if name in environ}


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
