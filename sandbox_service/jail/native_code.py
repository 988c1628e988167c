"""Native code: whatever memory can be executed cannot be written any more.

The C library of callbacks keeps them in memory that is both. Once all of them are made that is
no longer needed; one made later would end the process.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from sandbox_service.jail import kernel

_READ_AND_EXECUTE = mmap.PROT_READ | mmap.PROT_EXEC


def seal() -> None:
    """Take the right to write from all memory that can be executed; raises OSError."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions = line.split()[:2]
        if "w" in permissions and "x" in permissions:
            start, end = (int(address, 16) for address in addresses.split("-"))
            kernel.syscall("mprotect", start, end - start, _READ_AND_EXECUTE)
