"""What native code would try that has left the guest: one function an attempt.

Each makes its calls through the C library and says how the last of them ended: `done`, or the
name of the error. Run inside a jail, so everything it needs is loaded with the module.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sandbox_service.jail import kernel

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
MAPPED = mmap.mmap(-1, 4096)
CODE = mmap.mmap(
    -1,
    4096,
    flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
    prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
)
LOW_LEVEL_PORT = b"\x02\x00\x00\x00\x7f\x00\x00\x01" + bytes(8)
"""A `sockaddr_in` of loopback, port 0; the port goes into the third and fourth byte."""


@dataclass(frozen=True)
class Surroundings:
    """What is outside of the jail, for attempts to reach for."""

    secret_file: str = ""
    """A file that anyone may read and write."""
    private_file: str = ""
    """A file that only the user who runs the tests may read."""
    folder: str = ""
    """A folder that anyone may write to."""
    parent: int = 0
    """The process that started this one."""
    neighbour: int = 0
    """Another process of the same user."""
    abstract_socket: str = ""
    """Name of an abstract Unix socket that listens."""
    port: int = 0
    """A TCP port that listens on loopback."""


Attempt = Callable[[Surroundings], str | None]
ATTEMPTS: dict[str, Attempt] = {}


def attempt(function: Attempt) -> Attempt:
    """Register an attempt under its name; it raises, returns what it saw, or has succeeded."""
    ATTEMPTS[function.__name__] = function
    return function


def outcome_of(name: str, around: Surroundings) -> str:
    """Make one attempt and say how it ended."""
    try:
        answer = ATTEMPTS[name](around)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done" if answer is None else answer


def checked(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# Files


@attempt
def read_a_file(around: Surroundings) -> None:
    os.open(around.secret_file, os.O_RDONLY)


@attempt
def read_a_private_file(around: Surroundings) -> None:
    os.open(around.private_file, os.O_RDONLY)


@attempt
def create_a_file(around: Surroundings) -> None:
    os.open(f"{around.folder}/created", os.O_CREAT | os.O_WRONLY, 0o600)


@attempt
def make_a_folder(around: Surroundings) -> None:
    Path(around.folder, "made").mkdir()


@attempt
def remove_a_file(around: Surroundings) -> None:
    Path(around.secret_file).unlink()


@attempt
def rename_a_file(around: Surroundings) -> None:
    Path(around.secret_file).rename(f"{around.secret_file}.moved")


@attempt
def link_a_file(around: Surroundings) -> None:
    os.link(around.secret_file, f"{around.folder}/linked")


@attempt
def make_a_symbolic_link(around: Surroundings) -> None:
    Path(around.folder, "linked").symlink_to(around.secret_file)


@attempt
def cut_a_file(around: Surroundings) -> None:
    os.truncate(around.secret_file, 0)


@attempt
def change_a_mode(around: Surroundings) -> None:
    Path(around.secret_file).chmod(0o777)


@attempt
def list_the_root(_: Surroundings) -> None:
    os.open("/", os.O_RDONLY | os.O_DIRECTORY)


@attempt
def tell_a_file_by_its_path(around: Surroundings) -> None:
    """As libc's fstat calls the kernel, but with a path: no filter can see the difference."""
    room = ctypes.create_string_buffer(256)
    path = around.secret_file.encode() + b"\0"
    kernel.syscall("newfstatat", -100, path, room, 0x1000)


@attempt
def change_the_folder(_: Surroundings) -> None:
    os.chdir("/tmp")


@attempt
def read_own_memory_as_a_file(_: Surroundings) -> None:
    os.open("/proc/self/mem", os.O_RDWR)


@attempt
def read_the_parents_environment(around: Surroundings) -> None:
    os.open(f"/proc/{around.parent}/environ", os.O_RDONLY)


@attempt
def read_a_core_filter(_: Surroundings) -> None:
    os.open("/proc/self/coredump_filter", os.O_RDWR)


# Network


@attempt
def open_an_internet_socket(_: Surroundings) -> None:
    checked(LIBC.socket(socket.AF_INET, socket.SOCK_STREAM, 0))


@attempt
def open_a_unix_socket(_: Surroundings) -> None:
    checked(LIBC.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0))


@attempt
def open_a_netlink_socket(_: Surroundings) -> None:
    checked(LIBC.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))


@attempt
def make_a_pair_of_sockets(_: Surroundings) -> None:
    checked(LIBC.socketpair(socket.AF_UNIX, socket.SOCK_STREAM, 0, (ctypes.c_int * 2)()))


