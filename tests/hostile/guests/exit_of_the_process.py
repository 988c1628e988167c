# Expect: exited SystemExit
# Then: restored
"""Ends the process behind Python's back: there is no process, only an instance."""

import os

os._exit(0)
