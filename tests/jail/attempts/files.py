"""Attempts at files and folders."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from sandbox_service.jail import kernel
from tests.jail.attempts.attempt import Surroundings, attempt


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
