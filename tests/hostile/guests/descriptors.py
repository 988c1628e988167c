# Expect: completed
# Then: kept
"""Descriptors that are negative, huge, closed, or not of the kind that the call is for."""

import os

calls = [
    lambda fd: os.read(fd, 10),
    lambda fd: os.pread(fd, 10, 0),
    lambda fd: os.pwrite(fd, b"x", 0),
    lambda fd: os.lseek(fd, 0, 0),
    lambda fd: os.ftruncate(fd, 0),
    lambda fd: os.fsync(fd),
    lambda fd: os.dup2(fd, 50),
    lambda fd: os.write(fd, b"x"),
]
refused = taken = 0
for fd in (-1, -(1 << 31), 3, 4, 63, 64, 99, 1_000, (1 << 31) - 1):
    for call in calls:
        try:
            call(fd)
            taken += 1
        except (OSError, AttributeError, OverflowError, ValueError):
            refused += 1
assert (taken, refused) == (0, 72), (taken, refused)
