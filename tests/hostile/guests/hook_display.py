# Expect: completed
# Then: kept
"""The interpreter's hooks for showing values and errors, each of which raises."""

import sys


def refuse(*_):
    raise SystemExit


sys.displayhook = sys.excepthook = sys.unraisablehook = sys.breakpointhook = refuse
sys.last_exc = sys.ps1 = object()
