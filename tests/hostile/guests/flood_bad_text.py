# Expect: completed
# Then: kept
# Limits: output_bytes=65536
"""Bytes that are no text, NUL, lone surrogates, controls that would move a terminal's cursor."""

import os

os.write(1, bytes(range(256)) * 100)
os.write(2, b"\xf0\x9f" * 1000)
print("\ud800\udfff" * 100, "\0" * 1000, "\x1b[2J\x1b]0;title\x07", "\u202e", "\ufffe\uffff")
