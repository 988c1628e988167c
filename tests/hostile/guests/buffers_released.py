# Expect: completed
# Then: kept
"""Buffers that are resized, released or freed while something still looks into them."""

import array

refused = 0
data = bytearray(b"x" * 1_000)
view = memoryview(data)
for change in (data.clear, lambda: data.extend(b"y"), lambda: data.__delitem__(slice(10))):
    try:
        change()
    except BufferError:
        refused += 1


class Releasing:
    def __index__(self):
        view.release()
        data.clear()
        return 65


try:
    view[900] = Releasing()
except (ValueError, IndexError):
    refused += 1
numbers = array.array("l", range(1_000))
numbers.__reduce_ex__(3)
assert refused == 4, refused
