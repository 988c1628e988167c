# Expect: completed
# Then: lost
"""An audit hook cannot be removed again, and this one forbids everything."""

import sys


def forbid(event, arguments):
    raise RuntimeError(event)


sys.addaudithook(forbid)
