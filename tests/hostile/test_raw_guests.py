"""Guests in plain WebAssembly: what Python code cannot do because CPython does not, they do.

The engine and the door are the real ones; the allocator, which the door calls back into the
guest for, is as hostile as it can be.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import wasmtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox_service import frames
from sandbox_service.engine import GuestEngine, GuestStoppedError, compile_guest
from sandbox_service.guest_memory import GuestMemoryError
from sandbox_service.limits import Limits
from sandbox_service.worker.contexts import Contexts
from sandbox_service.worker.execution import Execution, StopError
from sandbox_service.worker.guest_door import GuestDoor

MEMORY_BYTES_MAX = 16 << 20
LIMITS = Limits(memory_bytes_max=MEMORY_BYTES_MAX)
FUEL = 1_000_000
REQUEST = b'{"call":"cell"}'
REQUEST_AT, RESULT_AT = 32_768, 4096
ADDRESSES = st.integers(0, (1 << 32) - 1) | st.sampled_from([0, 65_535, 131_071, 131_072, 40_000])
GUEST = """
(module
  (import "host" "call" (func $call (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 32768) "{\\22call\\22:\\22cell\\22}")
  (global $allocated (mut i32) (i32.const 0))
  (func (export "host_alloc") (param $size i32) (result i32)
    (global.set $allocated (i32.add (global.get $allocated) (i32.const 1)))
    (if (result i32) (i32.eq (global.get $allocated) (i32.const 1))
      (then FIRST)
      (else ALLOCATOR)))
  (func (export "turn") (param $start i32) (param $size i32) (result i32)
    (call $call
      (i32.load (local.get $start))
      (i32.load offset=4 (local.get $start))
      (i32.load offset=8 (local.get $start))
      (i32.load offset=12 (local.get $start)))))
"""
"""The first allocation is for the turn's source, which is the four arguments of one call."""
ENDLESS = "(loop $again (br $again)) (i32.const 8)"
CALL_AGAIN = f"(call $call (i32.const {REQUEST_AT}) (i32.const 15) (i32.const 64) (i32.const 68))"


class RawGuest:
    """A guest that runs a cell: engine, instance and door."""

    def __init__(self, engine: GuestEngine) -> None:
        self._engine = engine  # its callbacks must outlive the instance
        contexts = Contexts([], [], MEMORY_BYTES_MAX)
        door = GuestDoor(1, LIMITS, contexts, None, lambda _: None)  # type: ignore[arg-type]
        self.execution = Execution(1, LIMITS, lambda *_: None)
        cell = frames.Run(session=1, execution=1, code="#" * 1000, report_variables=False)
        door.begin(self.execution, cell)
        self.instance = engine.instantiate(
            {"call": door.call}, self.execution.on_tick, MEMORY_BYTES_MAX
        )
        door.instance = self.instance
        self.instance.fuel = FUEL

    def ask(self, start: int = REQUEST_AT, size: int = len(REQUEST), to: int = RESULT_AT) -> int:
        """Make one request; returns what the door answered."""
        return self.instance.turn(struct.pack("<IIII", start, size, to, to + 4))

    def answer(self) -> tuple[int, bytes]:
        """Return address and content of the answer."""
        address, size = struct.unpack("<II", self.instance.memory.read(RESULT_AT, 8))
        return address, self.instance.memory.read(address, size)


def compiled(allocator: str, folder: Path, first: str = "(i32.const 1024)") -> GuestEngine:
    source = GUEST.replace("FIRST", first).replace("ALLOCATOR", allocator)
    wasm, native = folder / "guest.wasm", folder / "guest.cwasm"
    wasm.write_bytes(wasmtime.wat2wasm(source))
    compile_guest(wasm, native)
    return GuestEngine(native)


def test_an_answer_is_written_where_the_guest_allocated_it(tmp_path: Path) -> None:
    """The others say nothing if this does not work."""
    guest = RawGuest(compiled("(i32.const 40000)", tmp_path))

    assert guest.ask() == 0
    assert guest.answer()[0] == 40_000
    assert guest.answer()[1].startswith(b'{"source":')


@pytest.mark.parametrize("address", [0, 131_000, 131_071, 131_072, -1, -2_000, 0x7FFFFFFF])
def test_an_answer_is_refused_where_the_guest_allocates_it_outside(
    tmp_path: Path, address: int
) -> None:
    """The allocator is the guest's own code, and says what it likes."""
    guest = RawGuest(compiled(f"(i32.const {address})", tmp_path))

    assert guest.ask() == -1


def test_memory_may_grow_while_an_answer_is_being_written(tmp_path: Path) -> None:
    """It may have moved: what was known of its place before is of no use any more."""
    grow = "(i32.mul (memory.grow (i32.const 100)) (i32.const 65536))"
    guest = RawGuest(compiled(grow, tmp_path))

    assert guest.ask() == 0
    assert guest.answer()[0] == 131_072
    assert guest.answer()[1].startswith(b'{"source":')


@pytest.mark.parametrize(
    ("allocator", "trap"), [("(unreachable)", "UNREACHABLE"), (ENDLESS, "OUT_OF_FUEL")]
)
def test_an_allocator_that_does_not_return_ends_the_cell(
    tmp_path: Path, allocator: str, trap: str
) -> None:
    """Inside of a call to the host as well as outside."""
    guest = RawGuest(compiled(allocator, tmp_path))

    with pytest.raises(GuestStoppedError) as caught:
        guest.ask()

    assert caught.value.trap_code == trap
    with pytest.raises(RuntimeError, match="cannot be entered"):
        guest.ask()


def test_a_cell_is_interrupted_inside_of_its_allocator(tmp_path: Path) -> None:
    engine = compiled(ENDLESS, tmp_path)
    guest = RawGuest(engine)
    guest.instance.fuel = 1 << 60
    guest.execution.interrupt()
    engine.tick()

    with pytest.raises(GuestStoppedError) as caught:
        guest.ask()

    assert isinstance(caught.value.cause, StopError)


def test_the_door_cannot_be_entered_from_inside_of_itself(tmp_path: Path) -> None:
    """An allocator that makes a request whenever one is answered would use up the host's stack."""
    allocator = f"(i32.add (i32.const 40000) (i32.mul (i32.const 0) {CALL_AGAIN}))"
    guest = RawGuest(compiled(allocator, tmp_path))

    assert guest.ask() == 0

    assert guest.instance.memory.read(64, 8) == bytes(8)


def test_a_guest_without_memory_for_its_cell_says_so(tmp_path: Path) -> None:
    """The first allocation, before anything of the guest has run."""
    guest = RawGuest(compiled("(i32.const 0)", tmp_path, first="(i32.const 0)"))

    with pytest.raises(GuestMemoryError):
        guest.ask()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> GuestEngine:
    return compiled("(i32.const 40000)", tmp_path_factory.mktemp("guest"))


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(start=ADDRESSES, size=ADDRESSES, to=ADDRESSES)
def test_no_argument_of_a_call_is_a_fault_of_the_hosts(
    engine: GuestEngine, start: int, size: int, to: int
) -> None:
    """Every call returns, and memory outside of the guest's own is out of its reach."""
    guest = RawGuest(engine)

    assert guest.ask(start, size, min(to, (1 << 32) - 5)) in (0, -1)
    guest.instance.close()
