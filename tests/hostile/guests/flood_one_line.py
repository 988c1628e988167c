# Expect: completed
# Then: kept
# Limits: output_bytes=65536
"""One line of ten million characters, without an end."""

import sys

sys.stdout.write("x" * 10_000_000)
