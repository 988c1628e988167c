# Expect: exited SystemExit
# Then: kept
"""Leaves with a value whose text raises the next exit."""


class Code:
    def __str__(self):
        raise SystemExit(self)

    __repr__ = __str__


raise SystemExit(Code())
