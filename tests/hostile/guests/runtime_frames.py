# Expect: completed
# Then: kept
"""Walks the stack down to the runtime, and finds in it nothing but the cell itself."""

import sys

frame = sys._getframe()
seen = []
while frame is not None:
    seen.append(frame.f_code.co_filename)
    for name, value in list(frame.f_locals.items()):
        assert "run-token-of-the" + "-corpus" not in repr(value)[:10_000], name
    frame = frame.f_back
assert len(seen) > 2, seen
