"""Signs of life: each gateway keeps a file locked while it lives, and the kernel lets go of it
when the process ends, however it ends.

So whoever is on the same machine knows at once who is dead, without waiting for a lease. Of a
gateway elsewhere, or without a file, nothing is known: then the lease decides.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

_STARTING = ".starting"
_KERNEL = Path("/proc/sys/kernel/random/boot_id")
"""Names the running kernel: locks are only asked of the one that gave them, since there are network
file systems on which each machine has locks of its own."""
_ID_BYTES_MAX = 100
_log = logging.getLogger(__name__)


class Lives:
    """The files of all gateways that share a folder."""

    def __init__(self, folder: Path) -> None:
        """The folder is made where it is missing."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._kernel = _running_kernel()

    @contextlib.contextmanager
    def living(self, owner: str) -> Iterator[None]:
        """Be seen to live under a name while the block lasts."""
        path = self._folder / owner
        starting = path.with_suffix(_STARTING)
        descriptor = os.open(starting, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                os.write(descriptor, self._kernel)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Under its name only once it is locked: nobody ever sees it free before the end.
                starting.rename(path)
            except OSError as error:
                _log.warning(
                    "no sign of life: others see from the lease alone that this gateway has died",
                    extra={"kind": type(error).__name__},
                )
            yield
        finally:
            for each in (path, starting):
                each.unlink(missing_ok=True)
            os.close(descriptor)

    def is_dead(self, owner: str) -> bool:
        """Whether a gateway is known to have died."""
        try:
            descriptor = os.open(self._folder / owner, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            if not self._kernel or os.read(descriptor, _ID_BYTES_MAX) != self._kernel:
                return False
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    def dead(self) -> list[str]:
        """Return all that are known to have died and were not forgotten."""
        names = [path.name for path in self._folder.iterdir() if path.suffix != _STARTING]
        return [name for name in names if self.is_dead(name)]

    def forget(self, owner: str) -> None:
        """Remove what a dead one has left."""
        (self._folder / owner).unlink(missing_ok=True)


def _running_kernel() -> bytes:
    """Return its name; empty where it tells none, so that leases alone decide."""
    try:
        return _KERNEL.read_bytes()
    except OSError as error:
        _log.warning("the kernel has no name: only leases tell who has died: %s", error.strerror)
        return b""
