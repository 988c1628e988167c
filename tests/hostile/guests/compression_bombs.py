# Expect: completed
# Then: kept
# Limits: memory_mib=64
"""Kilobytes that unpack into more than there is memory, and archives that are none."""

import bz2
import io
import lzma
import zipfile
import zlib

packer = zlib.compressobj(1)
bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(40)) + packer.flush()
refused = 0
for unpack in (
    lambda: zlib.decompress(bomb),
    lambda: zlib.decompressobj().decompress(bomb),
    lambda: lzma.decompress(b"\xfd7zXZ\0" + bytes(100)),
    lambda: bz2.decompress(b"BZh9" + bytes(100)),
    lambda: zipfile.ZipFile(io.BytesIO(b"PK\x05\x06" + b"\xff" * 18)),
):
    try:
        unpack()
    except (MemoryError, OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile, ValueError):
        refused += 1
assert refused == 5, refused
