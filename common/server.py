"""A gRPC server as every service has it: limits, keepalive, health, reflection, graceful drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import uvloop
from grpc_reflection.v1alpha import reflection

from common.addresses import write_address
from common.allocator import share_arenas
from common.config import ConfigError, ServerConfig, describe, load, split_address
from common.health_servicer import SERVICE as HEALTH
from common.health_servicer import Health
from common.interceptors import Admit, ErrorInterceptor, ObservationInterceptor
from common.telemetry import Telemetry, log_to_stderr
from common.tls import server_credentials

MESSAGE_BYTES_MAX = 4 << 20
"""What a message may have unless a service says otherwise."""
_CONNECTIONS_MAX = 100_000
_UMASK = 0o027
"""Contexts and checkpoints are for the services that share them, which have a group in common."""
_log = logging.getLogger(__name__)
_YOUNG_MAX = 10_000
"""Objects after which garbage is looked for among the newest: a call makes a thousand, which go by
themselves, and Python's own 700 took a tenth of it."""
_LEAVING_S_MAX = 5.0
"""How long calls that were cut off may take for what they still do."""
C = TypeVar("C", bound=ServerConfig)


def _admit_all(_method: str, _context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Let every call in: what it may do is the servicer's business."""


class Server:
    """A server that is SERVING inside its `async with` block and drains when the block ends."""

    def __init__(
        self,
        name: str,
        config: ServerConfig,
        *,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        request_bytes_max: Mapping[str, int] | None = None,
        admit: Admit = _admit_all,
        waiting: Collection[str] = (),
    ) -> None:
        """`message_bytes_max` holds for every message; `request_bytes_max` says which methods, by
        their paths, take larger requests, and `waiting` which wait for other work: these have as
        many places again as all others."""
        larger = request_bytes_max or {}
        of_any = max(message_bytes_max, *larger.values(), 0)
        self._name = name
        self._config = config
        self._services: list[str] = []
        self._admit = admit
        self._admits: dict[str, Admit] = {}
        self._drain_callbacks: list[Callable[[], None]] = []
        self._health = Health()
        self._stop = asyncio.Event()
        self.address = ""
        """Where it listens, once entered."""
        self._calls = ErrorInterceptor(
            self._let_in,
            config.concurrent_rpcs_max,
            request_bytes_max=lambda method: larger.get(method, message_bytes_max),
            waiting=waiting,
        )
        # gRPC's own refusal says neither why nor when to come back, and calls that are more than a
        # connection may have wait without a word: both are behind ours.
        calls_max = (3 if waiting else 2) * config.concurrent_rpcs_max
        self.grpc = grpc.aio.server(
            interceptors=[ObservationInterceptor(), self._calls],
            maximum_concurrent_rpcs=calls_max,
            options=_options(config, of_any, calls_max),
        )
        """The server to register servicers with, before entering."""

    def serves(self, *full_names: str, admit: Admit | None = None) -> None:
        """Name the registered services, for health and reflection. `admit` is told of their calls
        too, before a request is read."""
        self._services.extend(full_names)
        if admit is not None:
            self._admits |= dict.fromkeys(full_names, admit)

    def on_drain(self, callback: Callable[[], None]) -> None:
        """Call `callback` when draining begins, to end streams that would last."""
        self._drain_callbacks.append(callback)

    async def __aenter__(self) -> Self:
        self._health.register(self.grpc)
        if self._config.reflection:
            names = (*self._services, HEALTH, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self.grpc)
        host, _ = split_address(self._config.listen)
        try:
            port = self._add_port()
        except RuntimeError:
            raise ConfigError(f"cannot listen on {self._config.listen}; is it in use?") from None
        await self.grpc.start()
        self.address = f"{host}:{port}"
        self._health.begin(self._services)
        if self._config.address_file is not None:
            write_address(self._config.address_file, self.address)
        _log.info("%s is serving on %s", self._name, self.address)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._health.end()
        await asyncio.sleep(self._config.drain_notice_s)
        for callback in self._drain_callbacks:
            callback()
        await self.grpc.stop(self._config.drain_s)
        try:
            await asyncio.wait_for(self._calls.all_left(), _LEAVING_S_MAX)
        except TimeoutError:
            _log.warning("%s stops over calls that do not come to their end", self._name)
        _log.info("%s has stopped", self._name)

    async def wait_for_signal(self) -> None:
        """Return at SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        # What is there by now stays as long as the process does: looking through it again and
        # again would hold calls up for milliseconds.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG_MAX, *gc.get_threshold()[1:])
        await self._stop.wait()

    def _let_in(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._admit(method, context)
        admit = self._admits.get(method[1 : method.rindex("/")])
        if admit is not None:
            admit(method, context)

    def _add_port(self) -> int:
        credentials = server_credentials(self._config)
        if credentials is None:
            return self.grpc.add_insecure_port(self._config.listen)
        return self.grpc.add_secure_port(self._config.listen, credentials)


def _options(config: ServerConfig, message_bytes_max: int, calls_max: int) -> list[tuple[str, int]]:
    options = [
        ("grpc.so_reuseport", 0),  # else a second server binds the same port without an error
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.max_send_message_length", message_bytes_max),
        ("grpc.max_concurrent_streams", calls_max),
        # Streams of large messages cost a third of what they do in frames of 16 KiB.
        ("grpc.http2.max_frame_size", 1 << 20),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.ping_timeout_ms", 20_000),  # as what it is called suggests the one above to be
        ("grpc.keepalive_permit_without_calls", 1),
        # Clients ping every 30 s (common.channel); the default calls that too many.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # Whoever only connects must neither stay nor take the files that work needs.
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", 900_000),
        ("grpc.max_allowed_incoming_connections", _connections_max()),
    ]
    if config.connection_age_max_s:
        age_ms = int(config.connection_age_max_s * 1000)
        options.append(("grpc.max_connection_age_ms", age_ms))
        options.append(("grpc.max_connection_age_grace_ms", int(config.drain_s * 1000)))
    return options


def _connections_max() -> int:
    """Return half of the files that the process may open."""
    files_max, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _CONNECTIONS_MAX if files_max < 0 else min(files_max // 2, _CONNECTIONS_MAX)


def run_service(
    name: str, cls: type[C], prefix: str, serve: Callable[[C], Awaitable[None]]
) -> None:
    """Run a service as this process's main: configuration, logs, telemetry, event loop.

    `serve` runs until the service is to end. Exits with 2 and one line where the configuration
    is not valid.
    """
    os.umask(_UMASK)
    share_arenas()
    problems: list[str] = []
    try:
        config = load(cls, os.environ, prefix=prefix)
        log_to_stderr(config.log_level)
        _log.info("%s starts", name, extra={"config": describe(config)})
        with Telemetry(name, config, os.environ):
            uvloop.run(_as_coroutine(serve(config)))
    except* ConfigError as group:  # also where a task group has wrapped it
        problems += map(str, _leaves(group))
    if problems:
        print(f"{name}: {problems[0]}", file=sys.stderr)
        raise SystemExit(2)


def _leaves(group: BaseExceptionGroup[ConfigError]) -> Iterator[ConfigError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _as_coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable
