"""The filter of system calls: what the assembled program decides, for each architecture.

A few lines of interpreter stand in for the kernel, so that the other architecture is tested too.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_service.jail import bpf, seccomp
from sandbox_service.jail.bpf import ALLOW, KILL_PROCESS, Argument, Rule
from sandbox_service.jail.syscall_numbers import numbers_of

X86_64, AARCH64 = 0xC000003E, 0xC00000B7
MACHINES = {"x86_64": X86_64, "aarch64": AARCH64}
SOCKET, PID = 5, 4242
EPERM = bpf.refuse(errno.EPERM)
NUMBER_END = 1 << 30
READ, WRITE, EXECUTE = 1, 2, 4
THREAD_FLAGS = 0x3D0F00
SIGCHLD = 17
TO_RAISE_WALLS = ("capget", "landlock_create_ruleset", "landlock_restrict_self", "seccomp")
"""Called by walls before the filter stands; afterwards they are refused like any other."""


def decided(program: bytes, architecture: int, number: int, arguments: Sequence[int] = ()) -> int:
    """Run a program as the kernel does and return its decision."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *padded)
    code = list(struct.iter_unpack("=HBBI", program))
    position, value = 0, 0
    while True:
        operation, if_true, if_false, operand = code[position]
        position += 1
        if operation == 0x20:
            (value,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x54:
            value &= operand
        elif operation == 0x05:
            position += operand
        elif operation == 0x15:
            position += if_true if value == operand else if_false
        elif operation == 0x35:
            position += if_true if value >= operand else if_false
        else:
            assert operation == 0x06
            return int(operand)


class Filter:
    """A worker's filter for one architecture."""

    def __init__(self, machine: str) -> None:
        numbers = numbers_of(machine)
        assert numbers is not None
        self.numbers = numbers
        self.architecture = MACHINES[machine]
        rules = seccomp.rules_for(numbers, SOCKET, PID)
        self.program = bpf.assemble(self.architecture, rules, EPERM, NUMBER_END)

    def of(self, name: str, *arguments: int) -> int:
        return decided(self.program, self.architecture, self.numbers[name], arguments)


@pytest.fixture(params=MACHINES)
def worker(request: pytest.FixtureRequest) -> Filter:
    return Filter(request.param)


def test_the_kernel_takes_a_program_of_this_length(worker: Filter) -> None:
    """BPF_MAXINSNS is 4096; a call should cost far less than that."""
    assert len(worker.program) // 8 < 500


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_those_of_the_rules(machine: str) -> None:
    """A name that is misspelt would be refused, and nobody would know why."""
    numbers = numbers_of(machine)
    assert numbers is not None

    ruled = set(seccomp.rules_for(numbers, SOCKET, PID))
    spoken_of = {numbers[name] for name in numbers if name not in TO_RAISE_WALLS}

    assert ruled == spoken_of
    assert len(set(numbers.values())) == len(numbers)
    if machine == "x86_64":  # which has every call that there is
        assert set(seccomp.CALLS) <= set(numbers)


@pytest.mark.parametrize("name", ["futex", "pread64", "pwrite64", "munmap", "exit_group"])
def test_what_a_worker_needs_is_allowed(worker: Filter, name: str) -> None:
    assert worker.of(name) == ALLOW


@pytest.mark.parametrize("name", ["execve", "ptrace", "bpf", "io_uring_setup", "setuid", "unshare"])
def test_what_only_an_attack_calls_is_deadly(worker: Filter, name: str) -> None:
    assert worker.of(name) == KILL_PROCESS


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 2), ("x86_64", 41), ("aarch64", 56)])
def test_what_is_not_named_is_refused(machine: str, number: int) -> None:
    """open and socket of one architecture, openat of the other."""
    worker = Filter(machine)

    assert decided(worker.program, worker.architecture, number) == EPERM


def test_a_call_that_no_kernel_has_yet_is_refused(worker: Filter) -> None:
    assert decided(worker.program, worker.architecture, NUMBER_END - 1) == EPERM


def test_calls_of_another_architecture_are_deadly(worker: Filter) -> None:
    """Their numbers mean other calls."""
    (other,) = set(MACHINES.values()) - {worker.architecture}

    assert decided(worker.program, other, worker.numbers["futex"]) == KILL_PROCESS
    assert decided(worker.program, 0x40000003, worker.numbers["futex"]) == KILL_PROCESS


def test_calls_with_32_bit_pointers_are_deadly(worker: Filter) -> None:
    """On x86-64 they are the same calls under other numbers, and would go around the list."""
    number = NUMBER_END + worker.numbers["pread64"]

    assert decided(worker.program, worker.architecture, number) == KILL_PROCESS


