"""What the kernel tells of processes: children, memory and its peak. Linux only."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

_BLOCK_BYTES = 512
_WATCH_S = 0.002


def worker_pids(service_pid: int) -> list[int]:
    """Return the process ids of a service's children."""
    if not sys.platform.startswith("linux"):
        raise RuntimeError("the benchmarks read /proc and so need Linux")
    pids: list[int] = []
    for task in Path(f"/proc/{service_pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # its thread has ended
            pids += map(int, task.read_text().split())
    return pids


def thread_count(pid: int) -> int:
    """Return how many threads a process has."""
    return _status_number(pid, "Threads:")


class PeakGrowth:
    """How much processes grow at their peak, files that they map included."""

    def __init__(self, pids: Sequence[int]) -> None:
        """Begin at what they take at present."""
        self._peaks: dict[int, int] | None = None
        self._is_over = threading.Event()
        try:
            for pid in pids:
                Path(f"/proc/{pid}/clear_refs").write_text("5")
        except PermissionError:  # a jailed process lets only root begin its peak anew
            self._peaks = dict.fromkeys(pids, 0)
            threading.Thread(target=self._watch, args=(self._peaks,), daemon=True).start()
        self._before = {pid: _status_bytes(pid, "VmRSS:") for pid in pids}

    def end(self) -> int:
        """Return the bytes that the process has grown by that grew most."""
        self._is_over.set()
        if self._peaks is None:
            peaks = {pid: _status_bytes(pid, "VmHWM:") for pid in self._before}
        else:
            _raise_peaks(self._peaks)
            peaks = self._peaks
        return max(peaks[pid] - before for pid, before in self._before.items())

    def _watch(self, peaks: dict[int, int]) -> None:
        while not self._is_over.wait(_WATCH_S):
            _raise_peaks(peaks)


def _raise_peaks(peaks: dict[int, int]) -> None:
    for pid, peak in peaks.items():
        peaks[pid] = max(peak, _status_bytes(pid, "VmRSS:"))


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process ever had, files that it maps included."""
    return _status_bytes(pid, "VmHWM:")


def taken_bytes(service_pid: int, worker_pids: Sequence[int]) -> int:
    """Return the memory that a sandbox service and its workers take and nobody else can have.

    Private pages, page tables, and the layers of sessions: the service holds a descriptor of
    each. Pages of files on disk are left out, since the kernel drops them when it needs room.
    """
    pids = [service_pid, *worker_pids]
    private = sum(_status_bytes(pid, "RssAnon:") + _status_bytes(pid, "VmPTE:") for pid in pids)
    return private + _anonymous_file_bytes(service_pid)


def _anonymous_file_bytes(pid: int) -> int:
    """Return what the memfds take that a process holds, each counted once."""
    found = {}
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if str(descriptor.readlink()).startswith("/memfd:"):
                status = descriptor.stat()
                found[status.st_ino] = status.st_blocks * _BLOCK_BYTES
        except FileNotFoundError:
            continue  # closed since
    return sum(found.values())


def _status_bytes(pid: int, field: str) -> int:
    return _status_number(pid, field) * 1024


def _status_number(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/status has no {field}")
