# Expect: completed
# Then: kept
"""Built-in functions that the runtime might use, each replaced by one that spins."""

import builtins


def spin(*_, **__):
    while True:
        pass


for name in ("repr", "any", "sorted", "open", "input", "hash", "id", "vars", "dir"):
    setattr(builtins, name, spin)
