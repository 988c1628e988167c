# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""A trace function stays after the cell, and sees the runtime's own functions being called."""

import sys


def trace(frame, event, argument):
    if "fathom" in frame.f_code.co_filename:
        while True:
            pass
    return trace


sys.settrace(trace)
