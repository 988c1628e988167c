# Expect: trapped
# Then: restored
"""Aborts, as the C library does when it gives up."""

import os

os.abort()
