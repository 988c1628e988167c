"""Our WASI: what is allowed, and that no pointer of the guest's leads out of its memory."""

from __future__ import annotations

import struct

import pytest

from sandbox_service.guest_memory import GuestMemory, GuestMemoryError
from sandbox_service.worker.wasi import GuestExitError, Wasi

SUCCESS, BADF, FAULT, INVAL, MFILE, NOENT, NOTCAPABLE = 0, 8, 21, 28, 33, 44, 76
OPEN_FILES_MAX = 64
MEMORY_BYTES = 1 << 16
LIBRARY = bytes(range(256)) * 4
OUTSIDE = MEMORY_BYTES - 2


class Memory(GuestMemory):
    """A guest's memory that is a bytearray."""

    def __init__(self) -> None:
        self.content = bytearray(MEMORY_BYTES)

    def address_of(self, start: int, length: int) -> int:
        if start + length > MEMORY_BYTES:
            raise GuestMemoryError(f"{length} bytes at {start}")
        return start

    def read(self, start: int, length: int) -> bytes:
        self.address_of(start, length)
        return bytes(self.content[start : start + length])

    def write(self, start: int, data: bytes) -> None:
        self.address_of(start, len(data))
        self.content[start : start + len(data)] = data


class Host:
    """Keeps output and counts sleep."""

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes, int]] = []
        self.slept_s = 0.0
        self.room = 100

    def output_room(self) -> int:
        return self.room

    def write_output(self, stream: int, data: bytes, size_bytes: int) -> None:
        self.written.append((stream, data, size_bytes))

    def clock_ns(self, clock: int) -> int:
        return 1_000 + clock

    def random_bytes(self, size_bytes: int) -> bytes:
        return b"r" * size_bytes

    def sleep(self, duration_s: float) -> None:
        self.slept_s += duration_s


class Guest:
    """Calls WASI as a guest does."""

    def __init__(self) -> None:
        self.host = Host()
        self.memory = Memory()
        wasi = Wasi(self.host, LIBRARY, OPEN_FILES_MAX)
        wasi.memory = self.memory
        self.functions = wasi.functions()

    def call(self, name: str, *arguments: int) -> int:
        result = self.functions[name](*arguments)
        assert result is not None
        return result

    def put(self, start: int, data: bytes) -> None:
        self.memory.write(start, data)

    def u32(self, start: int) -> int:
        return int(struct.unpack("<I", self.memory.read(start, 4))[0])

    def open_library(self) -> int:
        self.put(0, b"python315.zip")
        assert self.call("path_open", 3, 0, 0, 13, 0, 0, 0, 0, 100) == SUCCESS
        return self.u32(100)


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("path_unlink_file", 3),
        ("path_create_directory", 3),
        ("path_rename", 6),
        ("path_symlink", 5),
        ("path_link", 7),
        ("fd_readdir", 5),
        ("fd_pwrite", 5),
        ("sock_accept", 3),
        ("sock_send", 5),
        ("sock_recv", 6),
        ("fd_renumber", 2),
        ("proc_raise", 1),
    ],
)
def test_whatever_is_not_offered_is_denied(guest: Guest, name: str, count: int) -> None:
    """Deny by default."""
    assert guest.call(name, *[0] * count) == NOTCAPABLE


def test_only_the_library_can_be_opened(guest: Guest) -> None:
    for path in (b"../etc/passwd", b"/etc/passwd", b"python315.zip/..", b"other"):
        guest.put(0, path)

        assert guest.call("path_open", 3, 0, 0, len(path), 0, 0, 0, 0, 100) == NOENT


def test_nothing_can_be_created(guest: Guest) -> None:
    guest.put(0, b"python315.zip")

    assert guest.call("path_open", 3, 0, 0, 13, 1, 0, 0, 0, 100) == NOTCAPABLE


def test_the_library_reads_from_where_it_was_sought(guest: Guest) -> None:
    fd = guest.open_library()
    assert guest.call("fd_seek", fd, -10, 2, 200) == SUCCESS
    guest.put(300, struct.pack("<IIII", 400, 4, 500, 100))

    assert guest.call("fd_read", fd, 300, 2, 600) == SUCCESS

    assert guest.u32(600) == 10
    assert guest.memory.read(400, 4) + guest.memory.read(500, 6) == LIBRARY[-10:]


def test_a_closed_file_is_closed(guest: Guest) -> None:
    fd = guest.open_library()
    assert guest.call("fd_close", fd) == SUCCESS

    assert guest.call("fd_close", fd) == BADF
    assert guest.call("fd_tell", fd, 0) == BADF


@pytest.mark.parametrize(("offset", "whence"), [(-1, 0), (-1025, 2), (1 << 62, 0), (0, 3)])
def test_a_file_cannot_be_sought_to_nowhere(guest: Guest, offset: int, whence: int) -> None:
    fd = guest.open_library()

    assert guest.call("fd_seek", fd, offset, whence, 200) == INVAL


def test_open_files_are_limited(guest: Guest) -> None:
    opened = [guest.open_library() for _ in range(OPEN_FILES_MAX)]

    assert guest.call("path_open", 3, 0, 0, 13, 0, 0, 0, 0, 100) == MFILE
    assert guest.call("fd_close", opened[0]) == SUCCESS
    assert guest.open_library() == opened[0]


