"""The walls in the order in which they are raised, each said to stand or not.

For a process that has one thread yet, has opened all its files and loaded all its code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from sandbox_service.jail import (
    descriptors,
    landlock,
    namespaces,
    native_code,
    privileges,
    resources,
    seccomp,
)
from sandbox_service.jail.wall import Wall, WallError

_DETAIL_CHARACTERS = 500


@dataclass(frozen=True, kw_only=True)
class JailOptions:
    """What a process keeps inside."""

    keep_fds: Collection[int]
    """Descriptors that stay open, besides standard error."""
    parent_pid: int
    """The process that this one ends with."""
    socket_fd: int | None = None
    """The one socket that is sent to and received from; one of `keep_fds`."""
    niceness: int = 0
    """How much later than others it gets processor time, 0 to 19."""


_RAISE: dict[str, Callable[[JailOptions], None]] = {
    "descriptors": lambda options: descriptors.close_others(options.keep_fds),
    "native_code": lambda _: native_code.seal(),
    "resources": lambda options: resources.limit(options.niceness),
    "user": lambda _: privileges.leave_root(),
    "namespaces": lambda _: namespaces.enter(),
    "root": lambda _: namespaces.empty_root(),
    "privileges": lambda options: privileges.drop(options.parent_pid),
    "landlock": lambda _: landlock.restrict(),
    "seccomp": lambda options: seccomp.restrict(options.socket_fd),
}
WALLS = tuple(_RAISE)
"""Names of the walls, in the order in which they are raised."""
REMEDIES = {
    "descriptors": "give the service a /dev/null",
    "native_code": "give the service a /proc, and let memory be made read-only",
    "resources": "let the service lower its own limits",
    "privileges": "start the service as an ordinary user, with every capability dropped",
    "landlock": "use Linux 5.13 or later with `landlock` in the kernel's list of security modules",
    "seccomp": "use a kernel with seccomp filters, on x86_64 or aarch64",
}
"""The walls that must stand, and what helps where one does not. The others depend on rights that
a container is often, and rightly, without."""


def raise_walls(options: JailOptions, names: Iterable[str] = WALLS) -> list[Wall]:
    """Raise the walls named, as a rule all, and say of each whether it stands.

    Raises RuntimeError in a process that has several threads, since some walls are a thread's,
    and ParentGoneError where there is nobody left to work for.
    """
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise RuntimeError(f"walls around a process of {threads} threads would have holes")
    walls: list[Wall] = []
    for name in names:
        walls.append(_raised(name, options, walls))
    return walls


def refusal(walls: Iterable[Wall]) -> str:
    """Return which wall does not stand that must, why, and what helps; empty where all do."""
    known = {wall.name: wall for wall in walls}
    for name, remedy in REMEDIES.items():
        wall = known.get(name, Wall(name, False, "nothing was said of it"))
        if not wall.raised:
            return f"the wall `{name}` around workers does not stand: {wall.detail}; {remedy}"
    return ""


def _raised(name: str, options: JailOptions, before: list[Wall]) -> Wall:
    # Elsewhere it would be the host's own root that is taken away.
    if name == "root" and Wall("namespaces", True) not in before:
        return Wall(name, False, "there is no mount namespace of its own")
    try:
        _RAISE[name](options)
    except (OSError, WallError) as error:
        return Wall(name, False, str(error)[:_DETAIL_CHARACTERS])
    return Wall(name, True)
