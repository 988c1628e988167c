# Expect: completed
# Then: lost
"""Removes every module from the table; the next cell would need one."""

import sys

sys.modules.clear()
