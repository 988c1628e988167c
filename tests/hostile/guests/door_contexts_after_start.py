# Expect: completed
# Then: kept
"""Contexts are loaded before any cell runs: afterwards nobody may have the host write memory."""

import _host

refused = 0
for frame in (
    b'{"call":"mounts"}',
    b'{"call":"texts","mount":0,"start":0}',
    b'{"call":"fill","mount":0,"text":0,"address":0}',
    b'{"call":"fill","mount":0,"text":0,"address":4294967295}',
    b'{"call":"fill","mount":9223372036854775807,"text":0,"address":65536}',
):
    try:
        _host.call(frame)
    except (OSError, RuntimeError):
        refused += 1
assert refused == 5, refused
