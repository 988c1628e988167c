"""API keys: which caller is whose, by digests in a file that is read again when it changes.

Without such a file every caller is the tenant `default` and its own operator: meant for one
person's machine. Keys themselves are stored nowhere.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
import re
import time
import tomllib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc

from common.config import ConfigError
from common.errors import UnauthenticatedError
from common.toml_table import Table
from orchestrator.tenants import Caller, set_caller

METADATA = "authorization"
"""The gRPC metadata key that carries an API key, as `Bearer {key}`."""
RUN_TOKEN_METHODS = frozenset(
    {
        "/fathom.orchestrator.v1.OrchestratorService/RunChild",
        "/fathom.orchestrator.v1.HostToolService/CallHostTool",
    }
)
"""Called by the sandbox service, on behalf of a run, with its token in the place of a key."""
_SCHEME = "Bearer "
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NOBODY_ELSE = Caller(is_operator=True)
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Entry:
    caller: Caller
    expires_at: float | None
    """Unix time, seconds."""


class ApiKeys:
    """The keys of all callers."""

    def __init__(self, file: Path | None) -> None:
        """Read the keys; None tells callers not apart. Raises ConfigError."""
        self._file = file
        self._entries: Mapping[str, _Entry] = {}
        self._content: bytes | None = None
        if file is not None:
            self._read(file)

    @property
    def tells_apart(self) -> bool:
        """Whether callers are told apart."""
        return self._file is not None

    def caller(self, metadata: Mapping[str, Any]) -> Caller:
        """Return whose key a call brings; raises UnauthenticatedError."""
        if self._file is None:
            return _NOBODY_ELSE
        value = metadata.get(METADATA, "")
        if not value:
            raise UnauthenticatedError("missing", f"the metadata {METADATA} is needed")
        if not isinstance(value, str) or not value.startswith(_SCHEME):
            raise UnauthenticatedError(
                "malformed", f"{METADATA} must be `{_SCHEME}` and an API key"
            )
        key = value.removeprefix(_SCHEME).strip()
        entry = self._entries.get(hashlib.sha256(key.encode()).hexdigest())
        if entry is None:
            raise UnauthenticatedError("foreign", "the API key is not known")
        if entry.expires_at is not None and entry.expires_at <= time.time():
            raise UnauthenticatedError("expired", "the API key has expired")
        return entry.caller

    def admit(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Note whose call it is; raises UnauthenticatedError."""
        set_caller(self.caller(dict(context.invocation_metadata() or ())))

    async def watch(self, check_s: float) -> None:
        """Read the file again whenever it has changed, for ever. A file that cannot be used is
        told in the log, and the keys stay as they were."""
        if self._file is None:
            return
        while True:
            await asyncio.sleep(check_s)
            try:
                if await asyncio.to_thread(self._read, self._file):
                    _log.info("the API keys were read again", extra={"keys": len(self._entries)})
            except ConfigError as error:
                _log.error("the API keys stay as they were: %s", error)

    def _read(self, file: Path) -> bool:
        """Take the file's keys over; return whether it has changed."""
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read") from error
        if content == self._content:
            return False
        self._entries = _parse(str(file), content)
        self._content = content
        return True


def _parse(where: str, content: bytes) -> dict[str, _Entry]:
    """Return the entries by the digests of their keys; raises ConfigError."""
    try:
        root = Table(where, tomllib.loads(content.decode()))
    except ValueError as error:
        raise ConfigError(f"{where}: is no TOML: {error}") from error
    entries: dict[str, _Entry] = {}
    for name, table in root.tables("keys").items():
        if not _NAME.fullmatch(name):
            table.fail("", "a key's name has at most 64 letters, digits, `-`, `_` and `.`")
        digest = table.text("sha256")
        if not _DIGEST.fullmatch(digest):
            table.fail("sha256", "must be the SHA-256 of the key, 64 lower-case hexadecimal digits")
        if digest in entries:
            table.fail("sha256", "is that of another key; each caller needs its own")
        entries[digest] = _entry(name, table)
        table.end()
    root.end()
    return entries


def _entry(name: str, table: Table) -> _Entry:
    tenant = table.text("tenant")
    if not _NAME.fullmatch(tenant):
        table.fail("tenant", "has at most 64 letters, digits, `-`, `_` and `.`")
    expires = table.pop("expires", None)
    if expires is not None and (not isinstance(expires, datetime) or expires.tzinfo is None):
        table.fail("expires", "must be a time with an offset, such as 2027-01-01T00:00:00Z")
    caller = Caller(tenant=tenant, key=name, is_operator=table.flag("operator", False))
    return _Entry(caller, None if expires is None else expires.timestamp())
