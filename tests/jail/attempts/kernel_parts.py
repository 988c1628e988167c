"""Attempts at parts of the kernel that no worker needs."""

from __future__ import annotations

import ctypes
import os

from sandbox_service.jail import kernel
from tests.jail.attempts.attempt import LIBC, Surroundings, attempt, checked


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
