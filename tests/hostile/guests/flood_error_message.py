# Expect: raised ValueError
# Then: kept
# Limits: output_bytes=65536
"""An exception whose message is ten megabytes, and a note of as many beside it."""

error = ValueError("message " * 1_250_000)
error.add_note("note " * 2_000_000)
raise error
