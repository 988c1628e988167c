"""A worker that ends itself when it loads or opens anything after its walls are raised.

In the jail that would only fail, here and there and as something else; this says what it was.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from sandbox_service.jail.wall import Wall
from sandbox_service.jail.walls import WALLS, JailOptions, raise_walls
from sandbox_service.worker import worker

_FORBIDDEN = ("import", "open", "os.listdir", "os.scandir", "socket.__new__", "subprocess.Popen")


def raise_and_watch(options: JailOptions, names: Iterable[str] = WALLS) -> list[Wall]:
    """Raise walls as a worker does, and listen to what the interpreter does after the last."""
    names = tuple(names)
    walls = raise_walls(options, names)
    if WALLS[-1] in names:
        sys.addaudithook(_watch)
    return walls


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event in _FORBIDDEN:
        os.write(2, f"after its walls were raised: {event} {arguments}\n".encode())
        os._exit(70)


if __name__ == "__main__":
    worker.raise_walls = raise_and_watch  # type: ignore[attr-defined]
    worker.main()
