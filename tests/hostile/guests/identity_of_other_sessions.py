# Expect: completed
# Then: kept
"""Looks for a neighbour's values by their addresses, at which it finds its own or nothing."""

assert "kept_by_the_neighbour" not in globals()
marker = "mark-of-the-" + "neighbour"

import gc

for found in gc.get_objects():
    if type(found) is dict:
        assert not any(
            type(value) is str and value == marker
            for value in list(found.values())
            if value is not marker
        ), found.keys()
