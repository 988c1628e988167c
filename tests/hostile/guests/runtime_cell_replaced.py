# Expect: completed
# Then: lost
"""Answers to that name with a function that does nothing: no cell is ever fetched."""

import builtins

builtins.__cell__ = lambda: None
