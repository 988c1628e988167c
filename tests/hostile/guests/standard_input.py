# Expect: completed
# Then: kept
"""Waits for a person: nobody is there to answer."""

import code
import sys

assert sys.stdin.read() == ""
refused = 0
for attempt in (input, breakpoint, code.interact, sys.stdin.buffer.raw.readall):
    try:
        assert not attempt()
        refused += 1
    except (EOFError, SystemExit, OSError, Exception):
        refused += 1
assert refused == 4, refused
