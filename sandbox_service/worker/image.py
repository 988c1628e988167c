"""A session's memory as layers of mapped pages: warm image, saved pages, private pages.

The warm image (a file that all sessions share) and the session's layers (anonymous files that
the supervisor made and keeps) are mapped copy-on-write over the guest's linear memory, so only
what a cell writes costs memory. At rest a guest is nothing but its memory: mapping the same
layers over a fresh instance gives the session back as it was at the last save.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from sandbox_service.guest_memory import GuestMemory
from sandbox_service.sparse_files import (
    PAGE_BYTES,
    Run,
    extents,
    read_whole,
    topmost,
    write_whole,
)

_REMAP_PAGES = 64
"""A changed run this long is mapped back from the saved file, which frees the private copy.

Shorter runs stay private and are saved again each time: that costs less than the page faults
that the next cell would pay, and keeps the number of mappings small.
"""
_FILL_BYTES_MIN = 1 << 20
"""Smaller data is copied like a cell's own: a mapping each would use up what a process has."""
_COPY_BYTES = 4 << 20
_PROTECTION = mmap.PROT_READ | mmap.PROT_WRITE
_MAP_FIXED = 0x10
_ZERO_PAGE = bytes(PAGE_BYTES)

Expected = Callable[[int, int], bytes]
"""Gives the bytes that the layers hold: start and size to data."""


class WarmImage:
    """The memory of a guest that has imported and prepared everything sessions start with."""

    def __init__(self, path: Path) -> None:
        """Open an image file."""
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size_bytes = os.fstat(self.fd).st_size

    @staticmethod
    def write(path: Path, memory: GuestMemory) -> None:
        """Write a guest's memory to a file, with holes for its empty pages."""
        size_bytes = memory.size_bytes
        with path.open("wb") as file:
            file.truncate(size_bytes)
            for start in range(0, size_bytes, PAGE_BYTES):
                page = memory.read(start, PAGE_BYTES)
                if page != _ZERO_PAGE:
                    os.pwrite(file.fileno(), page, start)


