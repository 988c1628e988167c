"""A process that indexes one blob and ends: so that no worker, which runs untrusted code, ever
makes an index that others rely on, and a blob that is hard to read harms nobody else.

Started by `index_builds` with two open files, the blob's and the index's. It raises the walls
of a worker around itself; whether they must stand is decided where workers are started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from common.blob_index import json_scan, text_index
from common.blob_index.source import UnindexableError
from sandbox_service.jail.walls import JailOptions, raise_walls

_BUILDERS: dict[str, Callable[[int, int, int], None]] = {
    "text": text_index.build,
    "json": json_scan.build,
}
"""What makes an index, by its kind: of a blob's file, its size and the file to write."""


def main() -> None:
    """Index a blob as the arguments say: kind, blob's and index's descriptor, parent process.

    Prints why it cannot be read, if it cannot.
    """
    kind, (source, target, parent_pid) = sys.argv[1], map(int, sys.argv[2:5])
    raise_walls(JailOptions(keep_fds=(sys.stdout.fileno(), source, target), parent_pid=parent_pid))
    try:
        _BUILDERS[kind](source, os.fstat(source).st_size, target)
    except (UnindexableError, OSError) as error:
        print(error)


if __name__ == "__main__":
    main()
