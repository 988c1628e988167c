# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""Dropping a generator runs its `finally`, which does not come to an end."""


def stubborn():
    try:
        yield
    finally:
        while True:
            pass


generator = stubborn()
next(generator)
del generator
