"""How much memory this host, or its control group, has for us, and what processes take of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_UNLIMITED = 1 << 60
"""Version 1 of control groups says a number near 2^63 where it means none."""


def memory_bytes(root: Path = Path("/")) -> int:
    """Return the least of what the host has and what its control groups allow."""
    return min(_host_bytes(root), *_group_limits(root), _UNLIMITED)


def private_bytes(pids: Iterable[int], root: Path = Path("/")) -> int:
    """Return the memory that these processes have for themselves; a dead one has none."""
    return sum(_anonymous_bytes(root / f"proc/{pid}/status") for pid in pids)


def _anonymous_bytes(status: Path) -> int:
    try:
        lines = status.read_text("ascii", "replace").splitlines()
    except OSError:  # it ended meanwhile
        return 0
    for line in lines:
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def _host_bytes(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_limits(root: Path) -> Iterator[int]:
    """Yield the limits of our control group and of those above it, in both versions."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # a kernel without control groups
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if not controllers:
            yield from _limits_above(root / "sys/fs/cgroup", path, "memory.max")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            yield from _limits_above(mount, path, "memory.limit_in_bytes")


def _limits_above(mount: Path, path: str, name: str) -> Iterator[int]:
    inner = mount / path.strip("/")
    for folder in (inner, *inner.parents):
        if not folder.is_relative_to(mount):
            return
        try:
            text = (folder / name).read_text("ascii").strip()
        except OSError:  # the root has none, and a container does not see what is above it
            continue
        if text.isdecimal():
            yield int(text)
