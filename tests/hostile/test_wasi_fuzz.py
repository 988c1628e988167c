"""Every function of WASI with arguments that no compiler makes: an error number, or its exit."""

from __future__ import annotations

import inspect
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox_service.worker.wasi import GuestExitError, Wasi
from tests.hostile.mapped_memory import MappedMemory

ERRNO_MAX = 76
LIBRARY = bytes(range(256)) * 16
WIDE = {("fd_seek", 1), ("clock_time_get", 1), ("path_open", 5), ("path_open", 6)}
"""Arguments of 64 bits, by function and position; they arrive signed, the others do not."""
DENIED_ARGUMENTS = 5
SLEEP_S_MAX = 1 << 64
PATHS = [b"python315.zip", b".", b"", b"..", b"../etc/passwd", b"python315.zip\0", b"\xff" * 50]
SIZES = (1 << 20, 1 << 32)
FUZZ = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Host:
    """What WASI needs from a session; the clock and randomness are fixed."""

    def output_room(self) -> int:
        return 100

    def write_output(self, stream: int, data: bytes, size_bytes: int) -> None:
        assert stream in (1, 2)
        assert len(data) <= 100
        assert size_bytes >= 0

    def clock_ns(self, clock: int) -> int:
        return 1_700_000_000_000_000_000

    def random_bytes(self, size_bytes: int) -> bytes:
        return bytes(size_bytes)

    def sleep(self, duration_s: float) -> None:
        assert 0 <= duration_s < SLEEP_S_MAX


def offsets(size_bytes: int) -> st.SearchStrategy[int]:
    """Unsigned 32-bit numbers, of which many are places in a small part of the memory."""
    edges = [0, 1, 2, 3, 4, 8, 63, 64, 65, 1024, 1025, 1 << 20, (1 << 20) + 1, 1 << 31]
    edges += [(1 << 32) - 1, (1 << 32) - 8, size_bytes - 1, size_bytes - 48, size_bytes]
    return st.one_of(
        st.sampled_from([min(edge, (1 << 32) - 1) for edge in edges]),
        st.integers(0, 4096),
        st.integers(0, (1 << 32) - 1),
    )


def arguments_of(name: str, function: Any, size_bytes: int) -> st.SearchStrategy[tuple[int, ...]]:
    signature = inspect.signature(function) if function is not None else None
    count = len(signature.parameters) if signature is not None else DENIED_ARGUMENTS
    narrow, wide = offsets(size_bytes), st.integers(-(1 << 63), (1 << 63) - 1)
    wide = st.one_of(wide, st.integers(-5000, 5000))
    return st.tuples(*[wide if (name, i) in WIDE else narrow for i in range(count)])


def contents(size_bytes: int) -> st.SearchStrategy[bytes]:
    """Memory as a guest would prepare it: vectors, subscriptions, paths, or noise."""
    number = offsets(size_bytes)
    vector = st.builds(lambda start, size: struct.pack("<II", start, size), number, number)
    subscription = st.builds(
        lambda kind, timeout, flags: struct.pack("<QB7xI4xQQH6x", 9, kind, 1, timeout, 0, flags),
        st.sampled_from([0, 0, 0, 1, 2, 255]),
        st.integers(0, (1 << 64) - 1),
        st.integers(0, 65535),
    )
    return st.one_of(
        st.lists(vector, max_size=40).map(b"".join),
        vector.map(lambda one: one * 1024),
        st.lists(subscription, max_size=64).map(b"".join),
        st.sampled_from(PATHS),
        st.binary(max_size=200),
    )


@pytest.mark.parametrize("size_bytes", SIZES)
@FUZZ
@given(data=st.data())
def test_any_call_ends_in_an_error_number_or_a_clean_exit(
    size_bytes: int, data: st.DataObject
) -> None:
    """What else came out of it would be a fault of the host's, and cost the session."""
    memory = MappedMemory(size_bytes)
    wasi = Wasi(Host(), LIBRARY, open_files_max=4)
    wasi.memory = memory
    functions = wasi.functions()
    for _ in range(data.draw(st.integers(1, 8))):
        memory.put(data.draw(offsets(size_bytes)), data.draw(contents(size_bytes)))
        name = data.draw(st.sampled_from(sorted(functions)))
        arguments = data.draw(arguments_of(name, getattr(wasi, f"_{name}", None), size_bytes))

        try:
            result = functions[name](*arguments)
        except GuestExitError:
            continue

        assert isinstance(result, int)
        assert 0 <= result <= ERRNO_MAX
        assert memory.is_intact_around


def test_a_write_that_adds_up_to_more_than_a_number_holds_is_no_fault_of_the_hosts() -> None:
    """A thousand times the same buffer: the sum of their sizes does not fit into 32 bits."""
    memory = MappedMemory(1 << 30)
    wasi = Wasi(Host(), LIBRARY, open_files_max=4)
    wasi.memory = memory
    memory.put(0, struct.pack("<II", 0, 1 << 29) * 1024)

    result = wasi.functions()["fd_write"](1, 0, 1024, 8192)

    assert isinstance(result, int)
    assert 0 < result <= ERRNO_MAX
