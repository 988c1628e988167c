"""The folder of one user's local services: database, objects, logs, and who runs them at present.

One process at a time owns a home; the lock that says so is the kernel's, so it cannot outlive its
owner as a file with a process id would.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fathom_client.errors import FathomError


class HomeInUseError(FathomError):
    """Another process runs its services in this home."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """Services that run in a home."""

    pid: int
    """The process that started them and ends them."""
    address: str
    """Where their orchestrator listens, `host:port` or `https://host:port`."""
    shared: bool
    """True for `fathom up`; False where they end with the one command that started them."""
    scripted: bool
    """True where the models are scripted."""


@dataclass(frozen=True)
class Home:
    """Places in a home folder."""

    path: Path
    """The folder."""

    @property
    def database_url(self) -> str:
        """The orchestrator's database."""
        return f"sqlite+aiosqlite:///{self.path / 'fathom.db'}"

    @property
    def ledger_url(self) -> str:
        """The gateway's database."""
        return f"sqlite+aiosqlite:///{self.path / 'gateway.db'}"

    @property
    def recorded_answers(self) -> Path:
        """Folder of the gateway's large answers."""
        return self.path / "answers"

    @property
    def objects(self) -> Path:
        """Folder of the object store."""
        return self.path / "objects"

    @property
    def logs(self) -> Path:
        """Folder of the services' logs of the newest start."""
        return self.path / "logs"

    @property
    def demo(self) -> Path:
        """Folder of the demo's generated texts."""
        return self.path / "demo"

    @property
    def _record(self) -> Path:
        return self.path / "up.json"

    @property
    def _lock(self) -> Path:
        return self.path / "lock"

    def create(self) -> None:
        """Make the folders, for this user only."""
        for folder in (self.path, self.objects, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Own the home inside the block. Raises HomeInUseError where another process does."""
        self.create()
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = self.running()
                who = f" (process {owner.pid})" if owner is not None else ""
                raise HomeInUseError(
                    f"another fathom command{who} runs its services in {self.path}"
                ) from None
            # Left behind by an owner that was killed; under the lock it would pass for ours.
            self._record.unlink(missing_ok=True)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def announced(self, running: Running) -> Iterator[None]:
        """Tell other commands of the services inside the block; needs `owned`."""
        partial = self._record.with_suffix(".part")
        partial.write_text(json.dumps(asdict(running)) + "\n")
        partial.replace(self._record)
        try:
            yield
        finally:
            self._record.unlink(missing_ok=True)

    def running(self) -> Running | None:
        """Return the services that run here, None where there are none."""
        try:
            record = json.loads(self._record.read_text())
            with self._lock.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Running(**record)
        except (OSError, ValueError):
            return None
        # Nobody holds the lock: the record was left behind by a process that was killed.
        return None


def home_of(environ: Mapping[str, str]) -> Home:
    """Return the user's home: FATHOM_HOME, or `fathom` in the folder for state."""
    if named := environ.get("FATHOM_HOME"):
        return Home(Path(named).expanduser().absolute())
    state = environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Home(Path(state).expanduser().absolute() / "fathom")
