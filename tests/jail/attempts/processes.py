"""Attempts at other processes, and to become or make one."""

from __future__ import annotations

import ctypes
import os
import signal
import threading

from sandbox_service.jail import kernel
from tests.jail.attempts.attempt import LIBC, Surroundings, attempt, checked


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
