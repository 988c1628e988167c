"""WASI preview 1 for the guest, deny by default: clocks, randomness, output and one library.

The guest sees a folder with a single read-only file, its standard library. Whatever is not
named here answers ENOTCAPABLE. Every pointer is checked by GuestMemory.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import Protocol

from sandbox_service.engine import HostFunction
from sandbox_service.guest_memory import GuestMemory, GuestMemoryError

_SUCCESS, _BADF, _FAULT, _INVAL, _MFILE, _NOENT, _NOTCAPABLE = 0, 8, 21, 28, 33, 44, 76
_CHARACTER_DEVICE, _DIRECTORY, _REGULAR_FILE = 2, 3, 4
_LIBRARY_FOLDER = b"/usr/local/lib"
_LIBRARY_NAME = b"python315.zip"
_FOLDER_FD = 3
_VECTORS_MAX = 1024
_TRANSFER_BYTES_MAX = (1 << 31) - 1
"""Of one call: the guest is told how much it was in a number of 32 bits."""
_RANDOM_BYTES_MAX = 1 << 20
_SUBSCRIPTIONS_MAX = 64
_ARGUMENTS = (b"python\0",)
_ENVIRONMENT = (b"HOME=/tmp\0", b"PYTHONTZPATH=\0")
_NAMES = """
args_get args_sizes_get clock_res_get clock_time_get environ_get environ_sizes_get fd_advise
fd_allocate fd_close fd_datasync fd_fdstat_get fd_fdstat_set_flags fd_fdstat_set_rights
fd_filestat_get fd_filestat_set_size fd_filestat_set_times fd_pread fd_prestat_dir_name
fd_prestat_get fd_pwrite fd_read fd_readdir fd_renumber fd_seek fd_sync fd_tell fd_write
path_create_directory path_filestat_get path_filestat_set_times path_link path_open
path_readlink path_remove_directory path_rename path_symlink path_unlink_file poll_oneoff
proc_exit proc_raise random_get sched_yield sock_accept sock_recv sock_send sock_shutdown
""".split()  # noqa: SIM905  # a list of them would be 45 lines


class GuestExitError(Exception):
    """The guest ended its process; `status` is the exit code it gave."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the guest exited with status {status}")
        self.status = status


class WasiHost(Protocol):
    """What WASI needs from the session that it serves."""

    def output_room(self) -> int:
        """Return how many more bytes of output are kept."""

    def write_output(self, stream: int, data: bytes, size_bytes: int) -> None:
        """Take what the guest wrote to stream 1 or 2: the part with room, and the whole size."""

    def clock_ns(self, clock: int) -> int:
        """Return what a clock shows; see surroundings.Surroundings."""

    def random_bytes(self, size_bytes: int) -> bytes:
        """Return random bytes."""

    def sleep(self, duration_s: float) -> object:
        """Let time pass; raises to stop the guest when its own time is up."""


