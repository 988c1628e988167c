"""Which system calls a worker has left, and the filter that holds it to them.

The list was measured: what CPython, libc and wasmtime call between a worker's first session and
its end. Anything else fails with EPERM; what only an attack calls ends the process.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform

from sandbox_service.jail import bpf, kernel
from sandbox_service.jail.bpf import ALLOW, KILL_PROCESS, Argument, Rule
from sandbox_service.jail.privileges import forbid_new_privileges
from sandbox_service.jail.syscall_numbers import SyscallNumbers
from sandbox_service.jail.wall import WallError

_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NUMBER_END = 1 << 30
"""From here on x86-64 has the calls of its 32-bit pointers ABI, which nothing of ours uses."""
_EMPTY_PATH = 0x1000
_F_DUPFD_CLOEXEC = 1030
_F_GETFD, _F_SETFD, _F_GETFL = 1, 2, 3
_THREAD = 0x00010D00
"""CLONE_THREAD, and what threads of one process share: VM, SIGHAND, FILES."""
_NOT_OF_A_THREAD = 0x7E82F000 | 0xFF | 3 << 32
"""New namespaces, tracing, vfork, another parent, a descriptor of it, an exit signal, another
control group."""

_FREE = """
read write writev close fstat lseek pread64 preadv preadv2 pwrite64 ftruncate
munmap mremap madvise brk
futex sched_yield sched_getaffinity set_robust_list rseq exit exit_group gettid getpid
rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall
getrandom clock_gettime clock_nanosleep nanosleep gettimeofday
"""
"""What may be called with any arguments. Descriptors are all of our own choice, and none can be
opened, so what is done with one needs no check."""
_DEADLY = """
execve execveat fork vfork ptrace kcmp process_vm_readv process_vm_writev process_madvise
pidfd_open pidfd_getfd pidfd_send_signal
bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register io_setup io_submit
keyctl add_key request_key
init_module finit_module delete_module kexec_load kexec_file_load reboot
mount umount2 chroot pivot_root unshare setns
open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr
open_by_handle_at name_to_handle_at
setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset
personality swapon swapoff acct quotactl syslog iopl ioperm modify_ldt lookup_dcookie
"""
"""What nothing of ours ever calls: an attack, and there may be a next attempt."""
_INT = 0xFFFFFFFF
"""The kernel reads 32 bits of such an argument; what is above them is anything."""
_SOCKET_CALLS = ("recvmsg", "sendto")
CALLS = (*_FREE.split(), *_DEADLY.split(), *_SOCKET_CALLS)
"""Names of all calls that have one of these rules."""


def restrict(socket_fd: int | None) -> None:
    """Leave the process the calls of a worker, for good; sockets only the one given.

    Whatever ends in new executable memory is refused as well, so all native code must be there.
    Raises OSError where the kernel has no such filters, WallError on an unknown architecture.
    """
    rules = rules_for(kernel.numbers(), socket_fd, os.getpid())
    architecture = _ARCHITECTURES[platform.machine()]
    code = bpf.assemble(architecture, rules, bpf.refuse(errno.EPERM), _NUMBER_END)
    instructions = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the number of instructions, padded, and their address.
    program = (ctypes.c_uint64 * 2)(len(code) // 8, ctypes.addressof(instructions))
    forbid_new_privileges()
    thread = kernel.syscall("seccomp", _SET_MODE_FILTER, _ALL_THREADS, program)
    if thread:
        raise WallError(f"thread {thread} has a filter of its own")


def rules_for(numbers: SyscallNumbers, socket_fd: int | None, pid: int) -> dict[int, Rule]:
    """Return the rules by number of the call; what has none fails with EPERM."""
    rules = {name: Rule(ALLOW) for name in _FREE.split()}
    rules |= {name: Rule(KILL_PROCESS) for name in _DEADLY.split()}
    not_executable = Argument(2, 0, mmap.PROT_EXEC)
    rules |= {name: _only_if(not_executable) for name in ("mmap", "mprotect")}
    if socket_fd is not None:
        rules |= {name: _only_if(Argument(0, socket_fd, _INT)) for name in _SOCKET_CALLS}
    rules |= {
        # libc's fstat. A path cannot be told from none here: see docs/security.md on stat.
        "newfstatat": _only_if(Argument(3, _EMPTY_PATH, _INT)),
        "clone": _only_if(Argument(0, _THREAD, _THREAD | _NOT_OF_A_THREAD)),
        # Its flags are in memory, where no filter sees them: libc then takes clone.
        "clone3": Rule(bpf.refuse(errno.ENOSYS)),
        "fcntl": _one_of(1, _F_GETFD, _F_SETFD, _F_GETFL, _F_DUPFD_CLOEXEC),
        # abort() and faults that are raised anew, to end this very process.
        "tgkill": _only_if(Argument(0, pid, _INT)),
        # Reading one's own limits; no new ones are given.
        "prlimit64": _only_if(Argument(0, 0, _INT), Argument(2, 0)),
    }
    return {numbers[name]: rule for name, rule in rules.items() if name in numbers}


def _only_if(*conditions: Argument) -> Rule:
    return Rule(ALLOW, (conditions,), bpf.refuse(errno.EPERM))


def _one_of(index: int, *values: int) -> Rule:
    alternatives = tuple((Argument(index, value, _INT),) for value in values)
    return Rule(ALLOW, alternatives, bpf.refuse(errno.EPERM))
