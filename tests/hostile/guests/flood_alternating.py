# Expect: completed
# Then: kept
# Limits: output_bytes=65536
"""Changes the stream with each byte, so that none can be joined with the one before it."""

import os

for _ in range(2_000):
    os.write(1, b"a")
    os.write(2, b"b")
