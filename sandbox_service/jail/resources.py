"""Resource limits and priority of a process.

RLIMIT_AS is not among them: each guest reserves 4 GiB of address space that it never touches.
What memory is really used, the service watches.
"""

from __future__ import annotations

import os
import resource

_THREADS_MAX = 4096
_DESCRIPTORS_MAX = 1 << 16
_STACK_BYTES = 8 << 20
"""Of the first thread; others get theirs when they are started."""
_FILE_BYTES_MAX = 4 << 30
"""What a 32-bit guest's memory can be: a session is saved to a file in memory."""


def limit(niceness: int) -> None:
    """Lower every limit that a worker does not need, for good, and let others go first."""
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_FSIZE: _FILE_BYTES_MAX,
        resource.RLIMIT_STACK: _STACK_BYTES,
        resource.RLIMIT_NOFILE: _DESCRIPTORS_MAX,
    }
    if os.geteuid() == 0:
        # It counts all threads of a user: of use where this process is to have one of its own.
        limits[resource.RLIMIT_NPROC] = _THREADS_MAX
    for kind, value in limits.items():
        ceiling = resource.getrlimit(kind)[1]
        lowered = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(kind, (lowered, lowered))
    if niceness > os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
