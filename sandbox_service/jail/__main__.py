"""Tells which walls this machine lets a process raise around itself, by raising them.

`python -m sandbox_service.jail` prints a line a wall and ends with 1 where one that must stand
around workers does not.
"""

from __future__ import annotations

import os
import sys

from sandbox_service.jail.walls import JailOptions, raise_walls, refusal


def main() -> None:
    """Raise the walls, say which stand, end."""
    output = sys.stdout.fileno()
    walls = raise_walls(JailOptions(keep_fds=[output], parent_pid=os.getppid()))
    missing = refusal(walls)
    lines = [f"{wall.name}: {'stands' if wall.raised else wall.detail}" for wall in walls]
    os.write(output, ("\n".join([*lines, *([missing] if missing else [])]) + "\n").encode())
    # The interpreter's own end would look for files that are out of reach.
    os._exit(1 if missing else 0)


if __name__ == "__main__":
    main()
