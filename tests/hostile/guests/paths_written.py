# Expect: completed
# Then: kept
"""Every way to change a file system, tried on the library and beside it."""

import os

library = "/usr/local/lib/python315.zip"
beside = "/usr/local/lib/new"
tries = [
    lambda: open(library, "r+b", buffering=0).write(b"x"),
    lambda: open(library, "r+b").truncate(0),
    lambda: open(library, "ab"),
    lambda: open(library, "wb"),
    lambda: open(beside, "w"),
    lambda: open(beside, "x"),
    lambda: os.open(library, os.O_RDWR | os.O_TRUNC),
    lambda: os.open(beside, os.O_CREAT | os.O_WRONLY, 0o777),
    lambda: os.mkdir(beside),
    lambda: os.symlink("/etc", beside),
    lambda: os.link(library, beside),
    lambda: os.rename(library, beside),
    lambda: os.unlink(library),
    lambda: os.rmdir("/usr/local/lib"),
    lambda: os.truncate(library, 0),
    lambda: os.utime(library, (0, 0)),
    lambda: os.readlink(library),
    lambda: os.listdir("/usr/local/lib"),
    lambda: os.listdir("/"),
    lambda: os.chdir("/"),
    lambda: __import__("tempfile").mkstemp(),
    lambda: os.mkfifo(beside),
    lambda: os.memfd_create("x"),
]
refused = 0
for attempt in tries:
    try:
        attempt()
    except (OSError, AttributeError, ValueError):
        refused += 1
assert refused == len(tries), refused
