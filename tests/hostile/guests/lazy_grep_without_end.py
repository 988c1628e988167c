# Expect: timed_out TimeoutError
# Then: restored
# Context: lazy
# Limits: time_s=0.3
"""Searches again and again: the host's work is the cell's own time."""

while True:
    context.grep("no such line (x|y|z)+[0-9]{3}")
