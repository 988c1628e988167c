# Expect: completed
# Then: kept
"""Comes back through the door from destructors and callbacks, while a request is being made."""

import gc
import weakref

import _host


class Knocking:
    def __del__(self):
        for frame in (b'{"call":"cell"}', b"junk"):
            try:
                knocks.append(_host.call(frame))
            except (OSError, RuntimeError) as error:
                knocks.append(error)


class Text(str):
    def encode(self, *_):
        Knocking()
        return str.encode(self)

    def __str__(self):
        Knocking()
        return self


knocks = []
gc.set_threshold(1)
held = Knocking()
finalizer = weakref.finalize(held, Knocking)
del held
for _ in range(20):
    cycle = [Knocking()]
    cycle.append(cycle)
    llm_query(Text("hello"))
assert len(knocks) >= 4, len(knocks)
