"""A process that checks one large JSON value, which it reads from its standard input, and ends.

Started by `json_check` with the number of an open file, which gets the index. It prints what is
wrong, if anything is. The value is untrusted: memory is bounded, and there is no core to dump.
"""

from __future__ import annotations

import resource
import sys

from common.blob_index.json_scan import index_stream
from common.blob_index.source import StreamSource, UnindexableError

_MEMORY_BYTES_MAX = 2 << 30


def main() -> None:
    """Check standard input and write its index."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES_MAX, _MEMORY_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        index_stream(StreamSource(sys.stdin.buffer), int(sys.argv[1]))
    except (UnindexableError, MemoryError) as error:
        print(str(error) or "it takes too much memory to check")


if __name__ == "__main__":
    main()
