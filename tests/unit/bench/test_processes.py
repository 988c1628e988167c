"""What benchmarks read of processes, tried on this one."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from bench.processes import PeakGrowth, taken_bytes

_MIB = 1 << 20


def test_memory_that_was_given_back_counts_at_its_peak() -> None:
    """A worker that needs the context twice, for a moment, needs it twice."""
    growth = PeakGrowth([os.getpid()])
    with mmap.mmap(-1, 64 * _MIB) as memory:
        for start in range(0, len(memory), mmap.PAGESIZE):
            memory[start] = 1

    assert 60 * _MIB < growth.end() < 90 * _MIB


def test_memory_is_watched_where_the_kernel_does_not_begin_its_peak_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only root may ask that of a jailed worker, and benchmarks are not run by root alone."""

    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    growth = PeakGrowth([os.getpid()])
    with mmap.mmap(-1, 64 * _MIB) as memory:
        for start in range(0, len(memory), mmap.PAGESIZE):
            memory[start] = 1
        grown = growth.end()

    assert 60 * _MIB < grown < 90 * _MIB


def test_an_anonymous_file_counts_once_and_while_it_is_held() -> None:
    """The layers of sessions are such files, and no mapping of them need exist."""
    pid = os.getpid()
    before = taken_bytes(pid, [])
    layer = os.memfd_create("layer")
    os.pwrite(layer, bytes(64 * _MIB), 0)
    copy = os.dup(layer)

    held = taken_bytes(pid, []) - before
    os.close(copy)
    os.close(layer)
    left = taken_bytes(pid, []) - before

    assert 60 * _MIB < held < 90 * _MIB
    assert left < 30 * _MIB


def test_workers_count_besides_the_service() -> None:
    pid = os.getpid()

    assert taken_bytes(pid, [pid]) > taken_bytes(pid, [])
