# Expect: completed
# Then: kept
"""Threads would go on after the cell; there are none to be had."""

import _thread
import threading

refused = 0
for attempt in (
    lambda: _thread.start_new_thread(print, ()),
    lambda: _thread.start_joinable_thread(print),
    lambda: threading.Thread(target=print).start(),
    lambda: threading.Timer(0, print).start(),
):
    try:
        attempt()
    except (RuntimeError, AttributeError):
        refused += 1
assert refused == 4, refused
