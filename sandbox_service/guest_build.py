"""The prepared guest: files in a cache folder that only we, or root, may write.

Compiled code is native code, so files that others could have touched are refused. Making the
files is `prepare`'s work; this module says where they are and whether they are whole.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.resources
import os
import platform
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sandbox_service.engine import FLAGS
from sandbox_service.profiles import PROFILES

WASM_SHA256 = "879bdb628a1a799dc3a6d1a645fee0f88944bf4cdf5e1628e0e1d2b4b33d28d3"
LIBRARY_SHA256 = "a7b8f7cbd4799ac8c81223cbc47f8cea503adac934a04826778b66e5a5e9b847"
ABI_VERSION = 1
"""Version of the guest's exports and of its one host import."""
PYTHON_VERSION = "3.15.0"
RUNTIME_MODULES = (
    "host",
    "questions",
    "schema_keywords",
    "schemas",
    "typed_queries",
    "sub_calls",
    "matches",
    "lazy_lines",
    "lazy_text",
    "lazy_documents",
    "lazy_json",
    "child_contexts",
    "child_runs",
    "host_tools",
    "queries",
    "citations",
    "answers",
    "explanations",
    "tracebacks",
    "stepwise",
    "event_loop",
    "executors",
    "awaiting",
    "code_check",
    "streams",
    "manual",
    "text_functions",
    "contexts",
    "cells",
    "prelude",
)
"""Our own modules inside the guest, each after those that it imports."""
_SHAPING_MODULES = ("worker/making", "profiles", "worker/surroundings", "worker/wasi")
"""Our modules that have a part in what is in a warm image."""


class GuestNotPreparedError(Exception):
    """A file of the guest is missing, or cannot be trusted."""


@dataclass(frozen=True)
class GuestBuild:
    """One build of the Python guest for this engine and machine."""

    wasm: Path
    """The guest as WebAssembly."""
    compiled: Path
    """The guest as native code."""
    library: Path
    """Zip file with the guest's standard library."""
    warm_images: Mapping[str, Path]
    """Memory of the guest after its preparation, by profile; see image.py."""
    digest: str
    """Names the build; images of sessions belong to one."""
    abi_version: int = ABI_VERSION
    """Version of the guest's exports and imports."""

    @classmethod
    def in_folder(cls, folder: Path) -> GuestBuild:
        """Return where this version's build is, or would be, in a cache folder."""
        engine = f"{engine_version()}|{platform.machine()}|{FLAGS}"
        code = _digest(WASM_SHA256, engine, str(ABI_VERSION))
        package = importlib.resources.files("sandbox_service")
        shaping = [(package / f"{name}.py").read_text("utf-8") for name in _SHAPING_MODULES]
        digest = _digest(code, LIBRARY_SHA256, *runtime_sources().values(), *shaping)
        return cls(
            wasm=folder / f"python-{WASM_SHA256[:16]}.wasm",
            compiled=folder / f"python-{code}.cwasm",
            library=folder / f"library-{LIBRARY_SHA256[:16]}.zip",
            warm_images={name: folder / f"warm-{digest}-{name}.image" for name in PROFILES},
            digest=digest,
        )

    def check(self) -> None:
        """Raise GuestNotPreparedError unless what sessions need is there and ours."""
        check_folder(self.compiled.parent)
        for path in self.files:
            check_file(path)

    @property
    def files(self) -> tuple[Path, ...]:
        """What sessions need, of all that is in the folder."""
        return (self.compiled, self.library, *self.warm_images.values())


def engine_version() -> str:
    """Return the version of the WebAssembly engine."""
    return importlib.metadata.version("wasmtime")


def runtime_sources() -> dict[str, str]:
    """Return the guest's own modules, by name, in the order of their import."""
    folder = importlib.resources.files("sandbox_service") / "guest"
    return {name: (folder / f"{name}.py").read_text("utf-8") for name in RUNTIME_MODULES}


def check_folder(folder: Path) -> None:
    """Raise GuestNotPreparedError unless a folder is there and only its owner may write it."""
    _check(folder, stat.S_ISDIR, "folder")


def check_file(path: Path) -> None:
    """Raise GuestNotPreparedError unless a file is there and only its owner may write it."""
    _check(path, stat.S_ISREG, "file")


def _check(path: Path, is_kind: object, kind: str) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise GuestNotPreparedError(f"{path} is missing: run fathom-prepare-guest") from None
    if not callable(is_kind) or not is_kind(status.st_mode):
        raise GuestNotPreparedError(f"{path} is not a {kind}")
    if status.st_uid not in (os.geteuid(), 0):
        raise GuestNotPreparedError(f"{path} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise GuestNotPreparedError(f"{path} may be written by others")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
