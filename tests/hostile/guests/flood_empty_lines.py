# Expect: completed
# Then: kept
# Limits: output_bytes=65536
"""Lines of nothing: many messages that carry no bytes worth counting."""

import os

os.write(1, b"\n" * 500_000)
os.write(2, b"\n" * 500_000)
