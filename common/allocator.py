"""What the C library's allocator is told. glibc gives each thread an arena of its own, and what is
freed in one is no use to the others.
"""

from __future__ import annotations

import ctypes

ARENAS_MAX = 2
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8


def share_arenas() -> None:
    """Have all threads take memory from few arenas: a service whose messages of a megabyte pass
    from thread to thread would grow by hundreds of them."""
    _tell(_M_ARENA_MAX, ARENAS_MAX)


def return_large_pieces(size_bytes: int) -> None:
    """Have pieces of this size and more given back to the kernel as soon as they are freed; by
    itself glibc raises its threshold with what a program frees. It takes longer to get new ones."""
    _tell(_M_MMAP_THRESHOLD, size_bytes)


def _tell(option: int, value: int) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not in every C library
        libc.mallopt(option, value)