def test_only_what_there_is_room_for_is_copied_out(guest: Guest) -> None:
    """A print of a gigabyte must not become a gigabyte of the host's."""
    guest.put(300, struct.pack("<II", 0, 1000))

    assert guest.call("fd_write", 1, 300, 1, 600) == SUCCESS

    assert guest.host.written == [(1, bytes(100), 1000)]
    assert guest.u32(600) == 1000


def test_output_goes_to_two_streams_only(guest: Guest) -> None:
    guest.put(300, struct.pack("<II", 0, 1))

    assert [guest.call("fd_write", fd, 300, 1, 600) for fd in (0, 3, 4)] == [BADF] * 3


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("fd_write", (1, OUTSIDE, 1, 0)),
        ("fd_write", (1, 300, 1, OUTSIDE)),
        ("clock_time_get", (0, 0, OUTSIDE)),
        ("clock_res_get", (0, OUTSIDE)),
        ("random_get", (OUTSIDE, 8)),
        ("random_get", (0xFFFFFFFF, 1)),
        ("args_get", (OUTSIDE, 0)),
        ("environ_sizes_get", (0, OUTSIDE)),
        ("path_open", (3, 0, OUTSIDE, 13, 0, 0, 0, 0, 100)),
        ("path_filestat_get", (3, 0, OUTSIDE, 13, 0)),
        ("fd_prestat_get", (3, OUTSIDE)),
        ("fd_fdstat_get", (1, OUTSIDE)),
        ("fd_filestat_get", (1, OUTSIDE)),
        ("poll_oneoff", (OUTSIDE, 0, 1, 0)),
    ],
)
def test_a_pointer_out_of_memory_is_a_fault(
    guest: Guest, name: str, arguments: tuple[int, ...]
) -> None:
    """The guest gets an error; the host's memory is not touched."""
    assert guest.call(name, *arguments) == FAULT


def test_a_vector_that_points_outside_is_a_fault(guest: Guest) -> None:
    guest.put(300, struct.pack("<II", 0, 0xFFFFFFFF))

    assert guest.call("fd_write", 1, 300, 1, 600) == FAULT
    assert not guest.host.written


@pytest.mark.parametrize("count", [1025, 0xFFFFFFFF])
def test_vectors_are_limited(guest: Guest, count: int) -> None:
    assert guest.call("fd_write", 1, 0, count, 600) == INVAL


@pytest.mark.parametrize(("size", "errno"), [((1 << 20) + 1, INVAL), (64, SUCCESS)])
def test_randomness_is_limited(guest: Guest, size: int, errno: int) -> None:
    """One call must not keep the host busy for long."""
    assert guest.call("random_get", 0, size) == errno


def test_clocks_and_randomness_are_what_the_host_gives(guest: Guest) -> None:
    """So that a session can have fixed ones."""
    for clock in (0, 1):
        assert guest.call("clock_time_get", clock, 0, 100) == SUCCESS
        assert guest.memory.read(100, 8) == struct.pack("<Q", 1_000 + clock)
    assert guest.call("random_get", 200, 4) == SUCCESS
    assert guest.memory.read(200, 5) == b"rrrr\0"


def test_a_wait_until_a_time_is_as_long_as_the_hosts_clock_says(guest: Guest) -> None:
    guest.put(0, subscription(0, 2_000_001_001, flags=1))

    assert guest.call("poll_oneoff", 0, 1000, 1, 2000) == SUCCESS
    assert guest.host.slept_s == 2


def subscription(kind: int, timeout_ns: int, flags: int = 0) -> bytes:
    return struct.pack("<QB7xI4xQQH6x", 42, kind, 1, timeout_ns, 0, flags)


def test_the_earliest_clock_is_waited_for(guest: Guest) -> None:
    guest.put(0, subscription(0, 5_000_000_000) + subscription(0, 2_000_000_000))

    assert guest.call("poll_oneoff", 0, 1000, 2, 2000) == SUCCESS

    assert guest.host.slept_s == 2
    assert guest.u32(2000) == 1
    assert guest.memory.read(1000, 8) == struct.pack("<Q", 42)


def test_an_absolute_time_that_has_passed_is_no_wait(guest: Guest) -> None:
    guest.put(0, subscription(0, 1, flags=1))

    assert guest.call("poll_oneoff", 0, 1000, 1, 2000) == SUCCESS
    assert guest.host.slept_s == 0


def test_files_cannot_be_waited_for(guest: Guest) -> None:
    guest.put(0, subscription(1, 0))

    assert guest.call("poll_oneoff", 0, 1000, 1, 2000) == NOTCAPABLE


@pytest.mark.parametrize("count", [0, 65])
def test_subscriptions_are_limited(guest: Guest, count: int) -> None:
    assert guest.call("poll_oneoff", 0, 8000, count, 2000) == INVAL


def test_exit_ends_the_guest(guest: Guest) -> None:
    with pytest.raises(GuestExitError) as caught:
        guest.call("proc_exit", 3)

    assert caught.value.status == 3