class Wasi:
    """The system interface of one instance."""

    def __init__(self, host: WasiHost, library: bytes | mmap.mmap, open_files_max: int) -> None:
        """Take the library's content, and how often it may be open at a time."""
        self._host = host
        self._library = library
        self._open_files_max = open_files_max
        self._files: dict[int, int] = {}
        self.memory: GuestMemory
        """Set once the instance exists, before it runs."""

    def functions(self) -> dict[str, HostFunction]:
        """Return every import of WASI by name."""
        return {name: self._guarded(getattr(self, f"_{name}", _denied)) for name in _NAMES}

    @staticmethod
    def _guarded(function: Callable[..., int]) -> HostFunction:
        def call(*arguments: int) -> int:
            try:
                return function(*arguments)
            except GuestMemoryError:
                return _FAULT

        return call

    # Process

    def _args_sizes_get(self, count: int, size: int) -> int:
        return self._sizes(_ARGUMENTS, count, size)

    def _args_get(self, pointers: int, texts: int) -> int:
        return self._strings(_ARGUMENTS, pointers, texts)

    def _environ_sizes_get(self, count: int, size: int) -> int:
        return self._sizes(_ENVIRONMENT, count, size)

    def _environ_get(self, pointers: int, texts: int) -> int:
        return self._strings(_ENVIRONMENT, pointers, texts)

    def _proc_exit(self, status: int) -> int:
        raise GuestExitError(status)

    def _sched_yield(self) -> int:
        return _SUCCESS

    # Time and randomness

    def _clock_res_get(self, _clock: int, result: int) -> int:
        self.memory.write_u64(result, 1)
        return _SUCCESS

    def _clock_time_get(self, clock: int, _precision: int, result: int) -> int:
        self.memory.write_u64(result, self._host.clock_ns(clock))
        return _SUCCESS

    def _random_get(self, start: int, size: int) -> int:
        if size > _RANDOM_BYTES_MAX:
            return _INVAL
        self.memory.address_of(start, size)
        self.memory.write(start, self._host.random_bytes(size))
        return _SUCCESS

    def _poll_oneoff(self, subscriptions: int, events: int, count: int, result: int) -> int:
        """Only clocks can be waited for; the earliest one is, and it alone is reported."""
        if not 0 < count <= _SUBSCRIPTIONS_MAX:
            return _INVAL
        waits = []
        for i in range(count):
            raw = self.memory.read(subscriptions + 48 * i, 48)
            userdata, kind, clock, timeout_ns, _, flags = struct.unpack("<QB7xI4xQQH6x", raw)
            if kind != 0:
                return _NOTCAPABLE
            if flags & 1:  # an absolute time
                timeout_ns -= self._host.clock_ns(clock)
            waits.append((max(timeout_ns, 0), userdata))
        duration_ns, userdata = min(waits)
        self._host.sleep(duration_ns / 1e9)
        self.memory.write(events, struct.pack("<QHB21x", userdata, _SUCCESS, 0))
        self.memory.write_u32(result, 1)
        return _SUCCESS

    # Files

    def _fd_write(self, fd: int, vectors: int, count: int, result: int) -> int:
        if fd not in (1, 2):
            return _BADF
        if count > _VECTORS_MAX:
            return _INVAL
        buffers = self._vectors(vectors, count)
        for start, size in buffers:
            self.memory.address_of(start, size)
        if sum(size for _, size in buffers) > _TRANSFER_BYTES_MAX:
            return _INVAL
        written = 0
        for start, size in buffers:
            data = self.memory.read(start, min(size, self._host.output_room()))
            self._host.write_output(fd, data, size)
            written += size
        self.memory.write_u32(result, written)
        return _SUCCESS

    def _fd_read(self, fd: int, vectors: int, count: int, result: int) -> int:
        if fd != 0 and fd not in self._files:
            return _BADF
        if count > _VECTORS_MAX:
            return _INVAL
        done = 0
        for start, size in self._vectors(vectors, count) if fd else ():
            position = self._files[fd]
            data = self._library[position : position + size]
            self.memory.write(start, data)
            self._files[fd] += len(data)
            done += len(data)
        self.memory.write_u32(result, done)
        return _SUCCESS

    def _fd_seek(self, fd: int, offset: int, whence: int, result: int) -> int:
        if fd not in self._files:
            return _BADF
        if whence > 2:
            return _INVAL
        position = (0, self._files[fd], len(self._library))[whence] + offset
        if not 0 <= position < 1 << 62:
            return _INVAL
        self._files[fd] = position
        self.memory.write_u64(result, position)
        return _SUCCESS

    def _fd_tell(self, fd: int, result: int) -> int:
        return self._fd_seek(fd, 0, 1, result)

    def _fd_close(self, fd: int) -> int:
        return _BADF if self._files.pop(fd, None) is None else _SUCCESS

    def _fd_fdstat_get(self, fd: int, result: int) -> int:
        kind = self._kind(fd)
        if kind is None:
            return _BADF
        rights = (1 << 30) - 1
        self.memory.write(result, struct.pack("<BxHxxxxQQ", kind, 0, rights, rights))
        return _SUCCESS

    def _fd_filestat_get(self, fd: int, result: int) -> int:
        kind = self._kind(fd)
        return _BADF if kind is None else self._filestat(result, kind)

    def _fd_prestat_get(self, fd: int, result: int) -> int:
        if fd != _FOLDER_FD:
            return _BADF
        self.memory.write(result, struct.pack("<II", 0, len(_LIBRARY_FOLDER)))
        return _SUCCESS

    def _fd_prestat_dir_name(self, fd: int, start: int, size: int) -> int:
        if fd != _FOLDER_FD:
            return _BADF
        self.memory.write(start, _LIBRARY_FOLDER[:size])
        return _SUCCESS

    def _path_filestat_get(self, fd: int, _flags: int, path: int, size: int, result: int) -> int:
        name = self._name(fd, path, size)
        if name == _LIBRARY_NAME:
            return self._filestat(result, _REGULAR_FILE)
        return self._filestat(result, _DIRECTORY) if name in (b"", b".") else _NOENT

    def _path_open(
        self,
        fd: int,
        _lookup: int,
        path: int,
        size: int,
        creation: int,
        _rights: int,
        _inheriting: int,
        _flags: int,
        result: int,
    ) -> int:
        name = self._name(fd, path, size)
        if creation:
            return _NOTCAPABLE
        if name != _LIBRARY_NAME:
            return _NOENT
        free = next((n for n in range(4, 4 + self._open_files_max) if n not in self._files), None)
        if free is None:
            return _MFILE
        self.memory.write_u32(result, free)
        self._files[free] = 0
        return _SUCCESS

    def _name(self, fd: int, path: int, size: int) -> bytes:
        return self.memory.read(path, size) if fd == _FOLDER_FD and size <= 4096 else b"/"

    def _kind(self, fd: int) -> int | None:
        if fd in self._files:
            return _REGULAR_FILE
        if fd == _FOLDER_FD:
            return _DIRECTORY
        return _CHARACTER_DEVICE if fd in (0, 1, 2) else None

    def _filestat(self, result: int, kind: int) -> int:
        size = len(self._library) if kind == _REGULAR_FILE else 0
        stat = struct.pack("<QQB7xQQQQQ", 1, kind, kind, 1, size, 0, 0, 0)
        self.memory.write(result, stat)
        return _SUCCESS

    def _vectors(self, start: int, count: int) -> list[tuple[int, int]]:
        return list(struct.iter_unpack("<II", self.memory.read(start, 8 * count)))

    def _sizes(self, texts: tuple[bytes, ...], count: int, size: int) -> int:
        self.memory.write_u32(count, len(texts))
        self.memory.write_u32(size, sum(map(len, texts)))
        return _SUCCESS

    def _strings(self, texts: tuple[bytes, ...], pointers: int, start: int) -> int:
        for i, text in enumerate(texts):
            self.memory.write_u32(pointers + 4 * i, start)
            self.memory.write(start, text)
            start += len(text)
        return _SUCCESS


def _denied(*_: int) -> int:
    return _NOTCAPABLE
