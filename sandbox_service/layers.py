"""The layers of a session's memory as the supervisor holds them, between workers.

A layer is an anonymous file of pages at the guest's own offsets. A worker writes to the top
one; a finished one is sealed by the kernel, so that no worker can alter what others share.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence

from sandbox_service.guest_memory import WASM_PAGE_BYTES
from sandbox_service.sparse_files import copy_runs, topmost

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
LAYERS_MAX = 8
"""Finished layers of one session; with more they are merged."""
LARGE_BYTES = 8 << 20
"""A lowest layer of this size holds contexts as a rule, and is never copied into another."""


class LayerError(Exception):
    """A worker has made of a layer what no layer is."""


class LayerFile:
    """An anonymous file of pages, and a descriptor of it."""

    def __init__(self, size_bytes: int = 0) -> None:
        """Make an empty one, for a memory of a size."""
        self.fd = os.memfd_create("layer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._final_data_bytes: int | None = None
        self.resize(size_bytes)

    def resize(self, size_bytes: int) -> None:
        """Make it one for a memory of another size."""
        os.ftruncate(self.fd, size_bytes)

    @property
    def memory_bytes(self) -> int:
        """Size of the memory that it belongs to."""
        return os.fstat(self.fd).st_size

    @property
    def data_bytes(self) -> int:
        """Memory that its pages take."""
        if self._final_data_bytes is not None:
            return self._final_data_bytes
        return os.fstat(self.fd).st_blocks * 512

    def finish(self, memory_bytes_max: int) -> None:
        """Let nobody write to it any more.

        Raises LayerError where the worker keeps it from being finished, or has given it a size
        that a guest's memory cannot have.
        """
        try:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:  # EBUSY: mapped for writing; EPERM: sealed by the worker
            name = errno.errorcode.get(error.errno or 0, "?")
            raise LayerError(f"a layer cannot be sealed ({name})") from error
        size_bytes = self.memory_bytes
        if size_bytes > memory_bytes_max or size_bytes % WASM_PAGE_BYTES:
            raise LayerError(f"a layer for a memory of {size_bytes} bytes")
        self._final_data_bytes = self.data_bytes

    def close(self) -> None:
        """Give the descriptor back, and the pages with the last one."""
        os.close(self.fd)


def is_many(layers: Sequence[LayerFile]) -> bool:
    """Tell whether finished layers are to be merged: too many, or holding too much twice."""
    if len(layers) <= 2:  # none of two holds more than the memory
        return False
    data_bytes = sum(layer.data_bytes for layer in layers)
    memory_bytes = max(layer.memory_bytes for layer in layers)
    return len(layers) > LAYERS_MAX or data_bytes > 2 * memory_bytes


def merged(layers: Sequence[LayerFile]) -> LayerFile:
    """Return a finished layer that holds what these hold together; the caller closes them."""
    memory_bytes = max(layer.memory_bytes for layer in layers)
    whole = LayerFile(memory_bytes)
    try:
        copy_runs(topmost(layer.fd for layer in layers), whole.fd)
        whole.finish(memory_bytes)
    except BaseException:
        whole.close()
        raise
    return whole
