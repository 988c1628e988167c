# Expect: completed
# Then: kept
# Limits: memory_mib=256
"""A request of fifty megabytes: more than the host takes, well formed as it is."""

import _host

try:
    _host.call(b'{"call":"cell"' + b" " * (50 << 20) + b"}")
    raise AssertionError("it was taken")
except (OSError, RuntimeError):
    pass
