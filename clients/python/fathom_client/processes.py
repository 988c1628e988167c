"""One service as a child process: started, waited for until it serves, ended.

It ends with us however we end: the kernel sends SIGTERM to a child whose parent is gone. It gets
the environment it is given and nothing else, and a session of its own, so that Ctrl-C in a
terminal reaches us alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from fathom_client.errors import FathomError

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.02
_START_TIMEOUT_S = 60.0
_STOP_GRACE_S = 8.0
_TAIL_LINES = 12

Listening: TypeAlias = tuple[tuple[str, ...], Mapping[str, str]]
"""Arguments and variables that say where to listen."""


class ServiceStartError(FathomError):
    """A service did not start; the message tells why and ends with its log's last lines."""

    def __init__(self, service: str, message: str, *, status: int | None = None) -> None:
        """Keep which service it was, and its exit status, None where it did not end."""
        super().__init__(message)
        self.service = service
        self.status = status


class ServiceProcess:
    """A Python module that serves, run as `python -m module`."""

    def __init__(
        self,
        name: str,
        module: str,
        *,
        environment: Mapping[str, str],
        address_file: Path,
        log: Path,
        arguments: tuple[str, ...] = (),
        listening_at: Callable[[str], Listening] = lambda _: ((), {}),
    ) -> None:
        """Describe the process; `start` starts it.

        `listening_at` says what makes it listen at an address again: further arguments, and
        variables in the place of those of `environment`.
        """
        self.name = name
        self.environment = dict(environment)
        self.log = log
        self._command = (sys.executable, "-P", "-m", module, *arguments)
        self._address_file = address_file
        self._listening_at = listening_at
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The process id; the process has been started."""
        return self._running().pid

    async def start(self) -> None:
        """Start the process and return at once; an earlier start's log is overwritten."""
        self.log.unlink(missing_ok=True)
        await self._start((), {})

    async def start_again(self) -> None:
        """Start a process that has ended anew, where it listened before, and wait until it serves.

        Its log goes on. Raises ServiceStartError.
        """
        await self._start(*self._listening_at(self._written_address()))
        await self.wait_ready()

    async def _start(self, arguments: tuple[str, ...], variables: Mapping[str, str]) -> None:
        self._address_file.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(*self._command, *arguments),
                env={**self.environment, **variables},
                cwd=self.log.parent,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_ending_with(os.getpid()),
            )

    async def wait_ready(self) -> str:
        """Return the address once the service serves there; raises ServiceStartError."""
        process = self._running()
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                while not (address := self._written_address()):
                    if process.returncode is not None:
                        raise ServiceStartError(
                            self.name,
                            f"the {self.name} ended while it started"
                            f" ({_ending(process.returncode)})\n{self.log_tail()}",
                            status=process.returncode,
                        )
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise ServiceStartError(
                self.name,
                f"the {self.name} did not serve within {_START_TIMEOUT_S:.0f} s\n{self.log_tail()}",
            ) from None
        return address

    async def wait_end(self) -> str:
        """Return how it ended, in words, once it has."""
        return _ending(await self._running().wait())

    async def stop(self) -> None:
        """End the process: SIGTERM, and SIGKILL if it is still there after a grace."""
        if self._process is None or self._process.returncode is not None:
            return
        _signal(self._process, signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_GRACE_S):
                await self._process.wait()
        except TimeoutError:
            _signal(self._process, signal.SIGKILL)
            await self._process.wait()

    def log_tail(self) -> str:
        """Return the log's last lines, with its path.

        What was written for people, such as why it ended, and where there is none the records.
        """
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError as error:
            return f"its log cannot be read: {error}"
        lines = [line for line in lines if not line.startswith("{")] or lines
        shown = "\n".join(f"  {line[:400]}" for line in lines[-_TAIL_LINES:])
        return f"the end of {self.log}:\n{shown or '  (empty)'}"

    def _written_address(self) -> str:
        try:
            return self._address_file.read_text().strip()
        except FileNotFoundError:
            return ""

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError(f"the {self.name} has not been started")
        return self._process


def _ending_with(parent_pid: int) -> Callable[[], None] | None:
    """Return what a new child runs before its program, so that it does not outlive us."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def end_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent_pid:
            # The parent went away before the request above was made.
            os.kill(os.getpid(), signal.SIGTERM)

    return end_with_parent


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _ending(returncode: int) -> str:
    return f"signal {-returncode}" if returncode < 0 else f"status {returncode}"
