# Expect: trapped
# Then: restored
"""A trace function that raises: the runtime meets the exception, and cannot say how it ended."""

import sys


def trace(frame, event, argument):
    raise SystemExit


sys.settrace(trace)
