# Expect: completed
# Then: kept
"""Serialized code objects from noise: whatever is not refused is never run."""

import marshal
import random

noise = random.Random(3)
template = marshal.dumps(compile("x = [1, 'a', (2.5, None)]", "t", "exec"))
for _ in range(3_000):
    data = bytearray(template)
    for _ in range(noise.randrange(1, 6)):
        data[noise.randrange(len(data))] = noise.randrange(256)
    try:
        marshal.loads(bytes(data))
    except (ValueError, TypeError, EOFError, MemoryError, SystemError, OverflowError, SyntaxError):
        continue