@pytest.mark.parametrize("name", ["mmap", "mprotect"])
def test_memory_never_becomes_executable(worker: Filter, name: str) -> None:
    assert worker.of(name, 0, 4096, READ | WRITE) == ALLOW
    assert worker.of(name, 0, 4096, READ | EXECUTE) == EPERM
    assert worker.of(name, 0, 4096, EXECUTE) == EPERM


@pytest.mark.parametrize("name", ["recvmsg", "sendto"])
def test_only_the_one_socket_is_spoken_to(worker: Filter, name: str) -> None:
    assert worker.of(name, SOCKET) == ALLOW
    assert worker.of(name, SOCKET | 7 << 32) == ALLOW  # the kernel reads 32 bits
    assert worker.of(name, SOCKET + 1) == EPERM


def test_a_process_without_a_socket_may_speak_to_none() -> None:
    numbers = numbers_of("x86_64")
    assert numbers is not None

    rules = seccomp.rules_for(numbers, None, PID)

    assert numbers["sendto"] not in rules


@pytest.mark.parametrize(
    ("flags", "is_allowed"),
    [
        (THREAD_FLAGS, True),
        (SIGCHLD, False),
        (THREAD_FLAGS & ~0x10000, False),
        (THREAD_FLAGS | 0x10000000, False),
        (THREAD_FLAGS | 0x2000, False),
        (THREAD_FLAGS | SIGCHLD, False),
    ],
    ids=["a thread", "a process", "shared memory", "a user namespace", "traced", "with a signal"],
)
def test_only_threads_are_started(worker: Filter, flags: int, is_allowed: bool) -> None:
    assert worker.of("clone", flags) == (ALLOW if is_allowed else EPERM)


def test_libc_falls_back_from_the_call_whose_flags_cannot_be_seen(worker: Filter) -> None:
    assert worker.of("clone3") == bpf.refuse(errno.ENOSYS)


def test_signals_go_to_the_own_process_only(worker: Filter) -> None:
    assert worker.of("tgkill", PID, PID, 6) == ALLOW
    assert worker.of("tgkill", PID + 1, PID + 1, 6) == EPERM


def test_limits_are_read_and_not_set(worker: Filter) -> None:
    assert worker.of("prlimit64", 0, 7, 0, 1 << 40) == ALLOW
    assert worker.of("prlimit64", 0, 7, 1 << 40) == EPERM
    assert worker.of("prlimit64", PID + 1, 7, 0, 1 << 40) == EPERM


@pytest.mark.parametrize(("command", "decision"), [(1030, ALLOW), (3, ALLOW), (8, EPERM)])
def test_a_descriptor_is_copied_and_given_no_owner(
    worker: Filter, command: int, decision: int
) -> None:
    """An owner is sent signals."""
    assert worker.of("fcntl", 3, command) == decision


def test_a_status_is_asked_for_by_descriptor(worker: Filter) -> None:
    assert worker.of("fstat", 3) == ALLOW
    assert worker.of("newfstatat", 3, 0, 0, 0x1000) == ALLOW
    assert worker.of("newfstatat", 3, 0, 0, 0) == EPERM


U64 = st.integers(0, (1 << 64) - 1)
ARGUMENTS = st.builds(Argument, st.integers(0, 5), U64, st.sampled_from([1, 0xFF00, 1 << 40, ~0]))
ACTIONS = st.sampled_from([ALLOW, EPERM, bpf.refuse(errno.ENOSYS)])
RULES = st.builds(
    Rule,
    ACTIONS,
    st.lists(st.lists(ARGUMENTS, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
    ACTIONS,
)


def meant(rules: dict[int, Rule], number: int, arguments: Sequence[int]) -> int:
    """Say what rules mean, without any program."""
    rule = rules.get(number, Rule(EPERM))
    holds = [
        all((arguments[a.index] ^ a.value) & a.mask & ~(~0 << 64) == 0 for a in alternative)
        for alternative in rule.alternatives
    ]
    return rule.action if not holds or any(holds) else rule.otherwise


@given(
    st.dictionaries(st.integers(0, 60), RULES, max_size=40),
    st.integers(0, 61),
    st.lists(U64 | st.just(0), min_size=6, max_size=6),
)
def test_a_program_decides_as_its_rules_say(
    rules: dict[int, Rule], number: int, arguments: list[int]
) -> None:
    program = bpf.assemble(X86_64, rules, EPERM, 1 << 30)

    assert decided(program, X86_64, number, arguments) == meant(rules, number, arguments)
