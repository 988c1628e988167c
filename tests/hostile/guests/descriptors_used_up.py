# Expect: completed
# Then: kept
"""Opens the library until it is refused, and leaves everything open."""

import os

opened = []
try:
    while len(opened) < 10_000:
        opened.append(os.open("/usr/local/lib/python315.zip", os.O_RDONLY))
except OSError:
    assert 0 < len(opened) < 1_000, len(opened)
os.close(opened[5])
assert os.open("/usr/local/lib/python315.zip", os.O_RDONLY) == opened[5]
