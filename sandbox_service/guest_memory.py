"""The linear memory of a guest, as the host sees it: every access is checked against its size."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from wasmtime import _ffi as ffi

WASM_PAGE_BYTES = 64 << 10
"""By which it grows."""


class GuestMemory:
    """Linear memory of one instance; every access is checked against its size.

    Valid while the guest does not run: the instance refreshes it each time the guest stops to
    call the host, or returns.
    """

    def __init__(self, context: Any, memory: Any) -> None:
        self._context = context
        self._memory = ctypes.byref(memory)
        self.base = 0
        """Host address of the guest's address 0."""
        self.size_bytes = 0
        """Size in bytes; it only ever grows."""
        self.refresh()

    def refresh(self) -> None:
        """Look again where the memory is and how large: needed whenever the guest has run."""
        self.base = ctypes.addressof(ffi.wasmtime_memory_data(self._context, self._memory).contents)
        self.size_bytes = int(ffi.wasmtime_memory_data_size(self._context, self._memory))

    def grow_to(self, size_bytes: int) -> None:
        """Grow to at least a size; raises GuestMemoryError where a limit forbids it."""
        missing = size_bytes - self.size_bytes
        if missing <= 0:
            return
        before = ctypes.c_uint64(0)
        pages = -(-missing // WASM_PAGE_BYTES)
        error = ffi.wasmtime_memory_grow(self._context, self._memory, pages, ctypes.byref(before))
        if error:
            ffi.wasmtime_error_delete(error)
            raise GuestMemoryError(f"memory cannot grow to {size_bytes} bytes")
        self.refresh()

    def address_of(self, start: int, length: int) -> int:
        """Return the host address of a range; raises GuestMemoryError where it is outside."""
        if start < 0 or length < 0 or start + length > self.size_bytes:
            raise GuestMemoryError(f"{length} bytes at {start} are outside the guest's memory")
        return self.base + start

    def read(self, start: int, length: int) -> bytes:
        """Copy bytes out."""
        return ctypes.string_at(self.address_of(start, length), length)

    def view(self) -> memoryview:
        """Return all of the memory without a copy; valid only until the guest runs again."""
        array = (ctypes.c_ubyte * self.size_bytes).from_address(self.base)
        return memoryview(array).cast("B")

    def write(self, start: int, data: bytes) -> None:
        """Copy bytes in."""
        ctypes.memmove(self.address_of(start, len(data)), data, len(data))

    def write_u32(self, start: int, value: int) -> None:
        """Write one little-endian 32-bit integer."""
        self.write(start, struct.pack("<I", value))

    def write_u64(self, start: int, value: int) -> None:
        """Write one little-endian 64-bit integer."""
        self.write(start, struct.pack("<Q", value))


class GuestMemoryError(Exception):
    """The guest gave an address outside its own memory."""
