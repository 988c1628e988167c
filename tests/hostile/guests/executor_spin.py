# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""A function that never ends, given to an executor whose result nobody asks for."""

from concurrent.futures import ThreadPoolExecutor


def spin():
    while True:
        pass


ThreadPoolExecutor().submit(spin)
