"""A folder for a server that a test starts. One whose owner was killed, and so could not remove it,
is removed by the next test run.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from pathlib import Path

_LOCK = "owned"


class ScratchFolder:
    """A new folder, short enough a path for a Unix socket."""

    def __init__(self, kind: str) -> None:
        """`kind` is a word for the name."""
        prefix = f"fathom-{kind}-"
        _remove_abandoned(prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        """Where it is."""
        # Locked before it has its name: whoever finds it finds it locked.
        lock = self.path / f"{_LOCK}.new"
        self._lock = lock.open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        lock.rename(self.path / _LOCK)

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.let_go()

    def let_go(self) -> None:
        """Own it no more, as the end of the process does."""
        self._lock.close()


def _remove_abandoned(prefix: str) -> None:
    """Remove folders whose lock the kernel has freed with their owner."""
    for lock in Path(tempfile.gettempdir()).glob(f"{prefix}*/{_LOCK}"):
        with contextlib.suppress(OSError), lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
