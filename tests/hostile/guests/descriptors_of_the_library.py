# Expect: completed
# Then: kept
"""Reads the library as no import does: from beyond its end, backwards, through huge buffers."""

import os

fd = os.open("/usr/local/lib/python315.zip", os.O_RDONLY)
size = os.lseek(fd, 0, os.SEEK_END)
assert os.read(fd, 100) == b""
os.lseek(fd, 1 << 40, os.SEEK_SET)
assert os.read(fd, 100) == b""
refused = 0
for offset, whence in ((-1, 0), (-(1 << 62), 1), ((1 << 63) - 1, 2), (0, 3), (0, 255)):
    try:
        os.lseek(fd, offset, whence)
    except (OSError, OverflowError):
        refused += 1
assert refused == 5, refused
os.lseek(fd, -100, os.SEEK_END)
assert len(os.read(fd, 1 << 20)) == 100
for _ in range(3):
    os.lseek(fd, 0, 0)
    assert len(os.read(fd, 20 << 20)) == min(size, 20 << 20)
try:
    os.write(fd, b"x")
    raise AssertionError("written")
except OSError:
    os.close(fd)
