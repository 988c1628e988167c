# Expect: completed
# Then: kept
"""`__class__` and everything else raises when it is asked for, as `isinstance` does."""


class Untouchable:
    def __getattribute__(self, name):
        raise SystemExit(name)

    @property
    def __class__(self):
        raise KeyboardInterrupt


untouchable = Untouchable()
