# Expect: completed
# Then: kept
"""Reports of findings that nobody made: patterns that there are not, too many, too long."""

import _host

FINDING = b'{"pattern":"%s","line":%s,"detail":"%s"}'
refused = 0
for findings in (
    b"",
    b",".join([FINDING % (b"ctypes", b"1", b"")] * 21),
    FINDING % (b"no such pattern", b"1", b""),
    FINDING % (b"ctypes", b"-1", b""),
    FINDING % (b"ctypes", b"99999999999", b""),
    FINDING % (b"ctypes", b"1", b"x" * 201),
    b"null",
):
    try:
        _host.call(b'{"call":"findings","findings":[%s]}' % findings)
    except (OSError, RuntimeError):
        refused += 1
assert refused == 7, refused
