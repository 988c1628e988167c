# Expect: completed
# Then: kept
"""Settings of the interpreter that outlive the cell, at the ends of what they may be."""

import gc
import sys

sys.setswitchinterval(1e-9)
sys.setswitchinterval(1e9)
sys.set_coroutine_origin_tracking_depth(1_000_000)
sys.set_int_max_str_digits(640)
sys.set_asyncgen_hooks(lambda *_: 1 / 0, lambda *_: 1 / 0)
sys.tracebacklimit = -5
sys.dont_write_bytecode = sys.flags = sys.version_info = None
sys.path[:] = ["/", "\0", 5]
sys.stdin = sys.__stdin__ = None
gc.set_threshold(1, 1, 1)
refused = 0
for setting in (lambda: sys.setswitchinterval(-1), lambda: sys.setrecursionlimit(1 << 40)):
    try:
        setting()
    except (ValueError, OverflowError):
        refused += 1
assert refused == 2, refused