class SessionImage:
    """What a session's memory holds besides the warm image, as of the last save.

    It writes to the topmost layer only; the finished ones below may be shared with others.
    """

    def __init__(
        self, warm: WarmImage, changes: ChangeFinder, finished: Sequence[int], top: int
    ) -> None:
        """Take over the descriptors of finished layers, lowest first, and of the top one."""
        self._warm = warm
        self._changes = changes
        self._finished = list(finished)
        self._top = top
        self._size_bytes = max(
            warm.size_bytes, *(os.fstat(fd).st_size for fd in (*self._finished, top))
        )

    def attach(self, memory: GuestMemory) -> None:
        """Map the layers over a fresh instance's memory.

        Raises GuestMemoryError where they are larger than it may be.
        """
        memory.grow_to(self._size_bytes)
        if not _map(memory, 0, self._warm.size_bytes, self._warm.fd):
            raise OSError(errno.ENOMEM, "this process can map no more files")
        content = memory.view()
        for start, end, fd in self._runs():
            if not (_is_long(start, end) and _map(memory, start, end - start, fd)):
                read_whole(fd, content[start:end], start)

    def save(self, memory: GuestMemory) -> None:
        """Take over every page that changed since the layers were last mapped."""
        size_bytes = memory.size_bytes
        os.ftruncate(self._top, size_bytes)
        content = memory.view()
        for start, end in list(self._changes.find(memory, self._expected)):
            # Piece by piece, so that a large run never takes its memory twice.
            for low in range(start, end, _COPY_BYTES):
                high = min(low + _COPY_BYTES, end)
                write_whole(self._top, content[low:high], low)
                if _is_long(start, end):
                    _map(memory, low, high - low, self._top)
        self._size_bytes = size_bytes

    def relayer(self, memory: GuestMemory, finished: Sequence[int], top: int) -> None:
        """Take over other layers that hold together what these do, at rest after a save."""
        was_merged = len(finished) <= len(self._finished)
        self.close()
        self._finished, self._top = list(finished), top
        if was_merged:  # what is mapped from the old files keeps them from being freed
            for start, end, fd in self._runs():
                if _is_long(start, end):
                    _map(memory, start, end - start, fd)

    def fill(
        self, memory: GuestMemory, start: int, size_bytes: int, pieces: Iterable[bytes]
    ) -> None:
        """Put data straight into the saved layer and map it: its memory is needed only once.

        The pieces must add up to `size_bytes`; ValueError where they do not, and then the
        memory must not be used any more.
        """
        memory.address_of(start, size_bytes)
        end = start + size_bytes
        first = min(-(-start // PAGE_BYTES) * PAGE_BYTES, end)
        last = max(end // PAGE_BYTES * PAGE_BYTES, first)
        if last - first < _FILL_BYTES_MIN:
            first = last = end
        _discard(memory, first, last - first)
        os.ftruncate(self._top, memory.size_bytes)
        position = start
        for piece in pieces:
            if position + len(piece) > end:
                raise ValueError("the data is longer than announced")
            head = piece[: max(first - position, 0)]
            memory.write(position, head)
            middle = memoryview(piece)[len(head) : max(last - position, len(head))]
            write_whole(self._top, middle, position + len(head))
            memory.write(position + len(head) + len(middle), piece[len(head) + len(middle) :])
            position += len(piece)
        if position != end:
            raise ValueError("the data is shorter than announced")
        if last > first and not _map(memory, first, last - first, self._top):
            read_whole(self._top, memory.view()[first:last], first)

    def close(self) -> None:
        """Close the layers."""
        for fd in (*self._finished, self._top):
            os.close(fd)

    def _runs(self) -> list[Run]:
        # Looked up each time: it takes milliseconds of a long chain, which a session that goes on
        # after a fork need not spend.
        return topmost((*self._finished, self._top))

    def _expected(self, start: int, size_bytes: int) -> bytes:
        """Return what the layers hold in a range, whether or not it was changed since."""
        expected = bytearray(os.pread(self._warm.fd, size_bytes, start))
        expected.extend(bytes(size_bytes - len(expected)))
        for fd in (*self._finished, self._top):
            for low, high in extents(fd, start, start + size_bytes):
                expected[low - start : high - start] = os.pread(fd, high - low, low)
        return bytes(expected)


class ChangeFinder:
    """Finds the pages that differ from the layers below them.

    A changed page of a private file mapping is anonymous, and the kernel tells which are in
    /proc/self/pagemap. Where that is missing or not faithful (some containers, gVisor),
    memory is compared with the layers instead, which is slower and gives the same result.
    """

    def __init__(self, page_map_path: str = "/proc/self/pagemap") -> None:
        self._fd = _open_page_map(page_map_path)

    def find(self, memory: GuestMemory, expected: Expected) -> Iterator[tuple[int, int]]:
        """Yield the changed ranges in order, as offsets into the guest's memory."""
        if self._fd is None:
            return _compared(memory, expected)
        return _anonymous(self._fd, memory.base, memory.size_bytes)


# The top byte of an entry: bit 63 present, 62 swapped, 61 backed by a file or shared.
_CHANGED = bytes(1 if entry & 0xC0 and not entry & 0x20 else 0 for entry in range(256))
_CHANGED_RUN = re.compile(b"\x01+")


def _anonymous(page_map: int, base: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    wanted = size_bytes // PAGE_BYTES * 8
    entries = b""
    while len(entries) < wanted:
        offset = base // PAGE_BYTES * 8 + len(entries)
        more = os.pread(page_map, wanted - len(entries), offset)
        if not more:
            raise OSError(f"the page map has no entry at {offset}")
        entries += more
    for run in _CHANGED_RUN.finditer(entries[7::8].translate(_CHANGED)):
        yield run.start() * PAGE_BYTES, run.end() * PAGE_BYTES


def _compared(memory: GuestMemory, expected: Expected) -> Iterator[tuple[int, int]]:
    block_bytes = 64 * PAGE_BYTES
    size_bytes = memory.size_bytes
    begin = None
    for block in range(0, size_bytes, block_bytes):
        length = min(block_bytes, size_bytes - block)
        actual, known = memory.read(block, length), expected(block, length)
        for page in range(0, length, PAGE_BYTES):
            end = page + PAGE_BYTES
            is_changed = actual != known and actual[page:end] != known[page:end]
            if is_changed and begin is None:
                begin = block + page
            elif not is_changed and begin is not None:
                yield begin, block + page
                begin = None
    if begin is not None:
        yield begin, size_bytes


def _open_page_map(path: str) -> int | None:
    """Open the page map and try it on a page of known state; None where it cannot be used."""
    try:
        page_map = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    file = os.memfd_create("page-map-probe", os.MFD_CLOEXEC)
    try:
        os.pwrite(file, b"x" * 2 * PAGE_BYTES, 0)
        with mmap.mmap(file, 2 * PAGE_BYTES, mmap.MAP_PRIVATE, _PROTECTION) as probe:
            probe[0] = probe[PAGE_BYTES]
            address = ctypes.addressof(ctypes.c_char.from_buffer(probe))
            runs = list(_anonymous(page_map, address, 2 * PAGE_BYTES))
    except OSError:
        runs = []
    finally:
        os.close(file)
    if runs == [(0, PAGE_BYTES)]:
        return page_map
    os.close(page_map)
    return None


def _is_long(start: int, end: int) -> bool:
    return end - start >= _REMAP_PAGES * PAGE_BYTES


def _map(memory: GuestMemory, start: int, size_bytes: int, fd: int) -> bool:
    """Map a file's range copy-on-write over the same range of the guest's memory.

    Returns False, and leaves memory as it is, where the process has as many mappings as it may:
    code that changes every other bit of a large memory needs many of them.
    """
    address = memory.address_of(start, size_bytes)
    flags = mmap.MAP_PRIVATE | _MAP_FIXED
    result = _libc().mmap(address, size_bytes, _PROTECTION, flags, fd, start)
    if result != address:
        if ctypes.get_errno() == errno.ENOMEM:
            return False
        raise OSError(ctypes.get_errno(), "cannot map an image over the guest's memory")
    return True


def _discard(memory: GuestMemory, start: int, size_bytes: int) -> None:
    """Give back the pages of a range that is about to be overwritten."""
    if size_bytes:
        _libc().madvise(memory.address_of(start, size_bytes), size_bytes, mmap.MADV_DONTNEED)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    ]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
