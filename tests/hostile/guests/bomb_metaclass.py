# Expect: completed
# Then: kept
"""A class whose own name is no text and whose checks of instances raise."""


class Meta(type):
    __name__ = property(lambda cls: 5)
    __module__ = property(lambda cls: 1 / 0)

    def __instancecheck__(cls, instance):
        raise SystemExit

    def __subclasscheck__(cls, kind):
        raise SystemExit

    def __eq__(cls, other):
        raise KeyboardInterrupt

    __hash__ = None


class Strange(metaclass=Meta):
    def __eq__(self, other):
        raise SystemExit


strange, kind = Strange(), Strange
