"""A service as a process of its own, for tests that kill it: its start, its address, its end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.child_processes import end_with_parent
from tests.support.eventually import eventually

_START_S = 60.0
_END_S = 60.0


class ServiceProcess:
    """Runs while its block lasts, unless it is killed before."""

    def __init__(self, module: str, prefix: str, folder: Path, settings: Mapping[str, str]) -> None:
        """`module` is run with these variables of the environment, and what Python needs; `prefix`
        is that of the service's own. Processes of one folder write one log."""
        self.folder = folder
        """What it works in."""
        self.environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            f"{prefix}LISTEN": "127.0.0.1:0",
            f"{prefix}DRAIN_S": "1",
            **settings,
        }
        """Its settings."""
        self.address = ""
        """`host:port`."""
        self._module = module
        self._prefix = prefix
        self._log = folder / f"{module}.log"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def log(self) -> str:
        """What all processes of the service have logged in this folder."""
        return self._log.read_text()

    async def __aenter__(self) -> Self:
        address = self.folder / f"address-{id(self)}"
        address.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            running = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._module),
                stderr=log,
                env=self.environ | {f"{self._prefix}ADDRESS_FILE": str(address)},
                preexec_fn=end_with_parent,
            )
        self._process = running
        await eventually(
            lambda: address.exists() or running.returncode is not None, within_s=_START_S
        )
        assert running.returncode is None, self.log
        self.address = address.read_text().strip()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.kill()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def end(self, number: int) -> None:
        """Send it a signal, where it has not ended, and wait for its end."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        await asyncio.wait_for(self._process.wait(), _END_S)

    async def kill(self) -> None:
        """End it with SIGKILL: nothing of it runs any more."""
        await self.end(signal.SIGKILL)
