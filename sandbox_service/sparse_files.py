"""Sparse files: which ranges of one hold data, and writing a range whole.

Layers of a session's memory are sparse files whose pages stand at the guest's own offsets.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

PAGE_BYTES = 4096
_COPY_BYTES = 4 << 20

Run = tuple[int, int, int]
"""A range of bytes, start and end, and the descriptor of the file that holds it."""


def extents(fd: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a file that hold data, as start and end, in order."""
    size_bytes = os.fstat(fd).st_size
    stop = size_bytes if stop is None else min(stop, size_bytes)
    while start < stop:
        try:
            low = os.lseek(fd, start, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        if low >= stop:
            return
        start = os.lseek(fd, low, os.SEEK_HOLE)
        yield low, min(start, stop)


def topmost(fds: Iterable[int]) -> list[Run]:
    """Return what is seen of files laid over one another, lowest first: runs in order."""
    runs: list[Run] = []
    for fd in fds:
        runs = overlaid(runs, [(low, high, fd) for low, high in extents(fd)])
    return runs


def overlaid(below: list[Run], above: list[Run]) -> list[Run]:
    """Lay runs over others: what is covered goes. Both are in order and without overlap."""
    if not below or not above:
        return below or above
    seen: list[Run] = []
    covers = iter(above)
    cover = next(covers, None)
    for start, high, fd in below:
        low = start
        while cover is not None and cover[0] < high:
            if low < cover[0]:
                seen.append((low, cover[0], fd))
            low = max(low, cover[1])
            if cover[1] > high:
                break
            seen.append(cover)
            cover = next(covers, None)
        if low < high:
            seen.append((low, high, fd))
    if cover is not None:
        seen += [cover, *covers]
    seen.sort()
    return seen


def write_whole(fd: int, data: memoryview, offset: int) -> None:
    """Write all of some data at an offset."""
    while data:
        written = os.pwrite(fd, data[:_COPY_BYTES], offset)
        data, offset = data[written:], offset + written


def read_whole(fd: int, into: memoryview, offset: int) -> None:
    """Fill a buffer from an offset; raises EOFError where the file ends before."""
    while into:
        count = os.preadv(fd, [into], offset)
        if not count:
            raise EOFError(f"the file ends at {offset}")
        into, offset = into[count:], offset + count


def copy_runs(runs: Iterable[Run], to: int) -> None:
    """Copy ranges to the same places of another file."""
    for low, high, fd in runs:
        for start in range(low, high, _COPY_BYTES):
            data = os.pread(fd, min(_COPY_BYTES, high - start), start)
            write_whole(to, memoryview(data), start)
