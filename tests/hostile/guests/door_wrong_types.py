# Expect: completed
# Then: kept
"""The door takes bytes: whatever else it is given must not reach the host as an address."""

import _host

refused = 0
values = [None, 5, "text", [], (1 << 40), memoryview(b"12345678")[::2], object(), print]
for value in values:
    try:
        _host.call(value)
    except (TypeError, OSError, RuntimeError, BufferError, OverflowError):
        refused += 1
for arguments in ((), (b"", b""), (b"", 0, 0, 0)):
    try:
        _host.call(*arguments)
    except (TypeError, OSError, RuntimeError):
        refused += 1
assert refused == len(values) + 3, refused