@attempt
def connect_to_a_port(around: Surroundings) -> None:
    fd = checked(LIBC.socket(socket.AF_INET, socket.SOCK_STREAM, 0))
    address = LOW_LEVEL_PORT[:2] + around.port.to_bytes(2, "big") + LOW_LEVEL_PORT[4:]
    checked(LIBC.connect(fd, address, len(address)))


@attempt
def listen_on_a_port(_: Surroundings) -> None:
    fd = checked(LIBC.socket(socket.AF_INET, socket.SOCK_STREAM, 0))
    checked(LIBC.bind(fd, LOW_LEVEL_PORT, len(LOW_LEVEL_PORT)))


@attempt
def connect_to_an_abstract_socket(around: Surroundings) -> None:
    fd = checked(LIBC.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0))
    address = b"\x01\x00\0" + around.abstract_socket.encode()
    checked(LIBC.connect(fd, address, len(address)))


@attempt
def send_on_another_descriptor(_: Surroundings) -> None:
    checked(LIBC.send(2, b"x", 1, 0))


# Processes


@attempt
def execute_a_program(_: Surroundings) -> None:
    checked(LIBC.execv(b"/bin/true", (ctypes.c_char_p * 2)(b"true", None)))


@attempt
def execute_a_program_from_memory(_: Surroundings) -> None:
    kernel.syscall("execveat", 2, b"\0", None, None, 0x1000)


@attempt
def fork(_: Surroundings) -> None:
    child = checked(LIBC.fork())
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


@attempt
def start_a_thread(_: Surroundings) -> None:
    """What must go on working."""
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


@attempt
def trace_the_parent(around: Surroundings) -> None:
    kernel.syscall("ptrace", 0x4206, around.parent, None, None)


@attempt
def read_the_parents_memory(around: Surroundings) -> None:
    room = ctypes.create_string_buffer(8)
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(room), 8)
    kernel.syscall("process_vm_readv", around.parent, vector, 1, vector, 1, 0)


@attempt
def end_the_parent(around: Surroundings) -> None:
    """Signal 0 asks for the right to send any."""
    os.kill(around.parent, 0)


@attempt
def end_a_neighbour(around: Surroundings) -> None:
    os.kill(around.neighbour, signal.SIGTERM)


@attempt
def end_a_neighbours_thread(around: Surroundings) -> None:
    kernel.syscall("tgkill", around.neighbour, around.neighbour, signal.SIGTERM)


@attempt
def take_hold_of_a_neighbour(around: Surroundings) -> None:
    kernel.syscall("pidfd_open", around.neighbour, 0)


# Memory


@attempt
def map_executable_memory(_: Surroundings) -> None:
    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = LIBC.mmap(None, 4096, protection, flags, -1, 0)
    checked(-1 if address == ctypes.c_void_p(-1).value else 0)


@attempt
def make_memory_executable(_: Surroundings) -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(MAPPED))
    checked(LIBC.mprotect(address, 4096, mmap.PROT_READ | mmap.PROT_EXEC))


