# Expect: completed
# Then: kept
"""Generators and coroutines that answer being closed with another value."""

import gc


def stubborn():
    while True:
        try:
            yield
        except GeneratorExit:
            pass


for _ in range(100):
    generator = stubborn()
    next(generator)
    del generator
gc.collect()
