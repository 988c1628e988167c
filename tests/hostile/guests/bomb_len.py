# Expect: completed
# Then: kept
"""Lengths that are negative, huge, or raise."""


class Long:
    def __init__(self, length):
        self.length = length

    def __len__(self):
        if isinstance(self.length, BaseException):
            raise self.length
        return self.length


one, two, three = Long(-1), Long(1 << 100), Long((1 << 31) - 1)
four, five = Long(SystemExit()), Long("four")