@attempt
def see_code_that_can_be_written(_: Surroundings) -> str:
    """Ours, at least, and as a rule that of callbacks."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return str(sum("wx" in line.split()[1] for line in lines))


@attempt
def write_to_code(_: Surroundings) -> None:
    CODE[0] = 0


@attempt
def make_a_file_in_memory(_: Surroundings) -> None:
    checked(LIBC.memfd_create(b"x", 0))


@attempt
def make_reading_mean_executing(_: Surroundings) -> None:
    kernel.syscall("personality", 0x0400000)


# What the kernel offers besides


@attempt
def start_an_io_ring(_: Surroundings) -> None:
    kernel.syscall("io_uring_setup", 1, ctypes.create_string_buffer(120))


@attempt
def load_a_kernel_program(_: Surroundings) -> None:
    kernel.syscall("bpf", 0, ctypes.create_string_buffer(128), 128)


@attempt
def use_the_key_ring(_: Surroundings) -> None:
    kernel.syscall("keyctl", 0, -3, 0)


@attempt
def add_a_key(_: Surroundings) -> None:
    kernel.syscall("add_key", b"user\0", b"x\0", b"x", 1, -3)


@attempt
def handle_page_faults(_: Surroundings) -> None:
    kernel.syscall("userfaultfd", 1)


@attempt
def count_events(_: Surroundings) -> None:
    kernel.syscall("perf_event_open", ctypes.create_string_buffer(128), 0, -1, -1, 0)


@attempt
def open_by_handle(_: Surroundings) -> None:
    kernel.syscall("open_by_handle_at", 2, ctypes.create_string_buffer(16), 0)


@attempt
def load_a_module(_: Surroundings) -> None:
    kernel.syscall("init_module", None, 0, b"\0")


@attempt
def load_a_kernel(_: Surroundings) -> None:
    kernel.syscall("kexec_load", 0, 0, None, 0)


@attempt
def make_namespaces(_: Surroundings) -> None:
    checked(LIBC.unshare(0x10000000))


@attempt
def enter_a_namespace(_: Surroundings) -> None:
    checked(LIBC.setns(2, 0))


@attempt
def mount(_: Surroundings) -> None:
    """Of a kind that does not exist: who may mount is told so, and nothing is changed."""
    checked(LIBC.mount(b"none", b"/", b"nonsense", 0, None))


@attempt
def change_the_root(_: Surroundings) -> None:
    os.chroot("/")


@attempt
def control_a_device(_: Surroundings) -> None:
    """TIOCSTI: type into the terminal that standard error may be."""
    checked(LIBC.ioctl(2, 0x5412, b"x"))


@attempt
def share_memory(_: Surroundings) -> None:
    checked(LIBC.shmget(0, 4096, 0o1600))


@attempt
def set_the_clock(_: Surroundings) -> None:
    """To before the machine was started, which no kernel does for anyone."""
    checked(LIBC.clock_settime(0, (ctypes.c_long * 2)(1, 0)))


# Rights


@attempt
def become_root(_: Surroundings) -> None:
    os.setuid(0)


@attempt
def join_groups(_: Surroundings) -> None:
    os.setgroups([0])


@attempt
def regain_capabilities(_: Surroundings) -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    administration = (ctypes.c_uint32 * 6)(1 << 21, 1 << 21)
    kernel.syscall("capset", header, administration)


@attempt
def allow_core_dumps(_: Surroundings) -> None:
    checked(LIBC.setrlimit(resource.RLIMIT_CORE, (ctypes.c_uint64 * 2)(1, 1)))


@attempt
def allow_larger_files(_: Surroundings) -> None:
    unlimited = (ctypes.c_uint64 * 2)(*[(1 << 64) - 1] * 2)
    checked(LIBC.setrlimit(resource.RLIMIT_FSIZE, unlimited))


@attempt
def become_traceable(_: Surroundings) -> None:
    kernel.prctl(4, 1)


@attempt
def outlive_the_parent(_: Surroundings) -> None:
    kernel.prctl(1, 0)


@attempt
def go_first(_: Surroundings) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, -1)


# What can be seen without asking


@attempt
def see_core_limit(_: Surroundings) -> str:
    return str(resource.getrlimit(resource.RLIMIT_CORE))


@attempt
def count_open_descriptors(_: Surroundings) -> str:
    return str(sum(LIBC.fcntl(fd, 1, 0) != -1 for fd in range(1024)))


@attempt
def see_the_environment(_: Surroundings) -> str:
    first = ctypes.c_void_p.in_dll(LIBC, "environ").value
    entry = ctypes.c_char_p.from_address(first).value if first else None
    return repr(entry)


@attempt
def see_the_folder(_: Surroundings) -> str:
    return str(Path.cwd())


@attempt
def see_the_file_mask(_: Surroundings) -> str:
    return oct(os.umask(0))


@attempt
def read_standard_input(_: Surroundings) -> str:
    return repr(os.read(0, 1))


@attempt
def see_whether_traceable(_: Surroundings) -> str:
    return str(kernel.prctl(3))


@attempt
def see_priority(_: Surroundings) -> str:
    return str(os.getpriority(os.PRIO_PROCESS, 0))


@attempt
def list_the_root_folder(_: Surroundings) -> str:
    return " ".join(path.name for path in Path("/").iterdir())


@attempt
def see_user(_: Surroundings) -> str:
    return "root" if 0 in (*os.getresuid(), *os.getresgid(), *os.getgroups()) else "other"


@attempt
def see_physical_addresses(_: Surroundings) -> str:
    """Read the page map wherever it is open, for a page that is in memory."""
    MAPPED[0] = 1
    address = ctypes.addressof(ctypes.c_char.from_buffer(MAPPED))
    frames = []
    for fd in range(64):
        try:
            entry = int.from_bytes(os.pread(fd, 8, address // 4096 * 8), "little")
        except OSError:
            continue
        if entry >> 63:  # present; other files end long before this offset
            frames.append(entry & (1 << 55) - 1)
    return f"{frames}" if any(frames) else "none"


@attempt
def lock_memory(_: Surroundings) -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(MAPPED))
    checked(LIBC.mlock(ctypes.c_void_p(address), 4096))


@attempt
def write_a_huge_file(_: Surroundings) -> None:
    fd = checked(LIBC.memfd_create(b"x", 0))
    os.ftruncate(fd, (4 << 30) + 1)
