"""A guest's linear memory without a guest: our own checks over a real mapping, with canaries."""

from __future__ import annotations

import ctypes
import mmap

from sandbox_service.guest_memory import GuestMemory

_CANARY_BYTES = 64 << 10
_MAP_NORESERVE = 0x4000
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE


class MappedMemory(GuestMemory):
    """Linear memory of any size up to the 4 GiB of a real one; untouched pages take nothing."""

    def __init__(self, size_bytes: int) -> None:
        self._mapping = mmap.mmap(-1, size_bytes + 2 * _CANARY_BYTES, flags=_FLAGS)
        self._first = ctypes.c_char.from_buffer(self._mapping)
        self.base = ctypes.addressof(self._first) + _CANARY_BYTES
        self.size_bytes = size_bytes

    def refresh(self) -> None:
        """Nothing: no guest runs that could grow it."""

    @property
    def is_intact_around(self) -> bool:
        """Whether nothing was ever written before its beginning or behind its end."""
        before = ctypes.string_at(self.base - _CANARY_BYTES, _CANARY_BYTES)
        behind = ctypes.string_at(self.base + self.size_bytes, _CANARY_BYTES)
        return not any(before) and not any(behind)

    def put(self, start: int, data: bytes) -> None:
        """Write what fits of some data, as a guest does that is careless about its own end."""
        start = min(start, self.size_bytes)
        self.write(start, data[: self.size_bytes - start])
