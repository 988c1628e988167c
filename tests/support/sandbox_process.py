"""A sandbox service as a process of its own, for tests that kill it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.child_processes import end_with_parent
from tests.support.eventually import eventually

_START_S = 60.0
_PREFIX = "FATHOM_SANDBOX_"
_KEPT = ("PATH", "HOME", "XDG_CACHE_HOME", f"{_PREFIX}GUEST_CACHE", f"{_PREFIX}GUEST_WHEEL")


class SandboxProcess:
    """Runs while its block lasts, unless it is killed before."""

    def __init__(self, folder: Path, *, gateway: str) -> None:
        """`folder` holds the object store and the logs; `gateway` is an address."""
        self._folder = folder
        self._environ = {name: os.environ[name] for name in _KEPT if name in os.environ} | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            f"{_PREFIX}LISTEN": "127.0.0.1:0",
            f"{_PREFIX}GATEWAY_ADDRESS": gateway,
            f"{_PREFIX}OBJECT_STORE": str(folder / "objects"),
            f"{_PREFIX}WORKERS": "1",
            f"{_PREFIX}DRAIN_S": "1",
        }
        self._process: asyncio.subprocess.Process | None = None
        self.address = ""
        """`host:port`."""

    async def __aenter__(self) -> Self:
        address = self._folder / f"address-{id(self)}"
        address.unlink(missing_ok=True)
        with (self._folder / "sandbox.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sandbox_service"),
                stderr=log,
                env=self._environ | {f"{_PREFIX}ADDRESS_FILE": str(address)},
                preexec_fn=end_with_parent,
            )
        running = self._process
        await eventually(
            lambda: address.exists() or running.returncode is not None, within_s=_START_S
        )
        assert running.returncode is None, (self._folder / "sandbox.log").read_text()
        self.address = address.read_text().strip()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.kill()

    async def kill(self) -> None:
        """End it with SIGKILL: nothing of it runs any more."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
