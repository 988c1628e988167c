"""Runs the sandbox service as a kernel without Landlock would: its first call does not exist.

A filter of system calls stands in for the kernel; it stays with every process of the service.
"""

from __future__ import annotations

import ctypes
import errno
import platform

from sandbox_service.__main__ import main
from sandbox_service.jail import bpf, kernel, privileges

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def forget_landlock() -> None:
    """Have this process, and all that it starts, find no Landlock."""
    number = kernel.numbers()["landlock_create_ruleset"]
    rules = {number: bpf.Rule(bpf.refuse(errno.ENOSYS))}
    code = bpf.assemble(_ARCHITECTURES[platform.machine()], rules, bpf.ALLOW, 1 << 30)
    instructions = ctypes.create_string_buffer(code, len(code))
    program = (ctypes.c_uint64 * 2)(len(code) // 8, ctypes.addressof(instructions))
    privileges.forbid_new_privileges()
    kernel.syscall("seccomp", 1, 0, program)


if __name__ == "__main__":
    forget_landlock()
    main()
