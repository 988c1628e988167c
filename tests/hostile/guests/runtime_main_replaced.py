# Expect: completed
# Then: kept
"""Puts another module in the place of `__main__`, in which the next cell would run."""

import sys
import types

sys.modules["__main__"] = types.ModuleType("__main__")
